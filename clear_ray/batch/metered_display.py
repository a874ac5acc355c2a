"""A display that tells Ray's metrics, too, how a run is getting on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import PurePosixPath

import ray

from clear_ray.cluster.metrics import AccountGauges, AccountMetrics, Throttle
from clear_ray.report.live import Display
from clear_ray.report.summary import ProgressSnapshot


class Measured:
    """Shows another display what it is shown.

    Args:
        display: The other one.
        run_dir: The run folder; its name is the run's.
    """

    def __init__(self, display: Display, run_dir: str) -> None:
        self._display, self._run = display, PurePosixPath(run_dir.rstrip("/")).name
        self._metrics: AccountMetrics | None = None
        self._due, self._stage = Throttle(), ""

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Show a snapshot, and tell what is in it: every few seconds, and at every change of stage."""
        is_new, self._stage = snapshot.stage != self._stage, snapshot.stage
        if (self._due.is_due() or is_new) and ray.is_initialized():
            with suppress(Exception):  # a metric must not end a run
                self._metrics = self._metrics or AccountMetrics("batch", self._run)
                self._metrics.publish(_account(snapshot))
        self._display.update(snapshot)

    def close(self) -> None:
        """Close the other one."""
        self._display.close()


def _account(shown: ProgressSnapshot) -> AccountGauges:
    return AccountGauges(
        reserved_tokens=shown.reserved_tokens,
        spent_tokens=shown.spent_tokens,
        refunded_tokens=shown.refunded_tokens,
        wasted_tokens=shown.wasted_tokens,
        available_tokens=max(0, shown.budget_tokens - shown.spent_tokens - shown.reserved_tokens),
        price=shown.shadow_price,
        queries={
            ("running", "engine"): shown.running,
            ("ended", "none"): shown.ended,
            ("waiting", "price"): max(0, shown.queries - shown.ended - shown.running),
        },
    )
