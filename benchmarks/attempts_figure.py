"""Draws the figure of docs/attempts.md from committed results: solved queries against tokens, asked again or not.

    python benchmarks/attempts_figure.py        writes docs/figures/attempts.svg

Reads benchmarks/results/attempts/attempts-rollouts.jsonl (`attempts.py`); bands are two standard errors of its draws. Legible
on light and dark pages: mid-tone lines that differ in dash and width, and no background.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "attempts" / "attempts-rollouts.jsonl"
FIGURE = ROOT / "docs" / "figures" / "attempts.svg"
STYLES = {
    "clear_ray": ("clear_ray, asked again by price", "#2f7ed8", "-", 2.6, "D"),
    "clear_ray_once": ("clear_ray, one answer each", "#2f7ed8", ":", 2.0, "o"),
    "retry": ("until solved, best max_tokens in hindsight", "#888888", "-", 1.8, "s"),
    "fixed": ("same n and max_tokens, best in hindsight", "#888888", "--", 1.8, "v"),
}


def read_rows(path: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    grey = "#888888"
    pyplot.rcParams |= {"svg.hashsalt": "clear_ray", "svg.fonttype": "none", "font.size": 11, "text.color": grey}
    pyplot.rcParams |= {"axes.edgecolor": grey, "axes.labelcolor": grey, "xtick.color": grey, "ytick.color": grey}
    figure, axes = pyplot.subplots(figsize=(7.2, 3.8), layout="constrained")
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for policy, (label, colour, dash, width, marker) in STYLES.items():
        mine = sorted((row for row in rows if row["policy"] == policy), key=lambda row: float(row["average_budget"]))
        x, solved = ([row[name] for row in mine] for name in ("average_budget", "solved"))
        low, high = ([100 * (row["solved"] + sign * 2 * row["error"]) for row in mine] for sign in (-1, 1))
        axes.plot(x, [100 * share for share in solved], dash, color=colour, linewidth=width, marker=marker, label=label)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    budgets = sorted({row["average_budget"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, labels=[f"{budget:g}" for budget in budgets])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(xlabel="generated tokens a query, on average", ylabel="solved queries, %")
    axes.set_ylim(0, 60)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, labelcolor=grey, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw(read_rows(), FIGURE)
