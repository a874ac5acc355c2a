"""The report of a run as one HTML file that needs no network, runs no script and can be mailed.

Everything that comes from outside (ids, tasks, answers, errors, paths) reaches the page through Jinja's autoescape, with
control characters replaced; a Content-Security-Policy forbids the page to load or run anything even if that failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clear_ray.report import wording
from clear_ray.report.rows import Gathered, gather, outcome
from clear_ray.report.summary import RunReport
from clear_ray.report.text import asked_again
from clear_ray.storage import Folder

_ANSWER_CHARACTERS = 200
_NAME_CHARACTERS = 80
_REASON_CHARACTERS = 300
_MOST_TASKS = 200
# C0 and C1 controls but tab and line end, direction overrides, lone surrogates. Joiners and marks stay: scripts need them.
_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def write_page(
    report: RunReport,
    *,
    completions: Iterable[Mapping[str, Any]],
    folder: Folder,
    name: str = "report.html",
    most_rows: int = 500,
) -> str:
    """Write the report of a run as one self-contained HTML file.

    The rows are read once and in bounded memory, so a batch of any size can be reported. The same input gives the same
    bytes.

    Args:
        report: Report of the run.
        completions: Its rows, of `COMPLETION_SCHEMA`, in the order in which they shall be listed.
        folder: Where the file goes.
        name: Name of the file in it.
        most_rows: Queries listed; the others are in `completions/`.

    Returns:
        The path of the file in the folder's file system.
    """
    page = render_page(report, gather(completions, most_rows=most_rows))
    folder.write(name, page.encode("utf-8"))
    return f"{folder.path}/{name}"


def import_plots() -> None:
    """Import what the plots are drawn with, which takes a second, while something else is waited for."""
    import clear_ray.report.plots  # noqa: F401


def render_page(report: RunReport, gathered: Gathered) -> str:
    """Return the page as text."""
    from clear_ray.report.plots import budget_words

    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            plots=_plots(report, gathered),
            budget_words=budget_words(report.budget_curve, budget_tokens=report.budget_tokens, unit=report.unit),
            gathered=gathered,
            gain=wording.times(report.expected_utility, report.uniform_expected_utility),
            tasks=report.tasks[:_MOST_TASKS],
            asked=[] if report.attempts is None else asked_again(report.attempts, report.unit),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("clear_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {
        "count": wording.count,
        "amount": wording.amount,
        "bare": lambda number, unit: wording.amount(number, unit).removesuffix(" tokens"),
        "priced": wording.priced,
        "price": lambda price, unit: wording.priced(price, unit).partition(" ")[0],
        "per_unit": lambda unit: wording.priced(0.0, unit).partition(" ")[2],
        "answers": wording.answers,
        "expected": wording.expected,
        "per_thousand": wording.per_thousand,
        "percent": wording.percent,
        "duration": wording.duration,
        "name": lambda text: _shown(text, _NAME_CHARACTERS),
        "reason": lambda text: _shown(text, _REASON_CHARACTERS),
        "answer": lambda text: _shown(text, _ANSWER_CHARACTERS),
        "outcome": outcome,
        "label": lambda label: wording.LABELS.get(label, label),
    }
    environment.filters.update(filters)
    return environment


def _shown(text: object, most: int) -> str:
    """Return the first `most` characters of a foreign text without anything a page cannot hold."""
    whole = "" if text is None else str(text)
    cut = whole if len(whole) <= most else whole[:most] + "…"
    return _UNSHOWABLE.sub("\N{REPLACEMENT CHARACTER}", cut)


def _plots(report: RunReport, gathered: Gathered) -> dict[str, Markup]:
    """Return the plots that there is something to draw for."""
    from clear_ray.report.plots import budget_plot, rounds_plot, tasks_plot, tokens_plot  # matplotlib is needed last

    drawn: dict[str, str] = {}
    # The curve counts every query; the dot of what was found says something beside it only if every query is scored.
    found = report.correct if report.scored == report.queries else None
    if report.budget_curve:
        drawn["budget"] = budget_plot(
            report.budget_curve, budget_tokens=report.budget_tokens, found=found, unit=report.unit
        )
    if report.rounds:
        drawn["rounds"] = rounds_plot(report.rounds, unit=report.unit)
    if any(point.granted_tokens for point in gathered.points):
        drawn["tokens"] = tokens_plot(gathered.points)
    if report.tasks:
        drawn["tasks"] = tasks_plot(report.tasks)
    # Safe: matplotlib escapes all text in an SVG, and the rest is ours.
    return {name: Markup(svg) for name, svg in drawn.items()}  # noqa: S704
