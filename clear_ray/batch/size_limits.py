"""From what size on a batch is handled where its rows are, by Ray Data, and no longer in the driver.

A small batch is the driver's: each process of Ray Data takes a second of a core before its first row.
"""

from __future__ import annotations

from clear_ray.config.run import RunConfig

SKETCH_ABOVE_QUERIES = 100_000
"""Larger batches are priced from sketches, on all machines; one process takes two seconds to clear so many, and loses no
slack."""
SPREAD_ABOVE_QUERIES = 2_048
"""Larger batches have what is computed of each prompt computed by Ray Data."""
SORTED_BY_RAY_ABOVE_ROWS = 2_000_000
"""More rows than these are put in order by Ray Data, which takes many times the CPU and has all machines for it."""


def is_sketched(queries: int, setting: bool | None = None) -> bool:
    """Return whether a batch is priced from sketches: as the setting says, or by its size if it says nothing."""
    return queries > SKETCH_ABOVE_QUERIES if setting is None else setting


def is_sketched_run(config: RunConfig, queries: int) -> bool:
    """Return whether a run of so many queries is priced where its estimates are."""
    allocation = config.allocation
    if allocation.policy != "clear_ray" or config.most_attempts > 1:  # plans of several attempts add up to no sketch
        return False
    return is_sketched(queries, allocation.sketched)


def most_held(config: RunConfig, queries: int) -> int | None:
    """Return of how many queries the driver holds curves at most while prompts are read; None: of all."""
    return SKETCH_ABOVE_QUERIES if is_sketched_run(config, queries) else None


def is_spread(queries: int) -> bool:
    """Return whether rows of so many queries are mapped by Ray Data."""
    return queries > SPREAD_ABOVE_QUERIES
