r"""Entry of `ray job submit`: replay recorded rollouts under every policy over a range of budgets.

    ray job submit --working-dir . -- \
        python jobs/sweep_budgets.py --rollouts rollouts.parquet --features features.parquet --folds split.json \
        --output /shared/sweep

Takes what `clear-ray sweep` takes.
"""

import sys

import typer

from clear_ray.cli import guarded
from clear_ray.sweep.command import sweep

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(sweep)
    raise SystemExit(guarded(lambda: app(args=sys.argv[1:])))
