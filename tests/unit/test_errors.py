from __future__ import annotations

import copy
import pickle

import pytest

from clear_ray import errors
from clear_ray.errors import (
    BudgetError,
    ClearRayError,
    ClusterError,
    ConfigError,
    EngineError,
    EngineFailedError,
    PriceError,
    ResumeError,
    SchemaError,
    StorageError,
    UtilityError,
    own_error,
)

PARENTS = {
    ConfigError: ValueError,
    SchemaError: ValueError,
    UtilityError: ValueError,
    BudgetError: RuntimeError,
    PriceError: RuntimeError,
    EngineError: RuntimeError,
    EngineFailedError: EngineError,
    ResumeError: RuntimeError,
    ClusterError: RuntimeError,
    StorageError: RuntimeError,
}
EVERY = pytest.mark.parametrize("kind", [ClearRayError, *PARENTS], ids=lambda kind: kind.__name__)


def test_every_error_of_the_module_is_listed_here_and_in_its_docstring() -> None:
    found = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ClearRayError)}
    assert found == {ClearRayError, *PARENTS}
    assert errors.__doc__ is not None
    assert all(kind.__name__ in errors.__doc__ for kind in found)


def test_the_docstring_draws_the_parents_as_they_are() -> None:
    assert errors.__doc__ is not None
    drawn = {line.split()[1]: line.split()[2].strip("()") for line in errors.__doc__.splitlines() if "──" in line}
    assert drawn == {kind.__name__: parent.__name__ for kind, parent in PARENTS.items()}


@pytest.mark.parametrize(("kind", "parent"), PARENTS.items(), ids=lambda kind: kind.__name__)
def test_each_is_also_what_its_parent_is(kind: type[ClearRayError], parent: type[Exception]) -> None:
    assert issubclass(kind, parent)
    assert issubclass(kind, ClearRayError)
    with pytest.raises(parent):
        raise kind("something")


@EVERY
@pytest.mark.parametrize(
    "arguments",
    [
        ("what",),
        ("what", "where"),
        ("what", "where", "value"),
        ("what", "where", "value", "Do this."),
        ("", "", "", ""),
    ],
)
def test_each_survives_pickling_and_copying(kind: type[ClearRayError], arguments: tuple[str, ...]) -> None:
    error = kind(*arguments)
    for again in (
        pickle.loads(pickle.dumps(error)),  # noqa: S301
        copy.copy(error),
        copy.deepcopy(error),
    ):
        assert type(again) is kind
        assert (again.what, again.where, again.value, again.remedy) == (
            error.what,
            error.where,
            error.value,
            error.remedy,
        )
        assert str(again) == str(error)
        assert again.args == error.args


@EVERY
def test_the_text_says_what_where_value_and_remedy(kind: type[ClearRayError]) -> None:
    assert (
        str(kind("is too long", "a.jsonl:3", "'x'", "Shorten it.")) == "a.jsonl:3: is too long (got 'x'). Shorten it."
    )
    assert str(kind("is too long", value="'x'")) == "is too long (got 'x')."
    assert str(kind("is too long", "a.jsonl:3")) == "a.jsonl:3: is too long."
    assert str(kind("is too long")) == "is too long."
    assert str(kind("is too long", remedy="Shorten it.")) == "is too long. Shorten it."


@EVERY
def test_a_long_value_is_shortened_in_the_text_and_kept_in_the_error(kind: type[ClearRayError]) -> None:
    error = kind("is too long", "here", "x" * 5_000)
    assert len(str(error)) < 200
    assert "…" in str(error)
    assert error.value == "x" * 5_000
    assert "…" not in str(kind("is too long", "here", "x" * 120))


def test_a_value_of_many_lines_is_told_in_one() -> None:
    assert (
        str(EngineError("it failed", "here", "first\nsecond\r\nthird")) == "here: it failed (got first second third)."
    )


@EVERY
def test_foreign_text_steers_no_terminal_and_forges_no_line(kind: type[ClearRayError]) -> None:
    foreign = "\x1b[31mred\x9b2J\r\nRefused:\u202egnp\ud800"
    said = str(kind(foreign, foreign, foreign, foreign))
    assert said.isprintable()
    assert said.count("red") == 4
    assert said.encode()


def test_ordinary_text_and_the_lines_of_a_list_stay() -> None:
    ordinary = "größe 7\u00a0€, \u0646\u0645\u06cc\u200c\u062e\u0648\u0627, \U0001f469\u200d\U0001f52c, 全角\u3000空白"
    assert str(SchemaError(ordinary, ordinary, ordinary, ordinary)).count(ordinary) == 4
    listed = "2 problems:\n  a.jsonl:1: it is empty.\n  a.jsonl:2: it is empty"
    assert str(SchemaError(listed)) == f"{listed}."


@EVERY
def test_a_uri_is_shown_without_its_keys_wherever_it_stands(kind: type[ClearRayError]) -> None:
    uri = "s3://KEY:HIDDEN@bucket/a?token=HIDDEN"
    parts = (f"{uri} is no file", uri, f"{'x' * 90} {uri}", f"Look at '{uri}'.")
    said = str(kind(*parts))
    assert "HIDDEN" not in said
    assert "KEY" not in said
    assert said.startswith("s3://bucket/a: s3://bucket/a is no file (got ")
    assert said.endswith("Look at 's3://bucket/a'.")


class CarriedByRayError(EngineError):
    """As `RayTaskError.as_instanceof_cause` makes them: also of the kind of its cause, with a traceback for a text."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a traceback of many lines")
        self.cause = cause


def test_the_error_behind_what_ray_hands_on_is_found() -> None:
    ours = EngineError("it broke", "here")
    wrapped = RuntimeError("an operator failed")
    wrapped.__cause__ = CarriedByRayError(ours)
    assert own_error(ours) is ours
    assert own_error(CarriedByRayError(ours)) is ours
    assert own_error(wrapped) is ours
    assert own_error(ValueError("somebody else's")) is None
