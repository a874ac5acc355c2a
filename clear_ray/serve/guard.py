"""Who may ask: API keys by their digests, how many queries one key may have under way, and how much it may have read."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from clear_ray.serve.errors import ApiError
from clear_ray.serve.settings import LOOPBACK

_TENANT = "tenant:"


def tenant_of(owner: str) -> str:
    """Return the name of the tenant that an owner is; empty for a key of no tenant."""
    return owner.removeprefix(_TENANT) if owner.startswith(_TENANT) else ""


class Guard:
    """Admit requests.

    Args:
        digests: SHA-256 of each key, hexadecimal. Without any, only clients on this machine are admitted.
        concurrent_per_key: Most queries of one key under way.
        prompt_tokens_per_second: Prompt tokens that one key may have read; None for any number.
        tenants: Digests of the keys of each tenant. What holds of a key holds of a tenant's keys together.
    """

    def __init__(
        self,
        digests: Sequence[str],
        *,
        concurrent_per_key: int,
        prompt_tokens_per_second: int | None = None,
        tenants: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._owners = {digest: digest for digest in digests}
        for name, keys in (tenants or {}).items():
            self._owners |= dict.fromkeys(keys, f"{_TENANT}{name}")
        self._digests, self._most = tuple(self._owners), concurrent_per_key
        self._under_way: Counter[str] = Counter()
        self._prompt_rate = prompt_tokens_per_second
        self._paid_until: dict[str, float] = {}  # when the prompts that each key has had read are paid for

    def admit(self, authorization: str | None, client_host: str | None) -> str:
        """Return which owner the client's key is of: its tenant, or the key's own digest; see `tenant_of`.

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
        return self._owners[found[0]]

    def change(self, *, concurrent_per_key: int, prompt_tokens_per_second: int | None = None) -> None:
        """Allow other numbers; what is under way stays."""
        self._most, self._prompt_rate = concurrent_per_key, prompt_tokens_per_second

    def check_prompts(self, key: str, now: float) -> None:
        """Have a key wait whose last prompts are not paid for: how long a prompt is, is known once it has been read.

        Raises:
            ApiError: 429.
        """
        if self._prompt_rate is None:
            return
        left = self._paid_until.get(key, now) - now
        if left > 0:
            message = (
                f"This key may have {self._prompt_rate} prompt tokens a second read; its last prompts were longer."
            )
            raise ApiError(429, message, code="prompt_tokens", retry_after_seconds=math.ceil(left))

    def charge_prompt(self, key: str, tokens: int, now: float) -> None:
        """Note that a prompt has been read."""
        if self._prompt_rate is not None:
            self._paid_until[key] = max(now, self._paid_until.get(key, now)) + tokens / self._prompt_rate

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
