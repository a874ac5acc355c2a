"""Answers that are programs, and the tests that published data sets come with.

Python source with assertions (MBPP), a list of them (`["assert f(1) == 2", …]`), a `check(candidate)` (HumanEval), or input
and output of whole programs or of one function (APPS, TACO: `{"inputs": […], "outputs": […], "fn_name": "f"}`).
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass
from typing import Any

from clear_ray.tasks.fences import fenced_blocks

_PYTHON = ("python", "py", "python3", "")
_DEFINITION = re.compile(
    r"^(?:async )?(?:def|class) +\w|^\w+ *= *lambda\b|\binput\(|\bsys\.stdin\b|\bopen\(0\)", re.MULTILINE
)
_BEGINS = re.compile(r"(?:async )?(?:def|class) +\w|import \w|from [\w.]+ import |@\w")
_TAG_LINE = re.compile(r"^[ \t]*(?:\[/?[A-Z]{3,10}\]|</?[a-z]{3,10}>)[ \t]*$", re.MULTILINE)
_MOST_LINES_OF_PROSE = 100
_LAST_DEF = re.compile(r"^def +(\w+)", re.MULTILINE)
_ENTRY = re.compile(r"^[A-Za-z_]\w{0,200}\Z")


@dataclass(frozen=True, slots=True)
class TestSuite:
    """What a program has to pass.

    Attributes:
        source: Python that is run after the program and raises if it is wrong; empty if there are `cases`.
        cases: Standard input and expected output of the whole program, each run by itself.
        entry_point: Function that the tests call; empty if they do not say.
    """

    source: str
    cases: tuple[tuple[str, str], ...] = ()
    entry_point: str = ""


def read_program(visible: str) -> str:
    """Return the program of a text; empty if there is none.

    The last fenced block of Python that defines something or reads input, else the last one that is Python, else the whole
    text if that is Python.

    Args:
        visible: What the model wrote, without its thinking.
    """
    blocks = [block for block in fenced_blocks(visible) if block.language in _PYTHON]
    programs = [block.body for block in blocks if _parses(block.body)]
    if programs:
        return ([program for program in programs if _DEFINITION.search(program)] or programs)[-1]
    if blocks:
        return blocks[-1].body  # its syntax error is the verdict
    if fenced_blocks(visible):
        return ""
    bare = _TAG_LINE.sub("", visible)
    return bare if _parses(bare) else _between_prose(bare)


def tests_of(gold: str, metadata: str | None, prompt: str) -> TestSuite | None:
    """Return the tests in a gold text; None if it holds none.

    Args:
        gold: The tests, in one of the shapes above.
        metadata: JSON that may name the `entry_point` and `test_setup_code`.
        prompt: The question, whose last `def` is the entry point if nothing else says so.
    """
    extra = _object(metadata)
    value = _json(gold)
    if isinstance(value, dict) and "inputs" in value and "outputs" in value:
        return _cases(value)
    source = "\n".join(value) if isinstance(value, list) and all(isinstance(line, str) for line in value) else gold
    setup = extra.get("test_setup_code")
    source = f"{setup}\n{source}" if isinstance(setup, str) and setup else source
    if not source.strip() or not _parses(source):
        return None
    entry = str(extra.get("entry_point") or "")
    if re.search(r"^def check\(", source, re.MULTILINE) and not re.search(r"^check\(", source, re.MULTILINE):
        defined = _LAST_DEF.findall(prompt)
        entry = entry or (defined[-1] if defined else "")
        if not _ENTRY.match(entry):
            return None
        source = f"{source}\ncheck({entry})\n"
    return TestSuite(source, entry_point=entry)


def completed(program: str, text: str, prompt: str, entry_point: str) -> str:
    """Return a program with the prompt before it where the answer only goes on with the function that the prompt begins.

    Args:
        program: What was read; empty if the answer is no program by itself.
        text: The whole answer without its thinking.
        prompt: The question.
        entry_point: Function that the tests call.
    """
    if not entry_point or re.search(
        rf"\bdef +{re.escape(entry_point)}\b|^{re.escape(entry_point)} *=", program, re.MULTILINE
    ):
        return program
    begun = prompt.rpartition("```python\n")[2] if "```python\n" in prompt else prompt
    for body in (program, text):
        whole = f"{begun.rstrip()}\n{body}"
        if body.strip() and re.search(rf"^def +{re.escape(entry_point)}\b", whole, re.MULTILINE) and _parses(whole):
            return whole
    return program


def _between_prose(text: str) -> str:
    """Return the longest stretch of lines from the first that begins a program on which is one; empty if there is none."""
    lines = text.split("\n")
    first = next((k for k, line in enumerate(lines) if _BEGINS.match(line.lstrip())), None)
    if first is None:
        return ""
    indent = len(lines[first]) - len(lines[first].lstrip())
    if indent:  # a block of Markdown that is set by its indent
        end = next((k for k in range(first, len(lines)) if lines[k].strip() and not lines[k][:indent].isspace()), None)
        lines = [line[indent:] for line in lines[:end]]
    for end in range(len(lines), max(first, len(lines) - _MOST_LINES_OF_PROSE), -1):
        if _parses(program := "\n".join(lines[first:end]) + "\n"):
            return program
    return ""


def _cases(value: dict[str, Any]) -> TestSuite | None:
    inputs, outputs, name = value["inputs"], value["outputs"], value.get("fn_name")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        return None
    if not name:
        return TestSuite(
            "", tuple((_lines(given), _lines(wanted)) for given, wanted in zip(inputs, outputs, strict=True))
        )
    if not _ENTRY.match(str(name)) or not all(isinstance(given, list) for given in inputs):
        return None
    lines = [
        "import json as _json",
        f"_called = getattr(Solution(), {str(name)!r}) if 'Solution' in globals() else {name}",
        f"_inputs, _outputs = _json.loads({json.dumps(json.dumps(inputs))}), _json.loads({json.dumps(json.dumps(outputs))})",
        "for _given, _wanted in zip(_inputs, _outputs):",
        "    _got = _json.loads(_json.dumps(_called(*_given)))",
        "    assert _got == _wanted or [_got] == _wanted, (_got, _wanted)",
    ]
    return TestSuite("\n".join(lines) + "\n", entry_point=str(name))


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _parses(source: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in a model's strings
            ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _object(text: str | None) -> dict[str, Any]:
    value = _json(text) if text else None
    return value if isinstance(value, dict) else {}
