"""Every exception that clear_ray raises.

    ClearRayError
    ├── ConfigError    (ValueError)    a setting is missing, unknown or out of range
    ├── SchemaError    (ValueError)    an input row, column or file cannot be read as a query
    ├── UtilityError   (ValueError)    curve parameters that describe no utility
    ├── BudgetError    (RuntimeError)  the ledger was asked for something that would break its invariants
    ├── PriceError     (RuntimeError)  no shadow price exists for what was asked
    ├── EngineError    (RuntimeError)  a language model cannot be had, or returned more than it was granted
    ├── EngineFailedError  (EngineError)  a language model failed while it ran, and has to be loaded anew
    ├── ResumeError    (RuntimeError)  the run folder does not belong to this configuration or input
    ├── ClusterError   (RuntimeError)  no Ray cluster can be joined or started, or it has no place for the engines
    └── StorageError   (RuntimeError)  the run folder cannot be read or written: a full disk, no permission, or it is gone

A message says what happened, where, which value was seen and what to do about it. The parts travel unchanged through
`args`, so that every error survives pickling between Ray processes; the sentence is made in `__str__`, where what came
from outside loses whatever steers a terminal, and URIs the keys in them.
"""

from __future__ import annotations

import traceback
from pathlib import Path

from clear_ray.redaction import printable, without_secrets_inside

_SHOWN_CHARACTERS = 120
_LISTED = "\n  "
_PLACE = " (at "
_SPACES_AND_JOINERS = "\u00a0\u202f\u3000\u200c\u200d"  # of ordinary text, though Python calls them unprintable


class ClearRayError(Exception):
    """Base of all errors raised on purpose by clear_ray.

    Args:
        what: What went wrong, as a clause without a full stop.
        where: File and line, column, query or setting; empty if there is no place to name.
        value: The offending value as text; shortened in the message.
        remedy: What the user can do, as an imperative sentence.
    """

    def __init__(self, what: str, where: str = "", value: str = "", remedy: str = "") -> None:
        super().__init__(what, where, value, remedy)
        self.what, self.where, self.value, self.remedy = what, where, value, remedy

    def __str__(self) -> str:
        what = _LISTED.join(_on_one_line(line) for line in self.what.split(_LISTED))
        where, value, remedy = map(_on_one_line, (self.where, self.value, self.remedy))
        sentence = f"{where}: {what}" if where else what
        if value:
            shown = value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "…"
            sentence += f" (got {shown})"
        return f"{sentence}. {remedy}" if remedy else f"{sentence}."


class ConfigError(ClearRayError, ValueError):
    """A setting is missing, unknown or out of range."""


class SchemaError(ClearRayError, ValueError):
    """An input row, column or file cannot be read as a query."""


class UtilityError(ClearRayError, ValueError):
    """Curve parameters that describe no utility."""


class BudgetError(ClearRayError, RuntimeError):
    """The ledger was asked for something that would break one of its invariants."""


class PriceError(ClearRayError, RuntimeError):
    """No shadow price exists for what was asked."""


class EngineError(ClearRayError, RuntimeError):
    """A language model cannot be had, or returned more tokens than it was granted."""


class EngineFailedError(EngineError):
    """A language model failed while it ran: nothing more can be asked of it before it is loaded anew."""

    @property
    def kind(self) -> str:
        """What failed: the type of the error and its place, where `told` said them; whatever its words were."""
        name, _, rest = self.value.partition(": ")
        return f"{name} {rest[rest.rfind(_PLACE) :]}" if _PLACE in rest else self.value


class ResumeError(ClearRayError, RuntimeError):
    """The run folder does not belong to this configuration or input, is damaged, or is another run's at the moment."""


class ClusterError(ClearRayError, RuntimeError):
    """No Ray cluster can be joined or started, or it has no place for the engines."""


class StorageError(ClearRayError, RuntimeError):
    """The run folder cannot be read or written (any more)."""


def _on_one_line(text: str) -> str:
    line = " ".join(without_secrets_inside(text).splitlines())
    return printable(line, most=len(line), keep=_SPACES_AND_JOINERS)


def told(error: BaseException) -> str:
    """Return an error that is not ours in a line: its type, its words and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{_PLACE}{Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    words = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {words[:_SHOWN_CHARACTERS]}{place}"


def own_error(error: BaseException) -> ClearRayError | None:
    """Return the error of ours that an exception stands for, as it was raised, or None if there is none behind it.

    Ray hands on a copy, of a class made for the purpose, that says a whole traceback; the original is its `cause`.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ClearRayError) and not hasattr(cause, "cause"):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None
