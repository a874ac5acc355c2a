"""Who may ask: API keys by their digests, and how many queries one key may have under way."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from clear_ray.serve.protocol import ApiError
from clear_ray.serve.settings import LOOPBACK


class Guard:
    """Admit requests.

    Args:
        digests: SHA-256 of each key, hexadecimal. Without any, only clients on this machine are admitted.
        concurrent_per_key: Most queries of one key under way.
    """

    def __init__(self, digests: Sequence[str], *, concurrent_per_key: int) -> None:
        self._digests, self._most = tuple(digests), concurrent_per_key
        self._under_way: Counter[str] = Counter()

    def admit(self, authorization: str | None, client_host: str | None) -> str:
        """Return the digest of the client's key, or raise.

        Raises:
            ApiError: 401.
        """
        if not self._digests:
            if client_host in LOOPBACK:
                return ""
            raise ApiError(401, "Without API keys this server answers clients on its own machine alone.")
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).hexdigest()
        # All are compared, so that the time taken does not tell which one it was.
        found = [digest for digest in self._digests if hmac.compare_digest(digest, given)]
        if scheme.lower() != "bearer" or not found:
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")
        return found[0]

    def change(self, *, concurrent_per_key: int) -> None:
        """Allow another number of queries under way; those that are stay."""
        self._most = concurrent_per_key

    @contextmanager
    def under_way(self, key: str) -> Iterator[None]:
        """Count a query of `key` while it runs.

        Raises:
            ApiError: 429: this key has as many under way as it may.
        """
        if self._under_way[key] >= self._most:
            message = f"This key has {self._most} queries under way; no more are taken."
            raise ApiError(429, message, code="too_many_concurrent", retry_after_seconds=1)
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
