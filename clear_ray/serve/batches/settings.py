"""Settings of files and batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from clear_ray.config.base import Settings
from clear_ray.config.bounds import MOST_ROWS
from clear_ray.config.prices import PriceLists, Prices
from clear_ray.config.run import RunConfig

DEFAULT_SECONDS = 30 * 24 * 3_600
"""How long a file of a batch is kept if its client does not say."""


class BatchSettings(Settings):
    """Files and batches of a server."""

    folder: str = Field(min_length=1)
    """Folder of uploaded files, of the store that says how far each batch is, and of the batches' runs: a path, visible to
    every node on which the server's own replicas and the runs may be."""
    runs: str | None = None
    """Where the run folders of batches are instead, a path or URI; `folder` if not given."""
    max_requests: int = Field(default=50_000, ge=1, le=MOST_ROWS)
    """Most requests of one batch."""
    max_file_bytes: int = Field(default=209_715_200, ge=1)
    """Largest file that can be uploaded."""
    running: int = Field(default=4, ge=1, le=1_000)
    """Batches that run at the same time; others wait in the order in which they came."""
    kept_slots: int | None = Field(default=None, ge=0, le=MOST_ROWS)
    """Places in each engine's batch that are kept free for queries of interactive clients; an eighth if not given."""
    run: dict[str, Any] = Field(default_factory=dict)
    """Settings of the runs, as in a run's own file: `allocation`, `scoring`, `dispatch`, `seed`; `budget`, and
    `budget_rate` or `prices` for budgets in money. A batch's metadata goes before them."""
    webhook_url: str | None = Field(default=None, pattern=r"^https?://[^\s]+$")
    """Told of every batch that has ended, by a POST of a JSON event."""
    webhook_secret: str | None = Field(default=None, min_length=16)
    """Signs what the webhook is told."""

    @field_validator("run")
    @classmethod
    def _run_is_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        own = {"run_dir", "input", "engine", "engines", "estimate", "scaling"} & value.keys()
        if own:
            remedy = ": name `engines` beside `batches`" if "engines" in own else ""
            raise ValueError(f"{', '.join(sorted(own))} of a batch's run is set by the server{remedy}")
        return value

    def check_run(self, own: Mapping[str, Any]) -> None:
        """Refuse settings of runs that do not fit each other, or the server's own.

        Args:
            own: What a run has of the server, see `ServeConfig.run_of`.

        Raises:
            ConfigError: They do not.
        """
        rest = {name: setting for name, setting in self.run.items() if name != "budget_rate"}
        asked = self.run if "budget" in self.run else {"budget": a_budget(own.get("prices"))} | rest
        RunConfig.parse({"run_dir": "x"} | asked | dict(own), where="batches.run")


def price_lists(prices: Any) -> dict[str, Prices]:
    """Return price lists by the name of a model; none where they cannot be read, which the settings of a run tell."""
    try:
        return TypeAdapter(PriceLists).validate_python(prices)
    except ValidationError:
        return {}


def a_budget(prices: Any) -> int | str:
    """Return a budget in the unit of prices; tokens where there are none."""
    if prices is None:
        return 1
    return f"1 {next((each.unit for each in price_lists(prices).values() if each.unit is not None), 'USD')}"
