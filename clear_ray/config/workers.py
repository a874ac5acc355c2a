"""Settings of the work: how rows travel to the engines, and how many engines there are."""

from __future__ import annotations

from pydantic import Field, model_validator

from clear_ray.config.base import Settings
from clear_ray.config.bounds import MOST_ROWS
from clear_ray.config.durations import seconds_of


class DispatchConfig(Settings):
    """How rows travel; the defaults suit most clusters."""

    callers: int = Field(default=1, ge=1, le=100_000)
    """Thin actors that keep the engines fed."""
    batch_rows: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Queries in one call to an engine; if not given, few of long answers and many of short ones, 128 at most."""
    calls_in_flight: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Calls of `batch_rows` that a caller keeps open; if not given, enough for twice what the engines run at once."""
    block_rows: int = Field(default=2_000, ge=1, le=MOST_ROWS)
    """Queries in one block of the probe stage."""
    rows_per_file: int = Field(default=256, ge=1, le=MOST_ROWS)
    """Most answers in one file; after a second at most it is written with fewer. A crash loses those not written yet."""


class ScalingConfig(Settings):
    """Whether the number of engines follows the work; by default it is `engine.workers` throughout."""

    max_workers: int | None = Field(default=None, ge=1, le=100_000)
    """Most engines: a run begins with `engine.workers` and adds those its work calls for; no more are added if not given."""
    deadline: str | None = None
    """How long after its start a run should be done, such as `90m` or `2h`; a goal. Without one engines need only pay off."""
    tokens_per_second: float | None = Field(default=None, gt=0)
    """What one busy engine generates, from an earlier run's summary; measured in the first round if not given."""

    @property
    def deadline_seconds(self) -> float | None:
        """The deadline in seconds."""
        return None if self.deadline is None else seconds_of(self.deadline)

    @model_validator(mode="after")
    def _can_be_kept(self) -> ScalingConfig:
        if self.deadline is not None:
            seconds_of(self.deadline)
        if self.max_workers is None and (self.deadline is not None or self.tokens_per_second is not None):
            raise ValueError("deadline and tokens_per_second need max_workers: without it no engine is added")
        return self
