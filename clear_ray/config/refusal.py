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
_GROUPS = frozenset(("model_type", "model_attributes_type", "dict_type"))
_PLAINLY = {
    "int_parsing": "it is a whole number, written in digits alone",
    "int_from_float": "it is a whole number",
    "float_parsing": "it is a number",
    "float_type": "it is a number",
    "bool_parsing": "it is true or false",
    "string_type": "it is a text: put it into quotes",
}
"""What pydantic says in words of its own."""
_OTHER_WORDS = {
    **dict.fromkeys(("api_key", "apikey", "token", "openai_api_key"), "key_env or key_file"),
    **dict.fromkeys(("api_base", "url", "endpoint", "host"), "base_url"),
    **dict.fromkeys(("model_name", "model_id", "model_path"), "model"),
    **dict.fromkeys(("output_dir", "out_dir", "output"), "run_dir"),
    **dict.fromkeys(("max_new_tokens", "max_completion_tokens", "max_output_tokens"), "max_tokens"),
    **dict.fromkeys(("prompt", "prompt_tokens"), "input"),
    **dict.fromkeys(("completion", "completion_tokens"), "output"),
    **dict.fromkeys(("cache_read", "cached", "cached_tokens", "input_cached"), "cached_input"),
    **dict.fromkeys(("dataset", "data", "file", "files"), "path"),
}
"""What other tools call a setting."""


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
    written = written or [part for part in first["loc"] if part != "*"]  # prices beside an engine were gathered
    key = ".".join(map(str, written))
    if first["type"] == _UNKNOWN:
        kind = left_out[-1] if left_out and "kind" in names else ""
        what = f"kind {kind} has no such setting" if kind else "there is no such setting"
        others = [one for one in _of_place(of, tuple(written[:-1])) if kind and written[-1] in one.model_fields]
        near = "" if others else _meant(str(written[-1]), names, of)
        what += f"; kind {others[0].model_fields['kind'].default} has" if others else ""
        what += f"; did you mean {near}?" if near else ""
    elif first["type"] in _GROUPS:
        what = f"it is a group of settings{_example(of, first)}"
    elif first["type"] == "union_tag_invalid":
        what = f"there is no kind {first['ctx']['tag']}; there are {first['ctx']['expected_tags']}"
    else:
        what = "it is missing" if is_missing else _plainly(first)
    # A group may hold anything, and what is near a key is better not shown.
    is_private = any(word in key.lower() for word in ("key", "secret"))
    is_shown = not (is_default or is_private or isinstance(first["input"], dict | BaseModel))
    more = "" if len(errors) == 1 else f" {len(errors) - 1} more {'is' if len(errors) == 2 else 'are'} refused."
    place = f"{where}: {key}" if key else where
    return ConfigError(what, place, as_written(first["input"]) if is_shown else "", remedy + more)


def _plainly(error: Any) -> str:
    """Return what is wrong with a value, in plain words where pydantic's are of Python."""
    if error["type"] in ("too_short", "too_long"):
        limit = error["ctx"].get("min_length", error["ctx"].get("max_length"))
        which = "at least" if error["type"] == "too_short" else "at most"
        return f"it has {which} {limit} entries, and this one has {error['ctx']['actual_length']}"
    if error["input"] is None and error["type"].endswith(("_type", "_parsing")):
        return "it has no value: leave it out, or give it one"
    return _PLAINLY.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")


def _meant(name: str, names: list[str], of: type[BaseModel]) -> str:
    """Return the setting that a name was likely to be: one of its group, by another word, or one of another group."""
    known = [word for word in _OTHER_WORDS.get(name.lower(), "").split(" or ") if word in names]
    near = " or ".join(known) or next(iter(get_close_matches(name, names, n=1)), "")
    if near and near != name:
        return near
    wanted = {name.lower(), *_OTHER_WORDS.get(name.lower(), "").split(" or ")}
    elsewhere = sorted((place for place in _places(of) if len(place) > 1 and place[-1] in wanted), key=len)
    return next((".".join(place) for place in elsewhere), "")


def _places(model: type[BaseModel]) -> list[tuple[str, ...]]:
    """Return where each setting of a configuration stands, but for those of lists and of engines by their names."""
    found: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        is_one = not any(kind in str(field.annotation) for kind in ("dict[", "tuple["))
        inside = [place for one in _models(field.annotation) for place in _places(one)] if is_one else []
        found += [(name,), *((name, *place) for place in inside)]
    return found


def _example(of: type[BaseModel], first: Any) -> str:
    """Return how a group is written, with what was given in its place as a setting of it."""
    groups = [one for one in _of_place(of, first["loc"]) if one.model_fields]
    if not groups or not isinstance(first["input"], str):
        return ""
    fields = groups[0].model_fields.items()
    choices = [name for name, field in fields if first["input"] in get_args(field.annotation)]
    texts = [name for name, field in fields if str in (field.annotation, *get_args(field.annotation))]
    named = next(iter([*choices, *texts]), "")
    return f", such as {first['loc'][-1]}: {{{named}: {as_written(first['input'])[1:-1]}}}" if named else ""


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
    return sorted({name for each in _of_place(model, loc) for name in each.model_fields})


def _of_place(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    found = [model]
    for part in loc:
        inside = [each.model_fields[part].annotation for each in found if part in each.model_fields]
        of_kind = [each for each in found if "kind" in each.model_fields and each.model_fields["kind"].default == part]
        found = [one for each in inside for one in _models(each)] if inside else of_kind or found
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for each in get_args(annotation) for one in _models(each)]
