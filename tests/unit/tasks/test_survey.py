"""Gold answers that a scorer cannot read are told before a run, and a run whose answers are all wrong says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from clear_ray.cli import app, guarded
from clear_ray.tasks.code_scorer import sandbox_warning
from clear_ray.tasks.survey import Survey, survey
from clear_ray.tasks.verdict import CUT_OFF, NO_ANSWER, WRONG
from tests.conftest import ROLLOUTS

RECORDED = {
    "kind": "replay",
    "rollouts": str(ROLLOUTS / "rollouts.parquet"),
    "features": str(ROLLOUTS / "features.parquet"),
}
GSM8K = ["We add 2 and 3.\n2+3=<<2+3=5>>5\n#### 5", "4+4=<<4+4=8>>8\n#### 8"]


LACKS = tuple(filter(None, [sandbox_warning()]))
"""What is said of a machine whose kernel shuts off neither network nor files."""


def survey_of(golds: list[str | None], scorer: str | None, **columns: Any) -> Survey:
    return survey([{"index": k, "query_id": f"q{k}", "gold": gold} | columns for k, gold in enumerate(golds)], scorer)


@pytest.mark.parametrize(
    ("golds", "kind", "alike"),
    [
        (["12", "1,234", "-3", "1/2"], "number", 4),
        (GSM8K, "number", 2),
        (["A", "(B)", "C."], "choice", 3),
        ([r"\frac{1}{2}", "12", "x^2+1"], "math", 3),
        ([r"so \boxed{\frac12}", r"so \boxed{7}"], "number", 2),
        (["Paris", "12"], "exact", 2),
        (["yes", "no"], "exact", 2),
        (['{"a": 1}', '{"b": [2]}'], "json", 2),
        (['["Paris", "paris"]', '["12"]'], "exact", 2),
        (['{"ground_truth": "72", "style": "rule"}'], "number", 1),
        (["assert f(1) == 2"], "exact", 1),  # what a model wrote is never run unless a user says so
        (["word " * 40, "Paris"], "exact", 1),
    ],
)
def test_auto_chooses_by_the_look_of_all_golds(golds: list[str | None], kind: str, alike: int) -> None:
    found = survey_of([*golds, None], "auto")
    assert (found.chosen, found.alike, found.golds) == (kind, alike, len(golds))
    assert found.choice() == f"{kind}, from {alike} of {len(golds)} golds"


@pytest.mark.parametrize(
    "gold",
    [
        "assert f(1) == 2",
        '["assert f(1) == 2"]',
        "def check(candidate):\n    assert candidate(1)",
        '{"inputs": [""], "outputs": ["1"]}',
    ],
)
def test_tests_of_programs_are_told_of_where_nothing_runs_them(gold: str) -> None:
    (said,) = survey_of([gold, None], "auto").warnings()
    assert (
        said == "gold of 1 of 1 rows looks like tests of programs, which auto does not run: scoring.scorer: code does"
    )
    (said,) = survey_of([gold], None).warnings()
    assert "scoring.scorer: code fits 1 of them" in said
    assert survey_of([gold], "code", prompt="def f(n):", is_conversation=False).warnings() == LACKS
    assert survey_of(["I assert that Paris is it"], "auto").warnings() == ()


@pytest.mark.parametrize(
    ("scorer", "good", "bad"),
    [
        ("number", "12", "Paris"),
        ("number", GSM8K[0], "Paris"),
        ("choice", "B", "12"),
        ("choice", "(b)", "Paris"),
        ("math", r"\frac12", "word " * 40),
        ("math_verify", r"\frac12", "word " * 40),
        ("exact", "Paris", "word " * 40),
        ("regex", "a+", "("),
        ("json", "[1]", "[1"),
        ("code", "assert f(1) == 2", "f(1) is 2, of course"),
    ],
)
def test_golds_that_a_scorer_cannot_read_are_counted_and_the_first_is_named(scorer: str, good: str, bad: str) -> None:
    lacks = LACKS if scorer == "code" else ()
    assert survey_of([good] * 3, scorer).warnings() == lacks
    warning, *others = survey_of([good, None, bad, bad], scorer).warnings()
    assert tuple(others) == lacks
    assert warning.startswith("gold of 2 of 3 rows does not look like")
    assert "first in row 3 (query_id q2)" in warning


def test_the_text_of_an_option_is_a_gold_answer_of_its_prompt() -> None:
    prompt = {"prompt": "Q?\nA) Paris\nB) Rome", "is_conversation": False}
    assert survey_of(["Paris"], "choice", **prompt).warnings() == ()
    assert len(survey_of(["London"], "choice", **prompt).warnings()) == 1


def test_tests_are_of_the_function_that_the_last_message_begins() -> None:
    asked = json.dumps([{"role": "user", "content": "Go on:\ndef add(a, b):\n"}])
    check = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
    assert survey_of([check], "code", prompt=asked, is_conversation=True).warnings() == LACKS
    assert survey_of([check], "code", prompt="Add.", is_conversation=False).unfit == 1


def test_a_batch_that_is_not_scored_says_so_once() -> None:
    (warning,) = survey_of(["12", "13"], None).warnings()
    assert "no scorer is named" in warning
    assert "scoring.scorer: number fits 2" in warning
    assert survey_of([None], None).warnings() == ()
    assert survey_of([None], "exact").warnings() == ("no row has a gold answer: nothing will be scored",)
    assert survey_of([None], "reasoning_gym").warnings() == survey_of([None], "own:scorer").warnings() == ()
    assert survey_of(["12"], "own:scorer").warnings() == ()


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ({CUT_OFF: 40, WRONG: 10}, "40 of them were cut off"),
        ({NO_ANSWER: 30, WRONG: 20}, "30 of them held no answer"),
        ({WRONG: 50}, "read `13` where gold looks like `12`"),
        ({}, "read `13` where gold looks like `12`"),
    ],
)
def test_the_likeliest_cause_of_nothing_but_wrong_answers_is_named(verdicts: dict[str, int], said: str) -> None:
    line = survey_of(["12"] * 60, "exact").all_wrong(50, verdicts, answer="13")
    assert line.startswith("none of the first 50 scored answers was right; ")
    assert said in line
    assert "scorer exact" in line
    assert "\n" not in line


def test_a_gold_of_another_look_is_the_likeliest_cause() -> None:
    line = survey_of(["Paris"] * 60, "number").all_wrong(50, {CUT_OFF: 50})
    assert line == "none of the first 50 scored answers was right; gold looks like `Paris`, scorer number"


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns what a run's configuration and input are written with; the command is then run beside them."""
    monkeypatch.chdir(tmp_path)

    def write(rows: list[dict[str, Any]], scorer: str | None) -> list[str]:
        Path("input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        columns = {"query_id": "id", "gold": "answer"}
        settings = {"run_dir": "run", "budget": 200, "input": {"path": "input.jsonl", "columns": columns}}
        settings |= {
            "engine": RECORDED,
            "scoring": {"scorer": scorer},
        }
        Path("run.yaml").write_text(yaml.safe_dump(settings))
        return ["validate", "--config", "run.yaml"]

    return write


@pytest.mark.parametrize(
    ("scorer", "said"),
    [
        ("exact", ""),
        ("number", ""),
        ("auto", "scorer: number, from 8 of 8 golds"),
        (
            "choice",
            "warning: gold of 8 of 8 rows does not look like a letter or an option of its prompt",
        ),
        (None, "warning: 8 rows have a gold answer and no scorer is named"),
    ],
)
def test_validate_warns_of_golds_as_gsm8k_publishes_them(
    configured: Any, scorer: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": k, "prompt": f"Add {k} and 2.", "answer": f"We add.\n{k}+2={k + 2}\n#### {k + 2}"} for k in range(8)]
    assert guarded(lambda: app(args=configured(rows, scorer))) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert lines[0].startswith("Valid: 8 queries")
    assert len(lines) == 1 + bool(said)
    assert said in lines[-1]


def test_validate_names_the_first_row_for_machines_too(configured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "a", "prompt": "x", "answer": "12"}, {"id": "b", "prompt": "y", "answer": "Paris\x1b[31m"}]
    assert guarded(lambda: app(args=[*configured(rows, "number"), "--json"])) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["valid"] is True
    assert facts["scorer"] == "number"
    assert "first in row 2 (query_id b)" in facts["warnings"][0]


def test_validate_prints_nothing_that_steers_a_terminal(configured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": "b", "prompt": "y", "answer": "Paris\x1b[31m"}]
    assert guarded(lambda: app(args=configured(rows, "number"))) == 0
    assert "\x1b" not in capsys.readouterr().out
