"""The figure of a sweep: right answers against tokens, legible in grayscale.

Policies differ in dash, marker and width, not in colour alone; bands are 95 % intervals over queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clear_ray.sweep.rows import Row

_BANDED = ("clear_ray", "uniform")
_STYLES: dict[str, tuple[str, str, str, float]] = {
    "clear_ray": ("#111111", "-", "o", 2.2),
    "uniform": ("#777777", "-", "s", 1.8),
    "oracle": ("#111111", ":", "", 1.8),
    "split_half_oracle": ("#555555", ":", "x", 1.0),
    "paper": ("#555555", "--", "v", 1.2),
    "task_prior": ("#333333", "-.", "^", 1.2),
    "uniform_refunds": ("#999999", "--", "", 1.0),
    "proportional": ("#999999", "-.", "d", 1.0),
    "smallest_threshold": ("#999999", ":", "<", 1.0),
    "uncertainty": ("#bbbbbb", "-", "+", 1.0),
}
_OTHER = ("#444444", "--", "*", 1.2)


def write_figure(rows: Sequence[Row], path: Path, *, title: str) -> None:
    """Draw accuracy against generated tokens and write it in the format of the path's ending."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    try:
        for policy in dict.fromkeys(row.policy for row in rows):
            mine = sorted((row for row in rows if row.policy == policy), key=lambda row: row.average_budget)
            colour, dash, marker, width = _STYLES.get(policy, _OTHER)
            x = [row.average_budget for row in mine]
            axes.plot(
                x,
                [100 * row.accuracy for row in mine],
                color=colour,
                linestyle=dash,
                marker=marker or None,
                linewidth=width,
                markersize=5,
                label=policy,
            )
            if policy in _BANDED:
                low, high = ([100 * getattr(row, end) for row in mine] for end in ("low", "high"))
                axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set(xlabel="budget, generated tokens a query", ylabel="right answers, %", title=title)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, color="#dddddd", linewidth=0.5)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        figure.savefig(path, dpi=150)
    finally:
        pyplot.close(figure)
