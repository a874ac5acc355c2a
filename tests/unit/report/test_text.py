from __future__ import annotations

import re

import pytest

from clear_ray.report.page import render_page
from clear_ray.report.plan import ShareBudget
from clear_ray.report.rows import gather
from clear_ray.report.text import plan_text, summary_text
from tests.unit.report.samples import completions, hostile_report, plan_report, round_report, run_report


@pytest.mark.parametrize("rounds", [0, 1, 6, 7, 100])
def test_a_summary_is_never_longer_than_25_lines(rounds: int) -> None:
    report = run_report(
        rounds=tuple(round_report(number) for number in range(1, rounds + 1)),
        policy="uniform",
        stopped_early="the budget was spent before every query was done",
    )
    lines = summary_text(report).split("\n")
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 130


def test_a_summary_says_what_a_reader_looks_for() -> None:
    text = summary_text(run_report())
    for said in (
        "6,368 tokens, spent 6,341 (99.6 %), slack 27",
        "3.1 expected correct answers per further 1,000 tokens",
        "92 of 199, abandoned 107, failed 2",
        "30 of 199 with a gold answer (15.1 %)",
        "a uniform ceiling of 33 tokens: 15.1 (2.1 times)",
        "more than 28.5 correct; this one 28.4 (gap 0.12)",
        "112 tokens whose answers were lost",
        "/data/runs/demo",
    ):
        assert said in text


def test_what_did_not_happen_is_not_mentioned() -> None:
    text = summary_text(
        run_report(wasted_tokens=0, correct=None, scored=0, shadow_price=0.0, uniform_expected_utility=0.0, abandoned=0)
    )
    assert "wasted" not in text
    assert "gold" not in text
    assert "times" not in text
    assert "0: nothing competes for the budget" in text


def test_a_budget_that_ended_before_any_price_is_not_said_to_be_ample() -> None:
    short = run_report(shadow_price=0.0, abandoned=107)
    assert "0: too little was left when the others' turn came" in summary_text(short)
    page = render_page(short, gather(completions(), most_rows=5))
    assert "Too little of the budget was left" in page
    assert "Nothing competed for the budget" not in page
    assert "competes for the budget" in summary_text(run_report(shadow_price=0.0, abandoned=0))
    ample = run_report(
        shadow_price=0.0, abandoned=107, budget_tokens=63_680
    )  # its clearings were over before its budget
    assert "0: nothing competes for the budget" in summary_text(ample)
    page = render_page(ample, gather(completions(), most_rows=5))
    assert "too little was left" not in page.lower()
    assert "expected to be worth its price" in page
    cancelled = run_report(shadow_price=0.0, abandoned=107, stopped_early="it was cancelled")
    assert "0: it ended before anything competed for the budget" in summary_text(cancelled)
    assert "ended before anything competed" in render_page(cancelled, gather(completions(), most_rows=5))


def test_a_page_does_not_say_of_a_row_that_is_no_query_that_it_was_granted_tokens() -> None:
    whole = gather((row for row in completions() if row["status"] != "abandoned"), most_rows=5)
    assert "every query was granted tokens" in render_page(run_report(abandoned=0), whole)
    page = render_page(run_report(abandoned=0, unasked=2), whole)
    assert "every query was granted tokens" not in page
    assert "2 of those that failed could not be asked at all" in page


def test_an_estimate_that_was_never_fitted_is_told() -> None:
    for is_told, text in (
        (True, summary_text(run_report(head="prior"))),
        (False, summary_text(run_report(head="prior", policy="uniform"))),
        (False, summary_text(run_report(head="competing_risks"))),
        (True, plan_text(plan_report(head="prior"))),
        (False, plan_text(plan_report())),
    ):
        assert ("clear-ray calibrate" in text) is is_told


def test_a_summary_says_what_of_the_prompts_was_read_twice() -> None:
    text = summary_text(run_report(asked_prompt_tokens=20_000, spared_prompt_tokens=15_000))
    assert "of these, and of answers so far, grants read 25.0 % again" in text
    assert "again" not in summary_text(run_report())


def test_the_rounds_left_out_are_summed_up() -> None:
    rounds = tuple(round_report(number) for number in range(1, 11))
    text = summary_text(run_report(rounds=rounds))
    spent = sum(row.spent_tokens for row in rounds[4:-1])
    assert f"... 5 rounds more, which spent {spent:,}" in text
    assert re.search(r"^ +10 ", text, re.MULTILINE)


def test_columns_are_flush_right() -> None:
    lines = summary_text(run_report()).split("\n")
    heading = next(at for at, line in enumerate(lines) if line.lstrip().startswith("round "))
    table = lines[heading : heading + 4]
    ends = [[match.end() for match in re.finditer(r"\S+(?: \S+)*", line)] for line in table]
    assert all(row == ends[0] for row in ends)


def test_hostile_names_stay_on_their_line() -> None:
    lines = summary_text(hostile_report()).split("\n")
    assert len(lines) == len(summary_text(run_report(policy="x", stopped_early="y")).split("\n"))
    assert all(line.isprintable() for line in lines)


def test_a_plan_says_what_it_would_spend_and_marks_its_own_budget() -> None:
    text = plan_text(plan_report())
    assert "low 4,010, expected 6,300, worst 9,840 tokens" in text
    assert "92 of 199, abandoned 107" in text
    assert re.search(r"6,368\*", text)
    assert text.count("*") == 1
    assert "estimated by a probe" in text
    assert "from prompt lengths alone" in plan_text(plan_report(is_probed=False))


def test_a_plan_says_what_a_share_would_cost() -> None:
    asked = ShareBudget(share=0.5, budget_tokens=2_401, expected_utility=24.25, most_utility=48.5)
    line = next(line for line in plan_text(plan_report(for_share=asked)).split("\n") if "for 50%" in line)
    assert line == "  for 50%      2,401 tokens, expected to give 24.2 of the 48.5 that ample tokens would give"
    assert "ample" not in plan_text(plan_report())


def test_a_long_budget_curve_is_thinned_and_keeps_its_own_budget_and_both_ends() -> None:
    points = plan_report().budget_curve
    many = tuple(points[0].model_copy(update={"budget_tokens": 1_000 + at}) for at in range(400))
    text = plan_text(plan_report(budget_curve=many, budget_tokens=1_203))
    assert len(text.split("\n")) <= 25
    for budget in ("1,000", "1,203*", "1,399"):
        assert budget in text


def test_a_minimum_service_is_told_apart_from_what_was_funded() -> None:
    rounds = (round_report(1), round_report(2, is_service=True, fresh=20, continued=0))
    text = summary_text(run_report(rounds=rounds, abandoned=87, completed=110, truncated=31))
    assert "92 of 199, minimum service for 20, abandoned 87, failed 2" in text
    assert "\n  service" in text
    assert "minimum service of 160 tokens for" in plan_text(plan_report(kept_tokens=160))
    assert "service" not in summary_text(run_report()) + plan_text(plan_report())


def test_rounds_that_ask_again_say_of_how_many_queries() -> None:
    rounds = (round_report(1), round_report(2, fresh=0, continued=0, again=7))
    lines = summary_text(run_report(rounds=rounds)).split("\n")
    (at,) = (place for place, line in enumerate(lines) if line.startswith("  round"))
    assert lines[at].split()[2:5] == ["new", "continued", "again"]
    assert [line.split()[2:5] for line in lines[at + 1 : at + 3]] == [["81", "0", "0"], ["0", "0", "7"]]
    assert "again" not in summary_text(run_report())


def test_a_plan_and_a_summary_show_what_is_amiss_with_the_golds() -> None:
    warnings = ("gold of 8 of 9 rows does not look like a number\x1b[2J",)
    for text in (plan_text(plan_report(warnings=warnings)), summary_text(run_report(warnings=warnings))):
        (line,) = (line for line in text.split("\n") if "warning" in line)
        assert line.startswith("  warning      gold of 8 of 9 rows does not look like a number")
        assert line.isprintable()


def test_first_tokens_that_were_asked_for_are_said_to_be_charged() -> None:
    text = summary_text(run_report(probe_tokens=60, prefill_tokens=0))
    assert "read for first tokens, which took 60 tokens, and for their answers" in text
    planned = plan_text(plan_report(probe_tokens=60, prefill_tokens=0))
    assert "the first token of each answer is asked for beforehand, for 60 tokens" in planned
    assert "first tokens" not in summary_text(run_report(prefill_tokens=0))
