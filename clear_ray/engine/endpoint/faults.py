"""What an endpoint's errors mean: whether the call is to blame, whether tokens may have been spent, when to come again."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, Literal

import openai

from clear_ray.engine.endpoint.answers import StatedError, in_a_line
from clear_ray.engine.endpoint.requests import COMPLETIONS, EndpointRequest

Kind = Literal["limited", "busy", "lost", "refused", "fatal"]
"""`limited`: too many calls. `busy`: not taken, of no fault of the query. `lost`: it may have been generated. `refused`: not
this query. `fatal`: nothing, until a person does something."""

_OUT_OF_MONEY = frozenset(
    (
        *("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated"),
        *("budget_exceeded", "insufficient_balance", "insufficient_credits", "credit_limit_reached"),
    )
)
_NO_MONEY = re.compile(
    r"credit balance is too low|insufficient (account )?(balance|credits?|funds)|budget has been exceeded|key limit exceeded"
    r"|out of credits",
    re.IGNORECASE,
)
_NOT_TAKEN = frozenset((408, 409, 425, 498, 503, 529))
_UNDER_WAY = 424  # what some say of an answer that broke while it was generated
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
        is_stated: Whether it is an error of the endpoint's own, not one of the way there.
    """

    kind: Kind
    said: str
    retry_after_seconds: float | None = None
    field: str = ""
    is_stated: bool = False


def fault_of(error: Exception, request: EndpointRequest, *, key: str = "") -> Fault:
    """Return what an error of the client means.

    Args:
        error: What it raised; anything but an error of HTTP is an answer that cannot be read.
        request: The call.
        key: What must not be shown.
    """
    if isinstance(error, openai.APIStatusError):
        text, headers = error.response.text, error.response.headers
        return _fault_of_status(error.status_code, error.body, request, key, text=text, headers=headers)
    if isinstance(error, openai.APIError) and not isinstance(error, openai.APIConnectionError) and error.body:
        error = StatedError(error.body)  # of a stream
    if isinstance(error, StatedError):
        return _fault_of_status(error.status, error.stated, request, key)
    if isinstance(error, openai.APITimeoutError | TimeoutError) and not _was_never_sent(error):
        return Fault("lost", "it did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        said = f"{type(cause).__name__}: {cause}"[:_LONGEST_SAID]
        if _was_never_sent(error):
            return Fault("busy", f"it cannot be reached: {_without(key, said)}")
        return Fault("lost", f"the connection broke: {_without(key, said)}")
    return Fault("lost", f"what came cannot be read: {_without(key, str(error))[:_LONGEST_SAID]}")


def _fault_of_status(
    status: int,
    body: Any,
    request: EndpointRequest,
    key: str,
    *,
    text: str = "",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Fault:
    if isinstance(body, list) and body:  # some send errors in a list
        body = body[0].get("error", body[0]) if isinstance(body[0], dict) else body[0]
    stated: Mapping[str, Any] = body if isinstance(body, dict) else {}
    codes = [str(stated.get(name) or "") for name in ("code", "type")]
    words = str(stated.get("message") or stated.get("detail") or (body if isinstance(body, str) else text))
    if is_elsewhere(status):
        words = f"it sends calls on to {headers.get('location') or 'another place'}"
    said = f"{status}: {_without(key, in_a_line(words))}"
    is_out_of_money = not _OUT_OF_MONEY.isdisjoint(codes) or (status != 429 and bool(_NO_MONEY.search(words)))
    kind = _kind_of(status, request, is_out_of_money=is_out_of_money)
    return Fault(kind, said, retry_after(headers), str(stated.get("param") or ""), is_stated=True)


def _kind_of(status: int, request: EndpointRequest, *, is_out_of_money: bool) -> Kind:
    if is_out_of_money and status < 500:
        return "fatal"
    if status == 429:
        return "limited"
    if status in (401, 402) or is_elsewhere(status) or (status == 404 and request.path != COMPLETIONS):
        return "fatal"
    if status in _NOT_TAKEN:
        return "busy"
    return "lost" if status >= 500 or status == _UNDER_WAY else "refused"


def is_elsewhere(status: int) -> bool:
    """Return whether an answer points to another place."""
    return 300 <= status < 400


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return the seconds after which an endpoint wants to be asked again, by its `Retry-After`: seconds, or a date.

    A date is one of the endpoint's own clock, which its answer's `Date` tells: ours may be an hour away from it.

    Args:
        headers: Of its answer; `retry-after-ms` goes before.
        now: Unix time, where no `Date` says it; our clock's if not given.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000.0
    stated = headers.get("retry-after")
    if stated is None or (seconds := _number(stated)) is not None:
        return None if stated is None else seconds
    due, theirs = _time(stated), _time(headers.get("date") or "")
    if due is None:
        return None
    # A date has no parts of a second: the one it names is over when the next one begins.
    ours = time.time() if now is None else now
    return max(0.0, due - (ours if theirs is None else theirs))


def _time(date: str) -> float | None:
    """Return the Unix time of a date of HTTP; None if it is none."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


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
