"""What every configuration has in common: settings documented where they stand, and one way of reading a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from clear_ray.config.refusal import refusal
from clear_ray.errors import ConfigError


class Settings(BaseModel):
    """Base of every configuration part: frozen, no unknown keys, finite, documented by the strings under the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


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
            loaded = read_yaml(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                "the configuration cannot be read", str(path), str(error), f"Name a YAML file. {cls.remedy}"
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


def read_yaml(text: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        ValueError: It is not YAML, it is nested too deep, or a value in it is none, such as the date 2026-99-99.
    """
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # what its readers of numbers, dates and truth values met
        raise ValueError(f"a value cannot be read: {error!r}") from error


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
        if settings.get(parent) is None:
            settings[parent] = {}
        settings = settings[parent]
        if not isinstance(settings, dict):
            raise ConfigError(
                "this key holds a value, not a group", f"--set {override}", parent, "See docs/configuration.md."
            )
    try:
        settings[last] = read_yaml(text)
    except ValueError as error:
        raise ConfigError("the value is not YAML", f"--set {override}", text, "Put it into quotes.") from error
