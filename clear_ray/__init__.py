"""LLM batch inference under one budget: probe, price, generate, settle.

`run` answers a batch on Ray; `allocate` and the curves are the mathematics alone and need no cluster. Every name is loaded on
first use: a worker process that imports one stage does not pay for SciPy, and the mathematics does not pay for Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clear_ray.allocation import (
        Allocation,
        RolloutGroups,
        ShiftedErlang,
        ShiftedSurge,
        Tabulated,
        allocate,
        allocate_rollouts,
        solve_shadow_price,
    )
    from clear_ray.batch.plan import plan
    from clear_ray.batch.run import RunResult, run
    from clear_ray.config.run import RunConfig
    from clear_ray.engine.base import Engine
    from clear_ray.engine.replay import ReplayEngine
    from clear_ray.errors import ClearRayError
    from clear_ray.report.summary import RunReport

__all__ = [
    "Allocation",
    "ClearRayError",
    "Engine",
    "ReplayEngine",
    "RolloutGroups",
    "RunConfig",
    "RunReport",
    "RunResult",
    "ShiftedErlang",
    "ShiftedSurge",
    "Tabulated",
    "allocate",
    "allocate_rollouts",
    "plan",
    "run",
    "solve_shadow_price",
]

_HOME = {
    "Allocation": "clear_ray.allocation",
    "ClearRayError": "clear_ray.errors",
    "Engine": "clear_ray.engine.base",
    "ReplayEngine": "clear_ray.engine.replay",
    "RolloutGroups": "clear_ray.allocation",
    "RunConfig": "clear_ray.config.run",
    "RunReport": "clear_ray.report.summary",
    "RunResult": "clear_ray.batch.run",
    "ShiftedErlang": "clear_ray.allocation",
    "ShiftedSurge": "clear_ray.allocation",
    "Tabulated": "clear_ray.allocation",
    "allocate": "clear_ray.allocation",
    "allocate_rollouts": "clear_ray.allocation",
    "plan": "clear_ray.batch.plan",
    "run": "clear_ray.batch.run",
    "solve_shadow_price": "clear_ray.allocation",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
