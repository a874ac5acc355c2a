"""The plots of the report page, as inline SVG.

Each plot is drawn with matplotlib's objects, without pyplot and its global figures. Colours are drawn as stand-ins and
then replaced by the page's CSS variables, so that one drawing serves light and dark; text stays text in the page's own
font. The same input gives the same bytes. Outcomes and series differ in shape, dash or hatch as well as in colour, so
that the plots can be read in grayscale.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from clear_ray.redaction import printable
from clear_ray.report.rows import QueryPoint
from clear_ray.report.summary import BudgetPoint, RoundReport, TaskReport
from clear_ray.report.wording import amount, answers, count, expected, scale_of_price

_VARIABLES = {
    "#0a0b01": "var(--ink)",
    "#0a0b02": "var(--muted)",
    "#0a0b03": "var(--line)",
    "#0a0b04": "var(--accent)",
    "#0a0b05": "var(--second)",
    "#0a0b06": "var(--bad)",
    "#0a0b07": "var(--paper)",
}
_INK, _MUTED, _LINE, _ACCENT, _SECOND, _BAD, _PAPER = _VARIABLES
_SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
    "path.simplify": False,
}
_WIDTH, _HEIGHT = 5.2, 3.3
_MOST_TASKS = 12
_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


OUTCOMES = ("correct", "wrong", "ended", "cut off", "failed")
"""What came of a funded query: the first two where a gold answer exists, `ended` where none does."""

_MARKS = {
    "correct": ("o", _ACCENT, _ACCENT),
    "wrong": ("o", "none", _MUTED),
    "ended": ("o", _ACCENT, _ACCENT),
    "cut off": ("^", "none", _SECOND),
    "failed": ("x", _BAD, _BAD),
}


def budget_plot(points: Sequence[BudgetPoint], *, budget_tokens: int, found: float | None, unit: str = "tokens") -> str:
    """Return the plot of expected correct answers against budget, priced and uniform.

    Args:
        points: The budget curve, in any order; at least one.
        budget_tokens: The run's own budget, marked.
        found: Correct answers really found; None to leave it out.
        unit: What budgets are counted in, see `RunReport`.
    """
    ordered = sorted(points, key=lambda point: point.budget_tokens)
    budgets = [point.budget_tokens for point in ordered]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        # The own budget first, so that the curves lie over its line.
        axes.axvline(budget_tokens, color=_MUTED, linewidth=1.0, linestyle=(0, (1, 2)), label="this run's budget")
        axes.plot(budgets, [p.utility for p in ordered], color=_ACCENT, linewidth=2.0, marker="o", markersize=4)
        axes.plot(
            budgets,
            [p.uniform_utility for p in ordered],
            color=_SECOND,
            linewidth=2.0,
            linestyle="--",
            marker="s",
            markersize=3.5,
        )
        axes.lines[1].set_label("priced, expected")
        axes.lines[2].set_label("uniform ceilings, expected")
        if found is not None:
            axes.plot(
                [budget_tokens], [found], linestyle="none", marker="D", markersize=8, color=_INK,
                markeredgecolor=_PAPER, label=f"found by this run: {answers(found)}",
            )  # fmt: skip
        _finish(axes, f"budget in {unit}", "correct answers")
        if unit != "tokens":
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, unit)))
        axes.set_ylim(bottom=0)
        _legend(figure, axes, columns=2)

    label = "Expected correct answers against the budget, for the priced policy and for uniform ceilings."
    return _svg("budget", label, draw)


def rounds_plot(rounds: Sequence[RoundReport], *, unit: str = "tokens") -> str:
    """Return two panels over the rounds: the price of each, and the tokens it granted and spent."""
    numbers = [row.number for row in rounds]

    def draw(figure: Figure) -> None:
        price, tokens = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
        scale, name = scale_of_price(unit)
        price.plot(
            numbers, [scale * row.shadow_price for row in rounds], color=_ACCENT, linewidth=2, marker="o", markersize=5
        )
        price.set_ylim(0, 1.25 * max(scale * row.shadow_price for row in rounds) or 1.0)
        price.set_title(f"price, expected correct answers per {name}", loc="left", fontsize=9, color=_MUTED)
        tokens.bar(
            numbers,
            [row.granted_tokens for row in rounds],
            width=0.62,
            facecolor="none",
            edgecolor=_MUTED,
            label="granted",
        )
        tokens.bar(numbers, [row.spent_tokens for row in rounds], width=0.62, color=_ACCENT, label="spent")
        tokens.set_title("tokens", loc="left", fontsize=9, color=_MUTED)
        tokens.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            fontsize=9,
            ncols=2,
            borderaxespad=0,
            borderpad=0.2,
            handlelength=1.2,
        )
        for axes in (price, tokens):
            axes.grid(visible=False, axis="x")
            axes.yaxis.set_major_locator(MaxNLocator(4))
        tokens.yaxis.set_major_formatter(_THOUSANDS)
        # Room for four rounds at least: one bar as wide as the plot reads as an area, and ticks between rounds as rounds.
        tokens.xaxis.set_major_locator(FixedLocator(numbers) if len(numbers) <= 12 else MaxNLocator(integer=True))
        tokens.set_xlim(min(numbers) - 0.6, max(max(numbers), min(numbers) + 3) + 0.6)
        tokens.set_xlabel("round")

    return _svg("rounds", "The price of each round, and the tokens that it granted and spent.", draw)


def tokens_plot(points: Sequence[QueryPoint]) -> str:
    """Return the plot of tokens spent against tokens granted, one mark a funded query, its shape the outcome."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        most = max(point.granted_tokens for point in points)
        axes.plot([0, most], [0, most], color=_MUTED, linewidth=1, linestyle=(0, (1, 2)), label="all of the grant")
        for outcome in OUTCOMES:
            chosen = [point for point in points if point.outcome == outcome]
            shape, face, edge = _MARKS[outcome]
            if chosen:
                axes.plot(
                    [point.granted_tokens for point in chosen], [point.spent_tokens for point in chosen], linestyle="none",
                    marker=shape, markersize=5, markerfacecolor=face, markeredgecolor=edge, alpha=0.85,
                    label=f"{outcome} ({count(len(chosen))})",
                )  # fmt: skip
        _finish(axes, "tokens granted", "tokens spent")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        _legend(figure, axes, columns=3)

    return _svg("tokens", "Tokens spent against tokens granted, one mark for each funded query.", draw)


def tasks_plot(tasks: Sequence[TaskReport]) -> str:
    """Return bars of queries, funded and correct for each task; beyond a dozen, the smallest tasks as one bar."""
    bars = _bars(tasks)
    has_correct = any(bar.correct is not None for bar in bars)
    rows = range(len(bars))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.barh(rows, [b.queries for b in bars], 0.74, facecolor="none", edgecolor=_MUTED, label="queries")
        axes.barh(
            rows, [b.funded for b in bars], 0.74, facecolor="none", edgecolor=_ACCENT, hatch="////", label="funded"
        )
        if has_correct:
            axes.barh(rows, [b.correct or 0.0 for b in bars], 0.36, color=_ACCENT, edgecolor=_PAPER, label="correct")
        axes.set_yticks(rows, [printable(bar.task, most=22) for bar in bars], color=_INK)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(_THOUSANDS)
        axes.set_xlabel("queries")
        _legend(figure, axes, columns=3)

    return _svg(
        "tasks", "Queries, funded queries and correct answers of each task.", draw, height=1.1 + 0.3 * len(bars)
    )


def budget_words(points: Sequence[BudgetPoint], *, budget_tokens: int, unit: str = "tokens") -> str:
    """Return what the budget plot shows at the run's own budget, as a sentence; empty if that point is missing."""
    own = next((point for point in points if point.budget_tokens == budget_tokens), None)
    if own is None:
        return ""
    return (
        f"At {amount(budget_tokens, unit)}: {expected(own.utility)} correct answers expected from priced grants, "
        f"{expected(own.uniform_utility)} from uniform ceilings."
    )


def _bars(tasks: Sequence[TaskReport]) -> list[TaskReport]:
    if len(tasks) <= _MOST_TASKS:
        return list(tasks)
    ordered = sorted(tasks, key=lambda task: (-task.queries, task.task))
    rest = ordered[_MOST_TASKS - 1 :]
    scored = [task.correct for task in rest if task.correct is not None]
    others = TaskReport(
        task=f"{count(len(rest))} other tasks",
        queries=sum(task.queries for task in rest),
        funded=sum(task.funded for task in rest),
        spent_tokens=sum(task.spent_tokens for task in rest),
        expected_utility=sum(task.expected_utility for task in rest),
        correct=sum(scored) if scored else None,
    )
    return [*ordered[: _MOST_TASKS - 1], others]


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(_THOUSANDS)


def _legend(figure: Figure, axes: Axes, *, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9, columnspacing=1.4)


def _svg(name: str, label: str, draw: Callable[[Figure], None], *, height: float = _HEIGHT) -> str:
    """Return one figure as an SVG element whose ids begin with `name`, so that several can stand in one page."""
    buffer = io.StringIO()
    settings: Any = _SETTINGS | {"svg.hashsalt": f"clear_ray-{name}"}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has its own fonts
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(buffer.getvalue(), name=name, label=label)


def _inline(document: str, *, name: str, label: str) -> str:
    """Return the `<svg>` element of an SVG file, fit for a page: coloured by variables, named, without a fixed size."""
    svg = document[document.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)

    def rewrite(tag: re.Match[str]) -> str:
        text = re.sub(r'( id="| (?:xlink:)?href="#|url\(#)', rf"\1{name}-", tag[0])
        return re.sub(r"#0a0b0\d", lambda colour: _VARIABLES[colour[0]], text)

    # Only tags: in text, which may be anything, matplotlib has escaped every angle bracket.
    svg = re.sub(r"<[^>]*>", rewrite, svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
