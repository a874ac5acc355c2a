"""Utility curves, the shadow price and the allocation: pure NumPy and SciPy."""

from clear_ray.allocation.allocate import Allocation, allocate
from clear_ray.allocation.baselines import proportional, smallest_threshold, uniform
from clear_ray.allocation.erlang import ShiftedErlang
from clear_ray.allocation.price import ShadowPrice, solve_shadow_price
from clear_ray.allocation.surge import ShiftedSurge
from clear_ray.allocation.tabulated import Tabulated
from clear_ray.allocation.utility import Utility

__all__ = [
    "Allocation",
    "ShadowPrice",
    "ShiftedErlang",
    "ShiftedSurge",
    "Tabulated",
    "Utility",
    "allocate",
    "proportional",
    "smallest_threshold",
    "solve_shadow_price",
    "uniform",
]
