"""Settings of the work: how rows travel to the engines, and how many engines there are."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from clear_ray.config.base import Settings
from clear_ray.config.bounds import MOST_ROWS
from clear_ray.config.durations import seconds_of
from clear_ray.config.menu import EngineName

Workers = Annotated[int, Field(ge=1, le=100_000)]
Rate = Annotated[float, Field(gt=0)]


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

    max_workers: Workers | dict[EngineName, Workers] | None = None
    """Most engines: a run begins with `engine.workers` and adds those its work calls for; no more are added if not given.
    With `engines` that is of each, or by name: `{small: 8}` adds none of the others."""
    deadline: str | None = None
    """How long after its start a run should be done, such as `90m` or `2h`; a goal. Without one engines need only pay off."""
    tokens_per_second: Rate | dict[EngineName, Rate] | None = None
    """What one busy engine generates, from an earlier run's summary; measured in the first round if not given. With
    `engines` by name, or the same of each."""

    @property
    def deadline_seconds(self) -> float | None:
        """The deadline in seconds."""
        return None if self.deadline is None else seconds_of(self.deadline)

    def most_of(self, engine: str) -> int | None:
        """Return the most workers of an engine, by its name, empty of the only one; None if their number stays."""
        return self.max_workers.get(engine) if isinstance(self.max_workers, dict) else self.max_workers

    def rate_of(self, engine: str) -> float | None:
        """Return what one worker of an engine generates a second; None if that is not known."""
        rate = self.tokens_per_second
        return rate.get(engine) if isinstance(rate, dict) else rate

    @model_validator(mode="after")
    def _can_be_kept(self) -> ScalingConfig:
        if self.deadline is not None:
            seconds_of(self.deadline)
        if self.max_workers is None and (self.deadline is not None or self.tokens_per_second is not None):
            raise ValueError("deadline and tokens_per_second need max_workers: without it no engine is added")
        return self
