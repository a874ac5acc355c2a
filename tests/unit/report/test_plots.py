from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from clear_ray.report.plots import budget_plot, budget_words, rounds_plot, tasks_plot, tokens_plot
from clear_ray.report.rows import QueryPoint
from clear_ray.report.summary import TaskReport
from tests.unit.report.samples import HOSTILE, round_report, run_report


def task(name: str, queries: int = 10, correct: float | None = 2.0) -> TaskReport:
    return TaskReport(task=name, queries=queries, funded=4, spent_tokens=9, expected_utility=1.0, correct=correct)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - drawn a moment ago by our own code


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()) for node in parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_task_names_are_drawn_as_they_are_and_no_stand_in_colour_is_replaced_in_them() -> None:
    names = ["a $b$ \\frac", 'href="#x', "url(#y)", "#0a0b01", "\N{CJK UNIFIED IDEOGRAPH-6570}\N{HEBREW LETTER ALEF}"]
    shown = texts(tasks_plot([task(name) for name in names]))
    assert [text for text in shown if text in names] == names


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\ud800" not in text])
def test_a_plot_with_a_hostile_name_is_well_formed_and_inert(text: str) -> None:
    root = parse(tasks_plot([task(text)]))
    tags = {node.tag.partition("}")[2] for node in root.iter()}
    assert tags <= {"svg", "defs", "g", "path", "use", "text", "clipPath", "rect", "pattern"}


def test_many_tasks_become_a_dozen_bars_that_add_up() -> None:
    tasks = [task(f"task {number:02d}", queries=100 - number) for number in range(40)]
    shown = texts(tasks_plot(tasks))
    assert "29 other tasks" in shown
    assert "task 10" in shown
    assert "task 11" not in shown


def test_nothing_is_said_of_correct_answers_where_none_are_known() -> None:
    assert "correct" in texts(tasks_plot([task("a")]))
    assert "correct" not in texts(tasks_plot([task("a", correct=None)]))
    report = run_report()
    labels = texts(budget_plot(report.budget_curve, budget_tokens=6_368, found=None))
    assert not [label for label in labels if "found" in label]
    assert "found by this run: 30" in texts(budget_plot(report.budget_curve, budget_tokens=6_368, found=30.0))


def test_extremes_can_be_drawn() -> None:
    many = [round_report(number) for number in range(1, 101)]
    free = [round_report(shadow_price=0.0, granted_tokens=0, spent_tokens=0)]
    one = run_report().budget_curve[:1]
    for svg in (
        rounds_plot(many),
        rounds_plot(free),
        budget_plot(one, budget_tokens=10**12, found=0.0),
        tokens_plot([QueryPoint(1, 0, "failed")]),
    ):
        assert len(texts(svg)) > 4


def test_outcomes_differ_in_shape() -> None:
    points = [QueryPoint(100, 50, outcome) for outcome in ("correct", "wrong", "cut off", "failed")]
    svg = tokens_plot(points)
    marks = re.findall(r'<path id="(tokens-m[0-9a-f]+)" d="([^"]+)" style="([^"]*)"', svg)
    looks = {(d, "fill: none" in style or "fill" not in style) for _, d, style in marks}
    assert len(looks) >= 4


def test_the_words_under_the_budget_plot_are_of_the_own_budget() -> None:
    curve = run_report().budget_curve
    assert "31.5 correct answers" in budget_words(curve, budget_tokens=6_368)
    assert budget_words(curve, budget_tokens=6_369) == ""


@pytest.mark.parametrize("rounds", [1, 2, 12, 13, 100])
def test_rounds_are_marked_by_whole_numbers_of_rounds_that_were_run(rounds: int) -> None:
    svg = rounds_plot([round_report(number) for number in range(1, rounds + 1)])
    shown = texts(svg)
    # Drawn in this order: the upper panel and its title, the ticks of the rounds, the name of their axis.
    ticks = shown[next(at for at, text in enumerate(shown) if text.startswith("price")) + 1 : shown.index("round")]
    assert ticks
    assert {int(tick) for tick in ticks} <= set(range(1, rounds + 1))
    assert rounds > 12 or len(ticks) == rounds
