"""What every step of a running batch works with, from the probe to the last line of the report."""

from __future__ import annotations

from dataclasses import dataclass

from clear_ray.batch.learning import Lesson
from clear_ray.batch.progress import Progress
from clear_ray.batch.streamed import StreamedProbe
from clear_ray.cluster.autoscaling import EngineScaler
from clear_ray.cluster.callers import Callers
from clear_ray.config.run import RunConfig
from clear_ray.ledger.client import MarketClient
from clear_ray.ledger.void import VoidAttempts
from clear_ray.rounds.rounds import Rounds
from clear_ray.rounds.states import QueryStates
from clear_ray.run_folder.answers import AnswerFiles
from clear_ray.run_folder.estimates import Estimates
from clear_ray.storage import Folder


@dataclass(frozen=True, slots=True)
class RunContext:
    """A batch whose engines and market are up.

    Attributes:
        folder: The run folder.
        config: What the batch may cost, and how.
        scaler: The engines.
        market: Where every token is reserved and settled.
        callers: The callers of stage 2.
        answers: Where every query's answer so far lies.
        estimates: What the probe found.
        rounds: The law of the run; changes round by round.
        progress: What the display is told.
        lesson: What the run is to learn from; None if that is not asked of it.
        reader: Reads the prompts meanwhile; None if all were read before.
    """

    folder: Folder
    config: RunConfig
    scaler: EngineScaler
    market: MarketClient
    callers: Callers
    answers: AnswerFiles
    estimates: Estimates
    rounds: Rounds
    progress: Progress
    lesson: Lesson | None = None
    reader: StreamedProbe | None = None

    @property
    def states(self) -> QueryStates:
        """Where every query stands."""
        return self.rounds.states

    def void_attempts(self) -> VoidAttempts:
        """Return the attempts of all rounds so far whose rows do not count."""
        return VoidAttempts(self.market.void_attempts())
