"""What `import clear_ray` gives: every name, from where, at what price, and what is said of a name that is not there."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import clear_ray
import clear_ray.allocation
import clear_ray.engine
import clear_ray.ingest
import clear_ray.tasks

PARAMETERS = {
    "allocate": ["utility", "budget_tokens*", "spread_unspent*", "tie_break_N*"],
    "allocate_rollouts": [
        *("solvability_N", "tokens_N", "budget_tokens*", "objective*", "rollouts*", "strength*", "right_N*", "wrong_N*")
    ],
    "plan": ["queries", "config", "share*", "sample_share*", "display*"],
    "run": ["queries", "config", "display*"],
    "solve_shadow_price": ["utility", "budget_tokens*"],
}
"""Of each function; with a star where the name has to be given."""
FACES = [clear_ray, clear_ray.allocation, clear_ray.engine, clear_ray.ingest, clear_ray.tasks]
EACH_FACE = pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
EACH_NAME = pytest.mark.parametrize("name", clear_ray.__all__)


def in_a_new_process(code: str) -> str:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def imported_for_types(face: ModuleType) -> dict[str, str]:
    """Return name -> module of what stands under `if TYPE_CHECKING`, from where type checkers know the names."""
    assert face.__file__ is not None
    found: dict[str, str] = {}
    for branch in ast.parse(Path(face.__file__).read_text()).body:
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING":
            for line in branch.body:
                assert isinstance(line, ast.ImportFrom)
                found |= {alias.name: str(line.module) for alias in line.names}
    return found


@EACH_FACE
def test_a_face_lists_what_it_has(face: ModuleType) -> None:
    assert len(set(face.__all__)) == len(face.__all__)
    assert set(face.__all__) <= set(dir(face))
    assert not [name for name in face.__all__ if not hasattr(face, name) and name != "VllmEngine"]


@EACH_NAME
def test_each_name_is_what_its_home_calls_so(name: str) -> None:
    home = clear_ray._HOME[name]
    value = getattr(clear_ray, name)
    assert value is getattr(importlib.import_module(home), name)
    assert value is getattr(clear_ray, name), "asked again, it is the same"
    assert value.__name__ == name
    assert value.__module__ == home or value.__module__.startswith(f"{home}.")
    assert inspect.getdoc(value), "a public name says what it is"


def test_what_is_listed_what_is_found_and_what_type_checkers_see_are_the_same() -> None:
    assert sorted(clear_ray._HOME) == clear_ray.__all__
    assert imported_for_types(clear_ray) == clear_ray._HOME


def test_a_star_takes_all_names_and_no_more() -> None:
    code = "from clear_ray import *; print(*sorted(name for name in dir() if name[0] != '_'))"
    assert in_a_new_process(code).split() == clear_ray.__all__


@EACH_FACE
def test_a_name_that_is_not_there_is_refused(face: ModuleType) -> None:
    with pytest.raises(AttributeError, match=rf"module '{face.__name__}' has no attribute 'alocate'"):
        face.alocate  # noqa: B018
    with pytest.raises(ImportError, match="alocate"):
        exec(f"from {face.__name__} import alocate")  # noqa: S102


@pytest.mark.parametrize("function", PARAMETERS)
def test_signatures_stay(function: str) -> None:
    signature = inspect.signature(getattr(clear_ray, function))
    stars = {inspect.Parameter.POSITIONAL_OR_KEYWORD: "", inspect.Parameter.KEYWORD_ONLY: "*"}
    assert [f"{p.name}{stars[p.kind]}" for p in signature.parameters.values()] == PARAMETERS[function]


def test_every_function_of_the_face_has_a_pinned_signature() -> None:
    assert [name for name in clear_ray.__all__ if inspect.isfunction(getattr(clear_ray, name))] == sorted(PARAMETERS)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import clear_ray", "ray torch transformers vllm scipy numpy pydantic pyarrow"),
        ("from clear_ray import allocate, ShiftedSurge, solve_shadow_price", "ray torch transformers vllm pydantic"),
        ("from clear_ray import RunConfig, ClearRayError", "ray torch transformers vllm"),
        ("from clear_ray import Engine, ReplayEngine, RunReport", "ray torch transformers vllm"),
    ],
)
def test_a_name_is_paid_for_when_it_is_asked_for(statement: str, absent: str) -> None:
    code = f"{statement}\nimport sys; print(*(set({absent.split()!r}) & sys.modules.keys()))"
    assert in_a_new_process(code).split() == []
