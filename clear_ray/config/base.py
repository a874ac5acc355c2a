"""What every configuration has in common: settings documented where they stand, and one way of reading a file of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from clear_ray.config.reading import read_yaml
from clear_ray.config.refusal import refusal
from clear_ray.errors import ConfigError

_NO_TRUTH = "true and false say nothing here, and YAML reads yes, no, on and off as these: put words into quotes"


class Settings(BaseModel):
    """Base of every configuration part: frozen, no unknown keys, finite, documented by the strings under the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _what_was_meant(cls, value: Any) -> Any:
        """Take an empty group for one that is left out, and refuse a truth value for a number, which it is in Python."""
        if not isinstance(value, dict):
            return value
        odd = [name for name, given in value.items() if given is None or isinstance(given, bool)]
        wrong = [
            InitErrorDetails(type=PydanticCustomError("truth", _NO_TRUTH), loc=(name,), input=value[name])
            for name in odd
            if value[name] is not None and not _takes_truth(cls, name)
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        empty = {name for name in odd if value[name] is None and _is_group(cls, name)}
        return {name: given for name, given in value.items() if name not in empty} if empty else value


@lru_cache(4_096)  # a row of an input is such a part, too
def _takes_truth(part: type[Settings], name: str) -> bool:
    """Whether a setting may be true or false; one that is not there is refused elsewhere."""
    field = part.model_fields.get(name)
    return field is None or bool({bool, Any} & set(_kinds_of(field.annotation)))


@lru_cache(4_096)
def _is_group(part: type[Settings], name: str) -> bool:
    """Whether a setting is a group of settings, all of which may be left out."""
    field = part.model_fields.get(name)
    kinds = () if field is None or field.is_required() else _kinds_of(field.annotation)
    return bool(kinds) and all(isinstance(kind, type) and issubclass(kind, Settings) for kind in kinds)


def _kinds_of(annotation: Any) -> tuple[Any, ...]:
    """Return the types that a value may have: of a union those of each member, of a literal those of its words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return tuple(type(part) for part in parts)
    if origin in (UnionType, Union):
        return tuple(kind for part in parts for kind in _kinds_of(part))
    return _kinds_of(parts[0]) if origin is Annotated else (annotation,)


class ConfigFile(Settings):
    """Base of a whole configuration: one YAML file, `key=value` overrides, and errors that name the first setting refused."""

    remedy: ClassVar[str] = "See docs/configuration.md."
    """What an error tells to do."""

    @classmethod
    def load(cls, path: str | Path, overrides: tuple[str, ...] = ()) -> Self:
        """Read a YAML file and apply `key.subkey=value` overrides.

        Relative paths inside the file are relative to the working folder, as on a command line.

        Args:
            path: The YAML file.
            overrides: Each `dotted.key=value`; the value is read as YAML.

        Raises:
            ConfigError: The file cannot be read, or a setting is unknown, missing or out of range.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(
                "the configuration cannot be read", str(path), str(error), f"Name a YAML file in UTF-8. {cls.remedy}"
            ) from error
        try:
            loaded = read_yaml(text)
        except ValueError as error:
            raise ConfigError(
                f"the configuration is no YAML: {error}", str(path), remedy=f"Correct it there. {cls.remedy}"
            ) from error
        if not isinstance(loaded, dict):
            raise ConfigError(
                "the configuration is not a mapping", str(path), type(loaded).__name__, "Write `setting: value` lines."
            )
        for override in overrides:
            apply_override(loaded, override)
        return cls.parse(loaded, where=str(path))

    @classmethod
    def parse(cls, settings: Any, *, where: str = "config") -> Self:
        """Check settings that are already in memory.

        Raises:
            ConfigError: A setting is unknown, missing or out of range; one is named.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise refusal(error, of=cls, settings=settings, where=where, remedy=cls.remedy) from error


def apply_override(settings: dict[str, Any], override: str) -> None:
    """Put one `dotted.key=value` into settings that are in memory.

    Raises:
        ConfigError: It does not read so, or its key or value is none.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError("an override reads key=value", "--set", override, "Write it so, as in `--set budget=200k`.")
    *parents, last = key.split(".")
    for parent in parents:
        inside = {} if settings.get(parent) is None else settings[parent]
        if not isinstance(inside, dict):
            raise ConfigError(
                "this key holds a value, not a group", f"--set {override}", parent, "See docs/configuration.md."
            )
        settings[parent] = dict(inside)  # an alias in the file has two places share one group
        settings = settings[parent]
    try:
        settings[last] = read_yaml(text)
    except ValueError as error:
        raise ConfigError("the value is not YAML", f"--set {override}", text, "Put it into quotes.") from error
