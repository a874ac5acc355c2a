"""Utility curves, the shadow price and the allocation: pure NumPy and SciPy.

The method in twenty minutes, in this order:

    utility                           what a family of curves can answer
    surge, erlang, threshold_curve    curves with a formula: the paper's, ours, and what both share
    tabulated, in_blocks              curves as points, from competing risks; of many queries a block at a time
    price                             the lowest price at which demand fits, and its certificate
    allocate, ties, slack, spread     whole tokens for every query: ties, slack, an unspent budget

What those files rest on, to be read when a number is in doubt:

    price_grid, units                 prices and sums as whole numbers: why every order gives the same bits
    demand, search                    total demand, and where it meets the budget
    envelope, grid, lambert, columns  envelopes of many rows, tables, inverse slopes, checked columns

What is built on them:

    frontier, groups, baselines       other budgets, several budgets, what an allocation must beat
    rollouts, rollout_groups          groups of rollouts for reinforcement learning, at once and as they come
    sketch, sketch_price              the same price for a batch that no machine holds
"""

from clear_ray.allocation.allocate import Allocation, allocate
from clear_ray.allocation.baselines import proportional, smallest_threshold, uniform
from clear_ray.allocation.erlang import ShiftedErlang
from clear_ray.allocation.frontier import DemandCurve, RequiredBudget, budget_for, demand_curve
from clear_ray.allocation.groups import GroupAllocation, allocate_groups
from clear_ray.allocation.price import ShadowPrice, solve_shadow_price
from clear_ray.allocation.rollout_groups import RolloutGroups
from clear_ray.allocation.rollouts import RolloutAllocation, allocate_rollouts
from clear_ray.allocation.sketch import DemandSketch
from clear_ray.allocation.sketch_price import SketchPrice
from clear_ray.allocation.surge import ShiftedSurge
from clear_ray.allocation.tabulated import Tabulated
from clear_ray.allocation.utility import Utility

__all__ = [
    "Allocation",
    "DemandCurve",
    "DemandSketch",
    "GroupAllocation",
    "RequiredBudget",
    "RolloutAllocation",
    "RolloutGroups",
    "ShadowPrice",
    "ShiftedErlang",
    "ShiftedSurge",
    "SketchPrice",
    "Tabulated",
    "Utility",
    "allocate",
    "allocate_groups",
    "allocate_rollouts",
    "budget_for",
    "demand_curve",
    "proportional",
    "smallest_threshold",
    "solve_shadow_price",
    "uniform",
]
