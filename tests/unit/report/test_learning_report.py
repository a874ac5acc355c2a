"""What every view of a run says of learning: from what, how far it was trusted, or why there was none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from clear_ray.report.live import LineDisplay
from clear_ray.report.page import write_page
from clear_ray.report.plan import GainReport, PlanReport
from clear_ray.report.summary import LearningReport, RunReport
from clear_ray.report.text import plan_text, summary_text
from clear_ray.report.wording import LABELS, taught
from clear_ray.storage import Folder
from tests.unit.report.samples import completions, plan_report, round_report, run_report, snapshot

ENDED = {"label": "ended", "features": ("text", "ngrams", "task")}


def learning(**changes: Any) -> LearningReport:
    return LearningReport(
        **{"label": "verdict", "features": ("text", "ngrams"), "answers": 87, "learned_share": 0.93} | changes
    )


def learned_report(**changes: Any) -> RunReport:
    """Return a run whose third round was the one by what it had learned; the second granted a part of what it priced."""
    rounds = (
        round_report(1, shadow_price=0.0, granted_tokens=300),
        round_report(2, granted_tokens=6_000, dual_bound=44.0, expected_utility=9.0, gap=0.0),
        round_report(3, granted_tokens=5_000, dual_bound=31.25, expected_utility=31.0, gap=0.25),
        round_report(4, granted_tokens=9_999, is_service=True),
    )
    return run_report(**{"head": "learn", "rounds": rounds, "learning": learning()} | changes)


def page(report: RunReport, folder: Path) -> str:
    write_page(report, completions=completions(), folder=Folder(LocalFileSystem(), str(folder), is_local=True))
    return (folder / "report.html").read_text()


def test_the_main_round_is_the_one_that_granted_most_by_a_price() -> None:
    main, plain = learned_report().main_round, run_report().main_round
    assert main is not None
    assert plain is not None
    assert (main.number, plain.number) == (3, 1)
    assert learned_report(rounds=()).main_round is None
    first = learned_report(learning=learning(left_out="so it is")).main_round
    assert first is not None
    assert first.number == 1, "a run that did not learn has no pilot"


def test_the_summary_says_what_taught_the_run_and_how_far_it_was_trusted(tmp_path: Path) -> None:
    text = summary_text(learned_report())
    assert "from 87 answers: the scorer's verdicts, by text and ngrams of the prompts; trusted 93.0 %" in text
    assert "by what it knows now" in text
    assert "no sharing of round 3 can be expected to give more than 31.2" in text
    assert len(text.splitlines()) <= 25
    assert "curve of them all" not in text
    assert "worth of each" not in text
    told = learned_report(learning=learning(nats_of_sets={"text": 0.314, "hidden": -0.002}))
    assert "nats an answer (0: it tells nothing): text 0.31, hidden -0.00" in summary_text(told)
    alike = learned_report(learning=learning(learned_share=0.1, pooled_share=0.72))
    assert "trusted 10.0 %, the curve of them all 72.0 %" in summary_text(alike)
    assert "given up at random, by 72.0 %" in page(alike, tmp_path)
    html = page(learned_report(), tmp_path)
    assert "87 of its own answers" in html.replace("\n", " ")
    assert "tokens of round 3" in html


def test_a_run_that_was_to_learn_and_did_not_says_why(tmp_path: Path) -> None:
    report = run_report(head="prior", learning=learning(left_out="there are <too> few rounds", answers=0))
    assert "nothing: there are <too> few rounds; equal ceilings" in summary_text(report)
    html = page(report, tmp_path)
    assert "There are &lt;too&gt; few rounds" in html
    assert "Learned nothing." in html


@pytest.mark.parametrize(
    ("said", "left_out"), [("which answers ended by themselves, by text, ngrams and task", ""), ("nothing: x", "x")]
)
def test_a_plan_says_what_a_run_would_learn_from(said: str, left_out: str) -> None:
    plan: PlanReport = plan_report(head="learn", learning=LearningReport(**ENDED, left_out=left_out))
    assert said in plan_text(plan)
    assert "calibrate" not in plan_text(plan)


@pytest.mark.parametrize("label", ["verdict", "ended", ""])
def test_the_display_says_what_the_run_learns_from(label: str) -> None:
    stream = io.StringIO()
    LineDisplay(stream).update(snapshot(label=label))
    assert ("learning from" in stream.getvalue()) is bool(label)
    assert LABELS.get(label, "") in stream.getvalue()


def test_features_are_listed_as_people_list_things() -> None:
    assert taught("verdict", ("text",)) == "the scorer's verdicts, by text of the prompts"
    assert taught("ended", ("a", "b", "c")).endswith("by a, b and c of the prompts")


def test_what_a_run_began_with_and_what_of_the_store_was_passed_over_is_said() -> None:
    known = learning(earlier_answers=1_234, store_notes=("torn.parquet: it is no lesson",))
    text = summary_text(learned_report(learning=known))
    assert "from 87 answers, after 1,234 of earlier runs: the scorer's verdicts" in text
    assert "store        torn.parquet: it is no lesson" in text
    said = plan_text(plan_report(head="learn", learning=known))
    assert "1,234 answers of earlier runs are known" in said
    assert "store        torn.parquet: it is no lesson" in said


@pytest.mark.parametrize(
    ("source", "answers", "said"),
    [
        ("head", 0, "by the head"),
        ("store", 1, "by 1 answer of earlier runs"),
        ("sample", 12, "by 12 sampled answers"),
        ("nothing", 0, "--sample-share 0.01 asks a few"),
    ],
)
@pytest.mark.parametrize("is_expected", [True, False])
def test_a_plan_says_what_is_to_be_gained_and_by_what_that_is_known(
    source: str, answers: int, said: str, is_expected: bool
) -> None:
    gain = GainReport(
        low=-2.0,
        expected=14.0,
        high=30.0,
        uniform=20.0,
        chance=0.8,
        is_expected=is_expected,
        source=source,
        answers=answers,
    )
    (line,) = [line for line in plan_text(plan_report(gain=gain)).split("\n") if line.startswith("  gain ")]
    assert said in line
    assert "-2.0 to 30.0 right answers over equal ceilings in nine of ten such batches" in line
    assert ("no gain expected here" in line) is not is_expected
    assert ("about 14.0" in line) is is_expected
