"""What an endpoint's errors mean: whether the call is to blame, whether tokens may have been spent, when to come again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import openai

from clear_ray.engine.endpoint.answers import in_a_line
from clear_ray.engine.endpoint.requests import COMPLETIONS, EndpointRequest

Kind = Literal["limited", "busy", "lost", "refused", "fatal"]
"""`limited`: too many calls. `busy`: not taken, of no fault of the query. `lost`: it may have been generated. `refused`: not
this query. `fatal`: nothing, until a person does something."""

_OUT_OF_MONEY = frozenset(
    ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated")
)
_NOT_TAKEN = frozenset((408, 409, 425, 503, 529))
_NEVER_SENT = frozenset(("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "ProxyError"))
_LONGEST_SAID = 200


@dataclass(frozen=True, slots=True)
class Fault:
    """What came instead of an answer.

    Attributes:
        kind: What it means.
        said: In a line, the endpoint's own words at its end; no key in it.
        retry_after_seconds: When to come again; None if it does not say.
        field: The field that was refused, if it names one.
    """

    kind: Kind
    said: str
    retry_after_seconds: float | None = None
    field: str = ""


def fault_of(error: Exception, request: EndpointRequest, *, key: str = "") -> Fault:
    """Return what an error of the client means.

    Args:
        error: What it raised; anything but an error of HTTP is an answer that cannot be read.
        request: The call.
        key: What must not be shown.
    """
    if isinstance(error, openai.APIStatusError):
        return _fault_of_status(error, request, key)
    if isinstance(error, openai.APITimeoutError | TimeoutError) and not _was_never_sent(error):
        return Fault("lost", "it did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        said = f"{type(cause).__name__}: {cause}"[:_LONGEST_SAID]
        if _was_never_sent(error):
            return Fault("busy", f"it cannot be reached: {_without(key, said)}")
        return Fault("lost", f"the connection broke: {_without(key, said)}")
    return Fault("lost", f"what came cannot be read: {_without(key, str(error))[:_LONGEST_SAID]}")


def _fault_of_status(error: openai.APIStatusError, request: EndpointRequest, key: str) -> Fault:
    status, body = error.status_code, error.body
    stated: Mapping[str, Any] = body if isinstance(body, dict) else {}
    code = str(stated.get("code") or stated.get("type") or "")
    words = stated.get("message") or stated.get("detail") or (body if isinstance(body, str) else error.response.text)
    said = f"{status}: {_without(key, in_a_line(str(words)))}"
    field = str(stated.get("param") or "")
    return Fault(_kind_of(status, code, request), said, retry_after(error.response.headers), field)


def _kind_of(status: int, code: str, request: EndpointRequest) -> Kind:
    if status == 429:
        return "fatal" if code in _OUT_OF_MONEY else "limited"
    if status in (401, 402) or (status == 404 and request.path != COMPLETIONS):
        return "fatal"
    if status in _NOT_TAKEN:
        return "busy"
    return "lost" if status >= 500 else "refused"


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the seconds after which an endpoint wants to be asked again, by its `Retry-After`: seconds, or a date.

    Args:
        headers: Of its answer; `retry-after-ms` goes before.
        now: Unix time; the clock's if not given.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    stated = headers.get("retry-after")
    if stated is None or (seconds := _number(stated)) is not None:
        return None if stated is None else seconds
    try:
        due = parsedate_to_datetime(stated).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    # A date has no parts of a second: the one it names is over when the next one begins.
    return max(0.0, due - (time.time() if now is None else now))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0.0 <= value < float("inf") else None


def _was_never_sent(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in _NEVER_SENT:
            return True
        cause = cause.__cause__
    return False


def _without(key: str, text: str) -> str:
    return text.replace(key, "…") if key else text
