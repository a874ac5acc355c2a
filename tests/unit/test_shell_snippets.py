"""Every command of README.md and docs/*.md is one that its program takes, and names files that are there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray.scripts.scripts
import ray.serve.scripts
import typer
import yaml

from clear_ray.cli import app
from clear_ray.config.run import RunConfig
from clear_ray.records import COMPLETION_SCHEMA
from clear_ray.serve.settings import ServeConfig
from tests.unit.snippets import FENCE, LANGUAGES, ROOT, Snippet, snippets, snippets_in, written_in

EACH = {"ids": lambda each: each.place}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = typer.main.get_command(app)
ENTRIES = {"run_batch.py": ["run"], "sweep_budgets.py": ["sweep"], "calibrate.py": ["calibrate"]}
"""Entries of `ray job submit`, and the command of ours whose options they take."""


class RefusedError(Exception):
    """A command that its program would not take."""


def parsed(command: Any, words: Sequence[str]) -> dict[str, Any]:
    """Return the values that a program made with click or typer reads from a command line, without running it."""
    rest = list(words)
    while hasattr(command, "commands"):
        name = rest.pop(0) if rest else "--help"
        if name.startswith("-"):
            options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            if name not in options:
                raise RefusedError(f"{command.name} has no {name}")
            return {}
        if name not in command.commands:
            raise RefusedError(f"{command.name} has no {name}")
        command = command.commands[name]
    return dict(command.make_context(command.name, rest).params)


def is_there(path: str, folder: Path = ROOT) -> None:
    if not (folder / path).exists():
        raise RefusedError(f"there is no {path}")


def check_ours(words: list[str], folder: Path = ROOT) -> None:
    values = parsed(OURS, words)
    config = values.get("config")
    if config and (folder / config).exists():  # else it is the reader's own
        kind = ServeConfig if words[0] == "serve" else RunConfig
        overrides = tuple(values.get("set_") or ())
        kind.load(str(folder / config), *([overrides] if overrides else []))
    elif config and config.startswith(("jobs/", "configs/")):
        raise RefusedError(f"there is no {config}")


def check_ray(words: list[str]) -> None:
    before, _, entry = " ".join(map(shlex.quote, words)).partition(" -- ")
    values = parsed(ray.scripts.scripts.cli, words)
    if words[0] in ("up", "down", "dashboard", "exec", "attach"):
        is_there(words[1])
    if words[:2] == ["job", "submit"]:
        folder = ROOT / str(values.get("working_dir") or ".")
        check_python(shlex.split(entry), folder)
        assert before


def check_python(words: list[str], folder: Path = ROOT) -> None:
    if words[0] != "python":
        raise RefusedError(f"{words[0]} is no entry")
    if words[1] == "-c":
        compile(words[2], "-c", "exec")
    elif words[1] != "-m":
        is_there(words[1], folder)
        if command := ENTRIES.get(Path(words[1]).name):
            check_ours([*command, *words[2:]], folder)


def check_serve(words: list[str]) -> None:
    parsed(ray.serve.scripts.cli, words)
    for word in words[1:]:
        if (path := word.rpartition("=")[2]).endswith(".yaml"):
            is_there(path)


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if unknown := [word for word in words if word not in targets]:
        raise RefusedError(f"the Makefile has no {unknown}")


def check_pip(words: list[str]) -> None:
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word in ("-c", "--constraint", "-r", "--requirement"):
            is_there(after)
        if found := re.fullmatch(r"(?:clear_ray|\.)\[(.+)\]", word):
            extras = set(found[1].split(","))
            if not extras <= set(PROJECT["optional-dependencies"]):
                raise RefusedError(f"there are no extras {extras}")


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "clear-ray": check_ours,
    "cd": lambda words: None,
    "export": lambda words: None,
    "git": lambda words: None,
    "make": check_make,
    "pip": check_pip,
    "python": lambda words: check_python(["python", *words]),
    "ray": check_ray,
    "serve": check_serve,
}


def commands_in(text: str) -> list[list[str]]:
    """Return the words of each command, without comments; a line that ends in a backslash goes on."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines for part in line.split(" && ") if (words := shlex.split(part, comments=True))]


def check_block(text: str) -> None:
    """Check every command of a block.

    Raises:
        RefusedError: A program that is not known here: its block is to be fenced as `console`; or a file that is not there.
        Exception: As the program's own parser says it.
    """
    for program, *words in commands_in(text):
        while "=" in program:  # a variable set for this command
            program, *words = words
        if program not in CHECKS:
            raise RefusedError(f"{program} is not ours: fence it as console")
        CHECKS[program](words)


@pytest.mark.parametrize("snippet", snippets(), **EACH)
def test_every_fence_says_its_language(snippet: Snippet) -> None:
    assert snippet.language in LANGUAGES


@pytest.mark.parametrize("snippet", written_in("sh"), **EACH)
def test_commands_are_taken_by_their_programs(snippet: Snippet) -> None:
    check_block(snippet.text)


@pytest.mark.parametrize("snippet", written_in("sh", "console"), **EACH)
def test_a_shell_can_read_them(snippet: Snippet) -> None:
    read = subprocess.run(["bash", "-n"], input=snippet.text, capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")


def read_data(snippet: Snippet) -> list[Any]:
    """Return the documents of a block: YAML, or JSON as a whole or a row a line."""
    if snippet.language == "yaml":
        return [yaml.safe_load(snippet.text)]
    try:
        return [json.loads(snippet.text)]
    except json.JSONDecodeError:
        return [json.loads(line) for line in snippet.text.splitlines()]


def test_data_can_be_read() -> None:
    rows = [row for snippet in written_in("json", "jsonl", "yaml") for row in read_data(snippet)]
    assert all(rows)
    answers = [row for row in rows if isinstance(row, dict) and "status" in row]
    assert [row for row in answers if not set(row) <= set(COMPLETION_SCHEMA.names)] == []


def test_no_command_is_hidden_in_an_indented_block() -> None:
    commands = "|".join(map(re.escape, CHECKS))
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        outside = FENCE.sub("", file.read_text())
        assert not re.findall(rf"^(?: {{4,}}|\t)(?:\$ )?(?:{commands}) .*", outside, re.MULTILINE), file.name


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("clear-ray rum --config run.yaml", "rum"),
        ("clear-ray run --cofnig run.yaml", "cofnig"),
        ("clear-ray run", "config"),
        ("clear-ray run --config jobs/configs/demo.yaml --set no.such=1", "no.such"),
        ("clear-ray run --config jobs/configs/absent.yaml", "absent"),
        ("clear-ray serve --config jobs/serve/absent.yaml", "absent"),
        ("make dmeo", "dmeo"),
        ("ray jbo submit -- python jobs/run_batch.py", "jbo"),
        ("ray job submit --working-dir . -- python jobs/absent.py", "absent"),
        ("ray job submit --working-dir . -- python jobs/run_batch.py --cofnig x", "cofnig"),
        ("ray up absent.yaml", "absent"),
        ("serve deploy jobs/serve/absent.yaml", "absent"),
        ("pip install 'clear_ray[vlm]'", "vlm"),
        ("pip install -c absent.txt .", "absent"),
        ("python -c 'import'", "invalid|Expected"),
        ("python benchmarks/absent.py", "absent"),
        ("kubectl get pods", "console"),
    ],
)
def test_a_mistyped_command_is_seen(block: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        check_block(block)


def test_blocks_are_found_however_they_are_fenced() -> None:
    document = (
        "# a\n```python\nx = 1\n```\ntext\n\n- item\n\n  ```sh\n  ls\n  ```\n\n~~~json\n{}\n~~~\n````text\n```\n````\n"
    )
    found = [(snippet.place, snippet.language, snippet.text) for snippet in snippets_in(document, "a.md")]
    assert found == [
        ("a.md:2", "python", "x = 1\n"),
        ("a.md:9", "sh", "  ls\n"),
        ("a.md:13", "json", "{}\n"),
        ("a.md:16", "text", "```\n"),
    ]
    assert len(written_in("python")) > 1
    assert len(written_in("sh")) > 5
