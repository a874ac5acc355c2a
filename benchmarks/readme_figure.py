"""Draws the figure of the README: right answers against tokens, on recorded rollouts of a real model.

    python benchmarks/readme_figure.py          writes docs/figures/accuracy.svg and prints one JSON line

Three lines on the same answers. A run that knows nothing at the start and learns from what it has answered, exploration
charged; text features, each of the 8 samples a run of its own. A run whose head was fitted on the other folds beforehand. And
equal ceilings that spend the same tokens. The figure is legible on light and dark pages: mid-tone lines that differ in dash
and width, and no background.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from figures import against_budget, drawn
from replay_accuracy import DATA, contest, cross_fitted_head

from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.sweep.recording import read_recording
from clear_ray.sweep.rows import Judge, Row

FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "accuracy.svg"
BUDGETS = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
STYLES = {
    "clear_ray": ("clear_ray, calibrated beforehand", "#2f7ed8", ":", 2.0, "o"),
    "learning": ("clear_ray, nothing known beforehand", "#2f7ed8", "-", 2.6, "D"),
    "uniform": ("the same max_tokens for all", "#888888", "--", 1.8, "s"),
}


def rows() -> list[Row]:
    recording = read_recording(str(DATA / "rollouts.parquet"), str(DATA / "features.parquet"))
    with tempfile.TemporaryDirectory(prefix="clear_ray_") as folder:
        held, judge = contest(recording, cross_fitted_head(Path(folder))), Judge(recording)
        known = recording.features, recording.rollouts.prompts
        held = replace(held, x_NP=fit_coordinates(*known, sets=("text", "ngrams"))(*known))
    return [judge.row(policy, budget, held.play(policy, budget)) for policy in STYLES for budget in BUDGETS]


def draw(found: list[Row], path: Path) -> None:
    with drawn(path, size=(7.2, 3.8)) as (_, (axes,)):
        for policy, (label, colour, dash, width, marker) in STYLES.items():
            mine = sorted((row for row in found if row.policy == policy), key=lambda row: row.average_budget)
            x, right = [row.average_budget for row in mine], [100 * row.accuracy for row in mine]
            axes.plot(x, right, dash, color=colour, linewidth=width, marker=marker, label=label)
            if policy == "clear_ray":  # its band is that of the other line, about
                continue
            low, high = [100 * row.low for row in mine], [100 * row.high for row in mine]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        against_budget(axes, BUDGETS, shows="right answers", legend_at="lower right")
        axes.set_ylim(bottom=0)


if __name__ == "__main__":
    found = rows()
    draw(found, FIGURE)
    right = {
        policy: {row.average_budget: round(row.accuracy, 4) for row in found if row.policy == policy}
        for policy in STYLES
    }
    print(json.dumps({"figure": "readme", **right}))
