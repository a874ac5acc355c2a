"""`architectures.json` and the table of docs/models.md, as the zoo shows them.

    python -m tests.unit.engine.zoo_table [ARCHITECTURE ...]

tries these architectures, or all that the installed transformers has (some minutes), and writes both.
"""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from clear_ray.engine.architectures import TABLE, Architecture, known_architectures, unfit_reason
from clear_ray.engine.trial import try_ways
from tests.unit.engine.zoo import NotTriedError, causal_architectures, tiny_config, tiny_model
from tests.unit.engine.zoo_trial import assert_as_transformers, prompts, quiet

DOCUMENT = Path(__file__).parents[3] / "docs" / "models.md"
_BEGIN, _END = "<!-- written by tests/unit/engine/zoo_table.py -->\n", "<!-- end -->\n"
_HEADINGS = {
    "slots": "Answers share passes",
    "own_caches": "Answers run one after the other",
    "refused": "Refused, before weights are loaded",
    "untried": "Not tried by the zoo",
}


def tried(name: str, **changes: Any) -> Architecture:
    """Return how a tiny model of an architecture runs, and assert that it then gives what transformers gives."""
    try:
        config = tiny_config(name, **changes)
    except NotTriedError as error:
        return Architecture("untried", str(error), error.package)
    if reason := unfit_reason(config):
        return Architecture("refused", reason)
    model = tiny_model(config)
    if (why := broken(model)) is not None:
        return Architecture("untried", f"no tiny model of it could be made ({why})")
    with quiet():
        way, reason = try_ways(model)
    if way is None:
        return Architecture("refused", cannot_generate(model) or reason)
    assert_as_transformers(model, way)
    return Architecture(way, reason)


def broken(model: Any) -> str | None:
    """Return what a plain pass of a tiny model raises: then it is no model of its architecture."""
    try:
        with torch.inference_mode(), quiet():
            model(input_ids=torch.tensor([prompts()[3]]), use_cache=False)
    except Exception as error:
        return type(error).__name__
    return None


def cannot_generate(model: Any) -> str:
    """Return why transformers' own `generate` cannot run a model either; empty if it can."""
    try:
        with torch.inference_mode(), quiet():
            model.generate(torch.tensor([prompts()[3]]), max_new_tokens=2, do_sample=False)
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        return f"transformers' own `generate` does not run it ({type(error).__name__}: {line})"
    return ""


def found(name: str, **changes: Any) -> Architecture:
    """As `tried`; a model that runs and gives other tokens is one to be refused."""
    try:
        return tried(name, **changes)
    except AssertionError:
        return Architecture("refused", "past its window it gives other tokens than transformers' own generate")


def table_text(architectures: dict[str, Architecture]) -> str:
    """Return the part of docs/models.md that says how each architecture runs."""
    lines = []
    for way, heading in _HEADINGS.items():
        rows = {name: row for name, row in architectures.items() if row.way == way}
        lines += [f"### {heading} ({len(rows)})", ""]
        if way == "slots":
            names = " ".join(f"`{name}`" for name in rows)
            lines += [*textwrap.wrap(names, 120, break_on_hyphens=False), ""]
            continue
        by_reason: dict[str, list[str]] = {}
        for name, row in rows.items():
            by_reason.setdefault(row.reason, []).append(name)
        lines += ["| why | architectures |", "|---|---|"]
        lines += [f"| {why} | {' '.join(f'`{name}`' for name in names)} |" for why, names in by_reason.items()]
        lines += [""]
    return "\n".join(lines) + "\n"


def document(text: str, architectures: dict[str, Architecture]) -> str:
    """Return docs/models.md with the table that goes with `architectures`."""
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    return before + _BEGIN + "\n" + table_text(architectures) + _END + after


def main(names: list[str]) -> None:
    """Try some architectures, or all, and write what came of it."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    architectures = known_architectures() | {name: found(name) for name in names or causal_architectures()}
    architectures = {name: architectures[name] for name in causal_architectures() if name in architectures}
    rows = {name: {key: value for key, value in asdict(row).items() if value} for name, row in architectures.items()}
    table = {"transformers": transformers.__version__, "architectures": rows}
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8"), architectures), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
