"""The scores of a finished run: what counts as scored, why answers got theirs, and that a run without a right one says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.scores import read_scores
from clear_ray.errors import BudgetError
from clear_ray.records import COMPLETION_SCHEMA, QUERY_SCHEMA
from clear_ray.report.live import LineDisplay
from clear_ray.report.page import write_page
from clear_ray.report.text import summary_text
from clear_ray.stages.generate import Dispatch, Generate
from clear_ray.storage import Folder, open_folder
from clear_ray.tasks.verdict import BAD_GOLD, CUT_OFF, NO_ANSWER, RIGHT, WRONG, Verdict
from tests.unit.report.samples import run_report, snapshot

ZEROS: dict[str, Any] = {
    "max_tokens": 0, "spent_tokens": 0, "rounds": 1, "prompt_tokens": 1, "reservation_price": 0.0, "expected_utility": 0.0,
    "surplus": 0.0, "reason": "", "weight": 1.0, "cost": 1.0,
}  # fmt: skip


def write_run(tmp_path: Path, verdicts: list[Verdict | None], golds: list[str | None], *, files: int = 1) -> Folder:
    """Write the queries and completions of a run whose answers got these verdicts; None stands for an abandoned query."""
    folder = open_folder(str(tmp_path / "run"))
    queries = [
        {
            "index": k,
            "query_id": f"q{k}",
            "prompt": "x",
            "is_conversation": False,
            "weight": 1.0,
            "cost": 1.0,
            "max_tokens": 9,
            "gold": g,
        }
        for k, g in enumerate(golds)
    ]
    completions = [
        ZEROS
        | {"index": k, "query_id": f"q{k}", "status": "completed" if verdict else "abandoned", "gold": gold}
        | (
            {"correct": verdict.score, "answer": verdict.answer, "verdict": verdict.reason}
            if verdict
            else {"correct": None if gold is None else 0.0}
        )
        for k, (verdict, gold) in enumerate(zip(verdicts, golds, strict=True))
    ]
    for name in ("queries", "completions"):
        folder.child(name).make()
    pq.write_table(pa.Table.from_pylist(queries, schema=QUERY_SCHEMA), f"{folder.path}/queries/part-000000.parquet")
    for part in range(files):
        rows = completions[::-1][part::files]  # Ray Data keeps no order
        pq.write_table(
            pa.Table.from_pylist(rows, schema=COMPLETION_SCHEMA), f"{folder.path}/completions/{part}.parquet"
        )
    return folder


def test_only_answers_with_a_gold_that_was_read_are_scored(tmp_path: Path) -> None:
    verdicts = [
        Verdict(1.0, RIGHT, "12"),
        Verdict(None, BAD_GOLD),
        None,
        Verdict(0.0, NO_ANSWER),
        Verdict(None, ""),
        None,
    ]
    scores = read_scores(write_run(tmp_path, verdicts, ["12", "Paris", "12", "12", None, None]), 6)
    assert scores.has_gold_N.tolist() == [True, False, True, True, False, False]
    assert scores.verdicts[RIGHT] == scores.verdicts[NO_ANSWER] == scores.verdicts[BAD_GOLD] == 1
    assert [row["index"] for row in scores.first] == [0, 3]


def test_a_query_with_two_completions_is_a_defect(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [None, None], ["12", "12"], files=2)
    pq.write_table(pq.read_table(f"{folder.path}/completions/0.parquet"), f"{folder.path}/completions/again.parquet")
    with pytest.raises(BudgetError, match="2 completions"):
        read_scores(folder, 2)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (
            [Verdict(0.0, WRONG, "13")] * 60,
            "none of the first 50 scored answers was right; read `99` where gold looks like `99`",
        ),
        ([Verdict(0.0, CUT_OFF)] * 40 + [Verdict(0.0, WRONG, "13")] * 20, "; 40 of them were cut off; "),
        ([Verdict(0.0, WRONG, "13")] * 50 + [Verdict(1.0, RIGHT, "12")] * 10, "none of the first 50"),
        ([Verdict(0.0, NO_ANSWER)] * 8, "none of the first 8 scored answers was right; 8 of them held no answer"),
        ([Verdict(0.0, WRONG, "13")] * 49 + [Verdict(1.0, RIGHT, "12")], ""),
        ([Verdict(0.0, WRONG, "13")] * 4, ""),
    ],
)
def test_a_run_without_a_right_answer_says_so(tmp_path: Path, verdicts: list[Verdict], said: str) -> None:
    folder = write_run(tmp_path, list(verdicts), ["12"] * len(verdicts), files=3)
    facts = read_scores(folder, len(verdicts)).facts(folder, "number")
    assert len(facts["warnings"]) == bool(said)
    assert said in "".join(facts["warnings"])
    report = run_report().model_copy(update=facts)
    assert type(report).model_validate_json(report.model_dump_json()) == report
    assert ("warning" in summary_text(report)) == bool(said)
    write_page(report, completions=[], folder=folder)
    assert ("Scores:" in (folder.read("report.html")).decode()) == bool(said)


def test_what_was_chosen_is_in_the_report_and_nothing_of_what_is_not_scored(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [Verdict(1.0, RIGHT, "12")], ["12"])
    assert read_scores(folder, 1).facts(folder, "auto")["scorer"] == "number, from 1 of 1 golds"
    assert read_scores(folder, 1).facts(folder, None) == {}


def test_the_summary_counts_reasons_that_nothing_else_says() -> None:
    report = run_report(verdicts={"wrong": 80, "right": 30, "no answer found": 7, "time-out": 2, "cut off": 5})
    (line,) = (line for line in summary_text(report).split("\n") if line.startswith("  correct"))
    assert line.endswith("; no answer found 7, time-out 2")


def test_a_warning_is_shown_once_and_steers_no_terminal(tmp_path: Path) -> None:
    with (tmp_path / "shown").open("w+") as stream:
        display = LineDisplay(stream)
        display.update(snapshot(seconds=1.0))
        for seconds in (1.1, 1.2, 9.0):
            display.update(snapshot(seconds=seconds, warning="none was right\x1b[2J"))
        display.close()
        stream.seek(0)
        lines = stream.read().split("\n")
    (warning,) = (line for line in lines if "none was right" in line)
    assert warning.startswith("warning: ")
    assert "\x1b" not in warning


def attempt_of(scorer: Any, text: str, **changes: Any) -> dict[str, Any]:
    """Return what the stage makes of an answer that has ended."""
    from clear_ray.engine.base import Generation
    from clear_ray.stages.roster import Workers

    row = {
        "query_id": "q",
        "prompt": "Q?\nA) Paris\nB) Rome",
        "is_conversation": False,
        "token_ids": [],
        "metadata": None,
        "gold": "B",
    }
    finish = changes.pop("finish_reason", "stop")
    dispatch = Dispatch(Workers([], lambda _: False, lambda _: None, 1.0), None, lambda: scorer, seed=0)
    return Generate(dispatch)._attempt(row | changes, Generation("q", (1,), text, finish), 0.0)


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("Answer: Rome", {}, (1.0, "B", "right", "")),
        ("Answer: A", {}, (0.0, "A", "wrong", "")),
        ("I cannot say.", {}, (0.0, None, "no answer found", "")),
        ("Answer: Rome", {"finish_reason": "length"}, (0.0, "B", "cut off", "")),
        ("Answer: Rome", {"gold": None}, (None, None, "no gold answer", "")),
        ("Answer: Rome", {"gold": "Madrid"}, (None, None, "the gold answer cannot be read", "")),
        (
            "Rome",
            {"is_conversation": True, "prompt": json.dumps([{"role": "user", "content": "A) Paris\nB) Rome"}])},
            (1.0, "B", "right", ""),
        ),
    ],
)
def test_the_reason_of_a_score_reaches_the_row(text: str, changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    from clear_ray.tasks import load_scorer

    row = attempt_of(load_scorer("choice"), text, **changes)
    assert (row["correct"], row["answer"], row["verdict"], row["error"]) == expected


@pytest.mark.parametrize("text", ['{"answer": "\\ud800"}', '{"a": "\\udfff"}', "Answer: " + "x" * 10_000])
def test_an_answer_that_is_read_can_always_be_kept(text: str) -> None:
    from clear_ray.tasks import load_scorer

    for kind in ("exact", "json"):
        answer = attempt_of(load_scorer(kind), text, gold='{"a": 1}')["answer"]
        assert answer is None or len(pa.array([answer])[0].as_py()) <= 2_000


def test_what_a_users_scorer_raises_is_the_rows_error() -> None:
    def raises(text: str, gold: str | None, metadata: str | None) -> float:
        raise KeyError("missing")

    row = attempt_of(raises, "Answer: Rome")
    assert (row["correct"], row["verdict"], row["error"]) == (None, None, "scorer: KeyError: 'missing'")
    assert attempt_of(lambda text, gold, metadata: 0.5, "Rome")["verdict"] == "partly right"
