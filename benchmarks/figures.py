"""Figures of the guides: SVG, the same to the byte each time, legible on light and dark pages: mid-tones, no background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

GREY = "#888888"


@contextmanager
def drawn(
    path: Path, *, size: tuple[float, float], panels: int = 1, font_size: int = 11
) -> Iterator[tuple[Any, list[Any]]]:
    """Yield a figure and its axes, a panel each; write it to `path` afterwards.

    Args:
        path: The SVG to write.
        size: Width and height, inches.
        panels: How many stand side by side.
        font_size: Of all text, points.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.hashsalt": "clear_ray", "svg.fonttype": "none", "font.size": font_size, "text.color": GREY}
    pyplot.rcParams |= {"axes.edgecolor": GREY, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY}
    figure, axes = pyplot.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
    figure.patch.set_alpha(0)
    for each in axes[0]:
        each.patch.set_alpha(0)
    yield figure, list(axes[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def against_budget(axes: Any, budgets: Sequence[float], *, shows: str, legend_at: str) -> None:
    """Dress axes that show a percentage against the average budget, on a scale of doublings.

    Args:
        axes: Those that hold the lines.
        budgets: Average tokens a query, each of which has a tick.
        shows: What the percentage is of.
        legend_at: Where the legend stands.
    """
    from matplotlib.ticker import ScalarFormatter

    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, labels=[f"{budget:g}" for budget in budgets])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set(xlabel="generated tokens a query, on average", ylabel=f"{shows}, %")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, labelcolor=GREY, loc=legend_at)
