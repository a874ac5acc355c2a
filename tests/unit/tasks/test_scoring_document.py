"""docs/scoring.md says what the scorers do: its examples, its scorers and its figures are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clear_ray.config.scoring import ScoringConfig
from clear_ray.tasks import verdict
from clear_ray.tasks.scorers import SCORERS, NamedScorer, load_scorer
from tests.unit.tasks.test_corpus import CORPUS, KNOWN_ERRORS, LATER, triples

DOCUMENT = (Path(__file__).parents[3] / "docs/scoring.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^\| (\w+) \| `(.+?)` \| `(.+?)` \| (1|0|none) \|$", re.MULTILINE)
EXAMPLES = EXAMPLE.findall(DOCUMENT)


@pytest.mark.parametrize(("name", "text", "gold", "score"), EXAMPLES)
def test_examples(name: str, text: str, gold: str, score: str) -> None:
    scorer = load_scorer(name)
    assert isinstance(scorer, NamedScorer)
    found = scorer.judge(text.replace("\\n", "\n"), gold.replace("\\n", "\n"), None)
    assert found.score == (None if score == "none" else float(score)), found


def test_every_kind_has_an_example_of_a_right_and_a_wrong_answer() -> None:
    assert len(EXAMPLES) >= 25
    for name in ("number", "choice", "math", "code"):
        assert {score for kind, _, _, score in EXAMPLES if kind == name} >= {"0", "1"}


def test_every_scorer_and_every_reason_is_described() -> None:
    table = DOCUMENT[DOCUMENT.index("## Scorers") : DOCUMENT.index("## How an answer is read")]
    for name in SCORERS:
        assert f"`{name}`" in table
    reasons = [value for name, value in vars(verdict).items() if name.isupper() and isinstance(value, str)]
    assert len(reasons) == 8
    for reason in reasons:
        assert f"`{reason}`" in DOCUMENT


def test_the_python_blocks_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})  # noqa: S102


def test_limits_and_figures_are_those_of_the_code() -> None:
    limits = ScoringConfig()
    assert f"`scoring.code_seconds` ({limits.code_seconds:g})" in DOCUMENT
    assert f"`scoring.code_memory_mib` ({limits.code_memory_mib:,})" in DOCUMENT
    counts = {path.stem: sum(1 for _ in triples(path.stem)) for path in CORPUS.glob("*.jsonl")}
    assert f"has {sum(counts.values()):,} answers" in DOCUMENT
    by_kind = sum(number for name, number in counts.items() if name not in LATER)
    assert f"| one for each kind | before the scorers | {by_kind} |" in DOCUMENT
    for name in LATER:
        row = next(line for line in DOCUMENT.split("\n") if line.startswith(f"| `{name}.jsonl`"))
        assert f"| {counts[name]} |" in row
        assert row.endswith(f"| {KNOWN_ERRORS.get(name, 0)} |")
