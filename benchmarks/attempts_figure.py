"""Draws the figure of docs/attempts.md from committed results: solved queries against tokens, asked again or not.

    python benchmarks/attempts_figure.py        writes docs/figures/attempts.svg

Reads benchmarks/results/attempts/attempts-rollouts.jsonl (`attempts.py`); bands are two standard errors of its draws. Legible
on light and dark pages: mid-tone lines that differ in dash and width, and no background.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from figures import against_budget, drawn

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
    with drawn(path, size=(7.2, 3.8)) as (_, (axes,)):
        for policy, (label, colour, dash, width, marker) in STYLES.items():
            mine = sorted(
                (row for row in rows if row["policy"] == policy), key=lambda row: float(row["average_budget"])
            )
            x, solved = ([row[name] for row in mine] for name in ("average_budget", "solved"))
            low, high = ([100 * (row["solved"] + sign * 2 * row["error"]) for row in mine] for sign in (-1, 1))
            axes.plot(
                x, [100 * share for share in solved], dash, color=colour, linewidth=width, marker=marker, label=label
            )
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        budgets = sorted({row["average_budget"] for row in rows})
        against_budget(axes, budgets, shows="solved queries", legend_at="upper left")
        axes.set_ylim(0, 60)


if __name__ == "__main__":
    draw(read_rows(), FIGURE)
