"""docs/structures.md says what the code is: its packages, its layers, its places."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "structures.md").read_text()
PACKAGE = REPOSITORY / "clear_ray"


def contracts() -> list[list[str]]:
    """Return the layers of the import contract, from the top, each the names of its packages."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (layers,) = (
        contract["layers"] for contract in settings["tool"]["importlinter"]["contracts"] if contract["type"] == "layers"
    )
    assert not [layer for layer in layers if ":" in layer], "a colon lets packages of a row import each other"
    return [re.findall(r"clear_ray\.(\w+)", layer) for layer in layers]


def members() -> set[str]:
    """Return the modules and packages at the top of `clear_ray`."""
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    return files | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def test_the_diagram_draws_the_import_contracts() -> None:
    diagram = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert diagram is not None
    drawn = [re.findall(r"\w+", line) for line in diagram[1].splitlines() if not set(line) <= set(" │▼|v")]
    assert drawn == contracts()


def test_every_member_has_a_layer_and_a_sentence() -> None:
    assert {name for layer in contracts() for name in layer} == members()
    assert {
        name.removesuffix(".py") for name in re.findall(r"^\| `([\w.]+)` \| [A-Z]", PAGE, re.MULTILINE)
    } == members()


def test_a_name_of_a_class_means_one_thing() -> None:
    homes: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_a_function_has_sixty_lines_at_most() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60  # type: ignore[operator]
    }
    assert not long


def test_every_place_it_names_exists() -> None:
    named = re.findall(r"`((?:\w+/)+\w+\.py|\w+/)`", PAGE)
    missing = [name for name in named if not (PACKAGE / name).exists()]
    kept = {"queries/", "estimates/", "grants/", "rounds/", "completions/"}  # of a run folder
    assert not set(missing) - kept
    assert len(named) > 20


@pytest.mark.parametrize("package", ["allocation", "rounds"])
def test_the_reading_guide_names_every_file_once(package: str) -> None:
    folder = PACKAGE / package
    guide = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()), clean=False) or ""
    rows = re.findall(r"^ {4}(\S.*)$", guide, re.MULTILINE)  # names with commas, then after two spaces what they are
    named = [name for row in rows for name in re.split(r"\s{2,}", row)[0].split(", ")]
    files = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert sorted(named) == files
