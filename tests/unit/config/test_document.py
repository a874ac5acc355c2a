"""docs/configuration.md has every setting of a run, with the default and the words of the code, and examples that load."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from clear_ray.config.run import RunConfig

DOCUMENT = Path(__file__).parents[3] / "docs/configuration.md"
ROW = re.compile(r"\| `([a-z_.\[\]]+)` \| ([^|]+) \| ([^|]+) \| (.+) \| `([^|]+)` \|")
RANGE_WORDS = {"gt": "above {}", "ge": "at least {}", "le": "at most {}", "lt": "below {}"}


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the configuration parts that an annotation names, those in tuples and unions too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def settings(model: type[BaseModel] = RunConfig, before: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name of every setting with its field; a list's parts follow `[]`."""
    for name, field in model.model_fields.items():
        path = before + name
        parts = [] if name == "engines" else list(models(field.annotation))  # each has the settings of `engine`
        if not parts or "tuple" in str(field.annotation):
            yield path, field
        for part in parts:
            yield from settings(part, f"{path}[]." if "tuple" in str(field.annotation) else f"{path}.")


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "none" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def meaning_of(field: FieldInfo) -> str:
    limits = [
        RANGE_WORDS[sign].format(f"{value:,}")
        for limit in field.metadata
        for sign in RANGE_WORDS
        if (value := getattr(limit, sign, None)) is not None
    ]
    text = " ".join((field.description or "").split())
    return f"{text} ({', '.join(limits)})" if limits else text


FIELDS: dict[str, FieldInfo] = {}
for path_, field_ in settings():
    FIELDS.setdefault(path_, field_)


def rows() -> dict[str, tuple[str, str, str, str]]:
    found = [ROW.fullmatch(line) for line in DOCUMENT.read_text(encoding="utf-8").splitlines()]
    return {match[1]: (match[2], match[3], match[4], match[5]) for match in found if match}


@pytest.mark.parametrize("path", FIELDS)
def test_the_setting_is_documented_as_the_code_has_it(path: str) -> None:
    field = FIELDS[path]
    wanted = f"| `{path}` | UNIT | {default_of(field)} | {meaning_of(field)} | `EXAMPLE` |"
    assert path in rows(), f"docs/configuration.md lacks this row: {wanted}"
    unit, default, meaning, _ = rows()[path]
    assert unit.strip()
    assert (default, meaning) == (default_of(field), meaning_of(field)), f"the row should read: {wanted}"


@pytest.mark.parametrize("path", FIELDS)
def test_the_example_is_accepted(path: str) -> None:
    field = FIELDS[path]
    key, value = next(iter(yaml.safe_load(rows()[path][3]).items()))
    assert key == path.rpartition(".")[2]
    checked: Any = TypeAdapter(field.annotation).validate_python(value)
    assert checked is not None


def test_nothing_is_documented_that_is_no_setting() -> None:
    assert rows().keys() <= FIELDS.keys()
