"""LLM batch inference under one budget: probe, price, generate, settle.

`run` answers a batch on Ray; `allocate` and the curves are the mathematics alone and need no cluster. Names that need Ray
are loaded on first use, so that the mathematics stays light to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clear_ray.allocation import (
    Allocation,
    ShiftedErlang,
    ShiftedSurge,
    Tabulated,
    allocate,
    solve_shadow_price,
)
from clear_ray.config import RunConfig
from clear_ray.engine.base import Engine
from clear_ray.errors import ClearRayError
from clear_ray.report.summary import RunReport

if TYPE_CHECKING:
    from clear_ray.engine.replay import ReplayEngine
    from clear_ray.pipeline import RunResult, plan, run

__all__ = [
    "Allocation",
    "ClearRayError",
    "Engine",
    "ReplayEngine",
    "RunConfig",
    "RunReport",
    "RunResult",
    "ShiftedErlang",
    "ShiftedSurge",
    "Tabulated",
    "allocate",
    "plan",
    "run",
    "solve_shadow_price",
]

_LOADED_ON_USE = {
    "ReplayEngine": "clear_ray.engine.replay",
    "RunResult": "clear_ray.pipeline",
    "plan": "clear_ray.pipeline",
    "run": "clear_ray.pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _LOADED_ON_USE:
        return getattr(import_module(_LOADED_ON_USE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
