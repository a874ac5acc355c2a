"""What is refused of a configuration, in its own words: the key as it stands there, and the name it was likely to be."""

from __future__ import annotations

from decimal import Decimal
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from clear_ray.errors import ConfigError

_UNKNOWN = "extra_forbidden"
_FOLLOWS = "default_factory_not_called"
"""Of a default that is made of other settings, one of which is refused."""


def refusal(error: ValidationError, *, of: type[BaseModel], settings: Any, where: str, remedy: str) -> ConfigError:
    """Return the error that names one setting: an unknown one first, for a name mistyped is another one missing.

    Args:
        error: What pydantic says.
        of: The configuration.
        settings: What was read as it.
        where: File or option that it came from.
        remedy: What an error tells to do.
    """
    found = [one for one in error.errors(include_url=False) if one["type"] != _FOLLOWS]
    errors = sorted(found, key=lambda one: one["type"] != _UNKNOWN)
    first = errors[0]
    names = _names(of, first["loc"][:-1])
    is_missing = first["type"] == "missing"
    written, left_out, is_default = _as_written(first["loc"], settings, names)
    key = ".".join(map(str, written))
    if first["type"] == _UNKNOWN:
        what = f"kind {left_out[-1]} has no such setting" if left_out else "there is no such setting"
        near = get_close_matches(str(written[-1]), names, n=1)
        what += f"; did you mean {near[0]}?" if near else ""
    elif first["type"] == "union_tag_invalid":
        what = f"there is no kind {first['ctx']['tag']}; there are {first['ctx']['expected_tags']}"
    else:
        what = "it is missing" if is_missing else first["msg"].removeprefix("Value error, ")
    # A group may hold anything, and what is near a key is better not shown.
    is_private = any(word in key.lower() for word in ("key", "secret"))
    is_shown = not (is_default or is_private or isinstance(first["input"], dict | BaseModel))
    more = "" if len(errors) == 1 else f" {len(errors) - 1} more {'is' if len(errors) == 2 else 'are'} refused."
    place = f"{where}: {key}" if key else where
    return ConfigError(what, place, as_written(first["input"]) if is_shown else "", remedy + more)


def as_written(value: Any) -> str:
    """Return a value as Python writes it, or why that cannot be."""
    try:
        return str(value) if isinstance(value, Decimal) else repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits, which YAML can hold in hexadecimal
        return "a number too long to write"
    except RecursionError:
        return "a value nested too deep to write"


def _as_written(
    loc: tuple[int | str, ...], settings: Any, names: list[str]
) -> tuple[list[int | str], list[int | str], bool]:
    """Return a place as it was written, what pydantic put into it, and whether the file does not have it at all.

    The kind of an engine and the `*` of prices are in no file.
    """
    written: list[int | str] = []
    left_out: list[int | str] = []
    for place, part in enumerate(loc):
        is_absent = isinstance(settings, dict) and part not in settings
        if is_absent and place == len(loc) - 1 and part in names:
            return [*written, part], left_out, True
        if is_absent:
            left_out.append(part)
            continue
        written.append(part)
        is_inside = isinstance(settings, dict) or (isinstance(settings, list) and isinstance(part, int))
        settings = settings[part] if is_inside else None
    return written, left_out, False


def _names(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the settings that there are at a place."""
    found = [model]
    for part in loc:
        inside = [each.model_fields[part].annotation for each in found if part in each.model_fields]
        of_kind = [each for each in found if "kind" in each.model_fields and each.model_fields["kind"].default == part]
        found = [one for each in inside for one in _models(each)] if inside else of_kind or found
    return sorted({name for each in found for name in each.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for each in get_args(annotation) for one in _models(each)]
