"""What is said of a run whose price was cleared while its prompts were read: over how many, and one price of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clear_ray.report.summary import RunReport
from clear_ray.report.text import summary_text
from tests.unit.report.reading import read_page
from tests.unit.report.samples import round_report, run_report
from tests.unit.report.test_learning_report import page


def streamed_report(**changes: Any) -> RunReport:
    """Return a run whose second clearing, over 80 of 199 queries, granted most of those after the first."""
    known = (50, 80, 140, None)
    rounds = tuple(round_report(number, known_queries=queries) for number, queries in enumerate(known, 1))
    return run_report(**{"rounds": rounds} | changes)


def shown(report: RunReport, folder: Path) -> str:
    return " ".join(read_page(page(report, folder)).text.split())


def test_a_certificate_says_over_how_many_queries_it_is(tmp_path: Path) -> None:
    report = streamed_report()
    assert report.main_round is not None
    assert report.main_round.number == 2
    assert "no sharing of round 2, over 80 of 199 queries, can be expected to give more" in summary_text(report)
    assert "the tokens of round 2, which was cleared over 80 of 199 queries, could be expected" in shown(
        report, tmp_path
    )
    whole = run_report()
    assert "no sharing of round 1 can be expected to give more" in summary_text(whole)
    assert "the tokens of round 1 could be expected" in shown(whole, tmp_path)


def test_a_certificate_of_a_window_is_of_the_queries_in_it(tmp_path: Path) -> None:
    rounds = [
        row.model_copy(update={"over_queries": 60 if row.number == 2 else None}) for row in streamed_report().rounds
    ]
    report = streamed_report(rounds=tuple(rounds))
    assert "no sharing of round 2, over 60 of 199 queries, can be expected to give more" in summary_text(report)
    text = shown(report, tmp_path)
    assert "the tokens of round 2, which was cleared over 60 of 199 queries, could be expected" in text
    assert "2 80 1.55" in text, "and as many were known"


def test_the_rounds_say_how_many_queries_were_known(tmp_path: Path) -> None:
    lines = summary_text(streamed_report()).split("\n")
    (at,) = (place for place, line in enumerate(lines) if line.startswith("  round"))
    assert lines[at].split()[:4] == ["round", "known", "price/1,000", "new"]
    known = ["50", "80", "140", "199"]
    assert [line.split()[:2] for line in lines[at + 1 : at + 5]] == [[str(n), k] for n, k in enumerate(known, 1)]
    text = shown(streamed_report(), tmp_path)
    assert "Round Known Price per 1,000" in text
    assert "How many queries had been read when the price of a round was cleared." in text
    assert "1 50 3.16,368" in text
    assert "4 199 0.775398" in text
    assert "known" not in summary_text(run_report()) + shown(run_report(), tmp_path)


def test_a_page_takes_no_price_for_that_of_all_grants(tmp_path: Path) -> None:
    text = shown(streamed_report(), tmp_path)
    assert "more than the price of its round" in text
    assert "over all queries together, would have been 3.1 expected correct answers" in text
    assert "Its price was" not in text
    assert "would have been" not in shown(run_report(), tmp_path)


def test_a_page_does_not_call_worthless_what_the_end_of_a_run_left(tmp_path: Path) -> None:
    said = "it was cancelled when 140 of 199 queries had been read; what is expected is of these"
    report = streamed_report(stopped_early=said)
    assert said in summary_text(report)
    text = shown(report, tmp_path)
    assert said in text
    assert "worth its price, or the run ended before their turn came. Those" in text
    assert "before their turn" not in shown(run_report(), tmp_path)
