"""Errors that clients of the server see, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """An error that a client sees.

    Args:
        status: HTTP status.
        message: What went wrong and what to do; no prompt text.
        param: Name of the offending parameter, if there is one.
        code: Word for machines.
        retry_after_seconds: When to try again, for statuses 429 and 503.
        headers: Further headers that go with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_seconds, self._headers = retry_after_seconds, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        said = {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after_seconds is not None:
            said["Retry-After"] = str(self.retry_after_seconds)
        return said | self._headers
