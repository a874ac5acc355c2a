"""Tells a display how a run is getting on: a thread on the driver that asks the market for its balance."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from clear_ray.ledger.client import MarketClient
from clear_ray.ledger.entries import Balance
from clear_ray.report.live import Display
from clear_ray.report.summary import ProgressSnapshot
from clear_ray.tasks.survey import FIRST_SCORED

_INTERVAL_SECONDS = 0.5
_PATIENCE_SECONDS = 5.0


class Progress:
    """What stage a run is in; a context manager around the whole run.

    Args:
        budget_tokens: The budget.
        display: Shown a snapshot a few times a second and at every change of stage.
        unit: What the budget is counted in, see `RunConfig.unit`.
    """

    def __init__(self, budget_tokens: int, display: Display, *, unit: str = "tokens") -> None:
        self._budget_tokens, self._display, self._unit = budget_tokens, display, unit
        self._started = time.monotonic()
        self._stage, self._round, self._queries, self._granted = "start", 0, 0, 0
        self._waiting_for, self._probed = "starting Ray", 0
        self._loaded: float | None = None
        self._reads_on = False
        self._price: float | None = None
        self._label = ""
        self._begun, self._again, self._solved_by_attempt = 0, 0, tuple[int, ...]()
        self._market: MarketClient | None = None
        self._warning = self._if_all_wrong = ""
        self._balance: Balance | None = None
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep_telling, daemon=True, name="clear_ray progress")

    def __enter__(self) -> Progress:
        self._tell()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join(timeout=5)
        self._display.close()

    @property
    def seconds(self) -> float:
        """Wall time since the run began."""
        return time.monotonic() - self._started

    def learns_from(self, label: str) -> None:
        """Note what the run learns from, from the next snapshot on."""
        self._label = label

    def asks(self, begun: int, again: int, solved_by_attempt: tuple[int, ...]) -> None:
        """Note how many answers were begun, how many again, and what each attempt has solved, from the next snapshot on."""
        self._begun, self._again, self._solved_by_attempt = begun, again, solved_by_attempt

    @contextmanager
    def watching(self, market: MarketClient) -> Iterator[None]:
        """Ask this market for balances, and stop before it is gone."""
        with self._asking:
            self._market = market.within(_PATIENCE_SECONDS)
        try:
            yield
        finally:
            with self._asking:
                self._market = None

    def begin(
        self,
        stage: str,
        *,
        queries: int | None = None,
        round_number: int | None = None,
        price: float | None = None,
        granted: int | None = None,
        waiting_for: str = "",
    ) -> None:
        """Note that a stage begins, and show it, with what it waits for first."""
        self._stage, self._waiting_for, self._loaded = stage, waiting_for, None
        self._queries = self._queries if queries is None else queries
        self._round = self._round if round_number is None else round_number
        self._price = self._price if price is None else price
        self._granted = self._granted if granted is None else granted
        self._tell()

    def note_loaded(self, share: float | None) -> None:
        """Note which share of a model has been loaded; None where that is not known."""
        self._loaded = share

    def note_probed(self, queries: int) -> None:
        """Note how many prompts have been read."""
        self._probed = queries

    def reads_on(self) -> None:
        """Note that prompts are read in later stages, too."""
        self._reads_on = True

    def warn(self, warning: str, *, if_all_wrong: str) -> None:
        """Show a warning from now on, and another one once the first scored answers have all been wrong."""
        self._warning, self._if_all_wrong = warning, if_all_wrong

    def _keep_telling(self) -> None:
        while not self._is_over.wait(_INTERVAL_SECONDS):
            with self._asking:
                if self._market is not None:
                    # The run itself meets whatever is wrong; a display must not end it.
                    with suppress(Exception):
                        self._balance = self._market.balance()
            if not self._is_over.is_set():
                self._tell()

    def _tell(self) -> None:
        balance = self._balance
        are_all_wrong = balance is not None and balance.scored >= FIRST_SCORED and not balance.correct
        with self._lock:
            self._display.update(
                ProgressSnapshot(
                    stage=self._stage,
                    round=self._round,
                    queries=self._queries,
                    probed=self._probed
                    if self._reads_on or self._stage in ("start", "read", "probe")
                    else self._queries,
                    granted=self._granted,
                    ended=balance.ended if balance else 0,
                    budget_tokens=balance.budget_tokens if balance else self._budget_tokens,
                    spent_tokens=balance.spent_tokens if balance else 0,
                    reserved_tokens=balance.reserved_tokens if balance else 0,
                    wasted_tokens=balance.wasted_tokens if balance else 0,
                    refunded_tokens=balance.refunded_tokens if balance else 0,
                    running=balance.running if balance else 0,
                    shadow_price=self._price,
                    correct=balance.correct if balance and balance.scored else None,
                    scored=balance.scored if balance else 0,
                    seconds=self.seconds,
                    recent=balance.recent if balance else (),
                    waiting_for=self._waiting_for,
                    loaded=self._loaded,
                    label=self._label,
                    begun=self._begun,
                    again=self._again,
                    solved_by_attempt=self._solved_by_attempt,
                    unit=self._unit,
                    warning=self._if_all_wrong if are_all_wrong and self._if_all_wrong else self._warning,
                )
            )
