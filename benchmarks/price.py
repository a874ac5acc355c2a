"""How long does the shadow price of a large batch take, and how far is that from one pass over memory?

Prints one JSON line a figure. Every ratio compares two things measured in the same process, one after the other; each
figure runs in a process of its own, so that its peak memory is its own. CPU seconds are the figure of merit, because
the machine may be shared; wall seconds stand beside them.

    python benchmarks/price.py                 all figures, some five minutes on two cores, kept in benchmarks/results/
    python benchmarks/price.py surge_1e6       one of them
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import lambertw

from clear_ray.allocation import (
    DemandSketch,
    ShiftedErlang,
    ShiftedSurge,
    Tabulated,
    Utility,
    allocate,
    solve_shadow_price,
)

AVERAGE_TOKENS = 60  # scarce: about a fifth of the queries of these batches are funded
GRID = np.array([16, 32, 64, 96, 128, 192, 256, 400])
BISECTIONS = 60


def surge(queries: int) -> ShiftedSurge:
    rng = np.random.default_rng(0)
    columns = rng.uniform(0, 500, queries), rng.uniform(0.5, 2, queries), rng.uniform(0.002, 0.01, queries)
    return ShiftedSurge(*columns)


def erlang(queries: int) -> ShiftedErlang:
    rng = np.random.default_rng(0)
    columns = rng.uniform(0, 500, queries), rng.uniform(0, 1, queries), rng.uniform(0.002, 0.05, queries)
    return ShiftedErlang(*columns)


def tabulated(queries: int) -> Tabulated:
    """S-shaped rows: nothing at first, then a rise of random place and height; survival falls along the grid."""
    rng = np.random.default_rng(0)
    success = np.sort(rng.random((queries, GRID.size)), axis=1)
    success *= rng.random((queries, 1))
    spend = rng.random((queries, GRID.size))
    spend += 0.1
    spend *= np.diff(GRID, prepend=0) / 1.1
    np.cumsum(spend, axis=1, out=spend)
    return Tabulated(GRID, success, spend)


def timed(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, CPU seconds and wall seconds of an action."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = action()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def bisected_surge(utility: ShiftedSurge, budget: float) -> float:
    """The plain way: sixty halvings, each with SciPy's Lambert W over all queries."""
    tau, alpha, beta = utility.threshold_tokens_N, utility.alpha_N, utility.beta_N
    low, high = 0.0, float(alpha.max())
    for _ in range(BISECTIONS):
        price = 0.5 * (low + high)
        is_cheap = price < alpha
        w = lambertw(np.where(is_cheap, np.e * price / alpha, 1.0)).real
        is_funded = is_cheap & ((1.0 - w) ** 2 / (beta * w) >= tau)
        fits = np.where(is_funded, tau + (1.0 - w) / beta, 0.0).sum() <= budget
        low, high = (low, price) if fits else (price, high)
    return high


def bisected_erlang(utility: ShiftedErlang, budget: float) -> float:
    tau, s, beta = utility.threshold_tokens_N, utility.solvability_N, utility.beta_N
    low, high = 0.0, float((s * beta).max())
    for _ in range(BISECTIONS):
        price = 0.5 * (low + high)
        q = price / (s * beta)
        is_cheap = q < np.exp(-1.0)
        y = -lambertw(np.where(is_cheap, -q, -0.1), -1).real
        tokens = tau + y / beta
        is_funded = is_cheap & (s * (1.0 - (1.0 + y) * np.exp(-y)) >= price * tokens)
        fits = np.where(is_funded, tokens, 0.0).sum() <= budget
        low, high = (low, price) if fits else (price, high)
    return high


def read_once(utility: Utility) -> float:
    """Touch every number of the curves once."""
    names = ("threshold_tokens_N", "alpha_N", "solvability_N", "beta_N")
    if isinstance(utility, Tabulated):
        return float(utility.success_NK.sum() + utility.spend_NK.sum())
    return float(sum(getattr(utility, name).sum() for name in names if hasattr(utility, name)))


def against_bisection(
    make: Callable[[int], Any], bisect: Callable[[Any, float], float], at_least: float
) -> dict[str, Any]:
    utility, budget = make(10**6), float(AVERAGE_TOKENS * 10**6)
    read = min(timed(lambda: read_once(utility))[1] for _ in range(5))
    solved, cpu, wall = timed(lambda: solve_shadow_price(utility, budget_tokens=budget))
    price, plain_cpu, plain_wall = timed(lambda: bisect(utility, budget))
    # Bisection ends on the feasible side; the price it finds may lie above the lowest one by its last step only.
    assert abs(price / solved.shadow_price - 1.0) < 1e-9
    assert solved.demanded <= budget
    return {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "bisection_cpu_seconds": plain_cpu,
        "bisection_wall_seconds": plain_wall,
        "times_faster": plain_cpu / cpu,
        "wanted": f"times_faster >= {at_least:g}",
        "is_met": plain_cpu / cpu >= at_least,
        "one_read_cpu_seconds": read,
        "times_one_read": cpu / read,
        "gap_of_value": solved.gap / solved.utility,
    }


def against_one_read() -> dict[str, Any]:
    """Median of three: the first of a process pays for the memory that the others find there."""
    budget = float(AVERAGE_TOKENS * 10**6)
    cpus = [priced_cpu(tabulated(10**6)) for _ in range(3)]
    utility = tabulated(10**6)
    read = min(timed(lambda: read_once(utility))[1] for _ in range(5))
    solved = solve_shadow_price(utility, budget_tokens=budget)
    cpu = float(np.median(cpus))
    return {
        "cpu_seconds": cpu,
        "cpu_seconds_all": cpus,
        "one_read_cpu_seconds": read,
        "times_one_read": cpu / read,
        "wanted": "times_one_read <= 40",
        "is_met": cpu / read <= 40,
        "gap_of_value": solved.gap / solved.utility,
    }


def ten_million(make: Callable[[int], Utility]) -> dict[str, Any]:
    """Medians of three, in turn: the first of a process pays for the memory that the others find there."""
    small_cpus, cpus = [], []
    before = peak_bytes()
    for _ in range(3):
        small_cpus.append(priced_cpu(make(10**6)))
        cpus.append(priced_cpu(make(10**7)))
    small_cpu, cpu = float(np.median(small_cpus)), float(np.median(cpus))
    return {
        "cpu_seconds": cpu,
        "cpu_seconds_all": cpus,
        "cpu_seconds_1e6": small_cpu,
        "cpu_seconds_1e6_all": small_cpus,
        "times_1e6": cpu / small_cpu,
        "peak_bytes": peak_bytes(),
        "peak_bytes_before_pricing": before,
        "wanted": "times_1e6 <= 12 and peak_bytes <= 6e9",
        "is_met": cpu / small_cpu <= 12 and peak_bytes() <= 6e9,
    }


def priced_cpu(utility: Utility) -> float:
    return timed(lambda: solve_shadow_price(utility, budget_tokens=AVERAGE_TOKENS * len(utility)))[1]


def whole_allocation(make: Callable[[int], Utility]) -> dict[str, Any]:
    utility = make(10**6)
    allocation, cpu, wall = timed(lambda: allocate(utility, budget_tokens=AVERAGE_TOKENS * 10**6))
    return {"cpu_seconds": cpu, "wall_seconds": wall, "gap_of_value": allocation.gap / allocation.utility}


def sketched(make: Callable[[int], Utility]) -> dict[str, Any]:
    queries, budget = 500_000, AVERAGE_TOKENS * 500_000
    utility, keys = make(queries), np.arange(queries)
    first, first_cpu, _ = timed(lambda: DemandSketch.first_pass(budget_tokens=budget).add(utility, tie_break_N=keys))
    empty = first.second_pass(budget_tokens=budget)
    second, second_cpu, _ = timed(lambda: empty.add(utility, tie_break_N=keys))
    priced = second.price(budget_tokens=budget)
    return {
        "first_pass_microseconds_a_query": first_cpu / queries * 1e6,
        "second_pass_microseconds_a_query": second_cpu / queries * 1e6,
        "first_pass_bytes": len(first.to_bytes()),
        "second_pass_bytes": len(second.to_bytes()),
        "slack_of_budget": priced.slack_tokens / budget,
        "gap_of_value": priced.gap / priced.utility,
    }


def sketched_over_ray() -> dict[str, Any]:
    """Ten million queries over Ray Data on this machine: what the driver holds, and what the two passes take."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    import ray.data

    from clear_ray.batch.dataset_price import price_rows

    queries, budget = 10**7, AVERAGE_TOKENS * 10**7
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=400_000_000)
    price_rows(ray.data.range(1000), surge_rows, budget_tokens=1000)  # Ray Data's own imports and threads
    before = peak_bytes()
    rows = ray.data.range(queries, override_num_blocks=40)
    priced, cpu, wall = timed(lambda: price_rows(rows, surge_rows, budget_tokens=budget))
    assert priced.queries == queries
    grown = peak_bytes() - before
    ray.shutdown()
    return {
        "driver_cpu_seconds": cpu,
        "wall_seconds": wall,
        "driver_peak_bytes_before": before,
        "driver_growth_bytes": grown,
        "slack_of_budget": priced.slack_tokens / budget,
        "gap_of_value": priced.gap / priced.utility,
        "wanted": "driver_growth_bytes <= 200e6",
        "is_met": grown <= 200e6,
    }


def surge_rows(block: Any) -> Any:
    """Curves that depend on the number of the query alone, so that rows need not be stored."""
    from clear_ray.batch.dataset_price import BlockCurves

    index = block["id"].to_numpy()
    uniform = [np.modf(index * step)[0] for step in (0.6180339887498949, 0.7548776662466927, 0.5698402909980532)]
    columns = 500 * uniform[0], 0.5 + 1.5 * uniform[1], 0.002 + 0.008 * uniform[2]
    return BlockCurves(index, ShiftedSurge(*columns), tie_break_N=index)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    "surge_1e6": lambda: against_bisection(surge, bisected_surge, 15.0),
    "erlang_1e6": lambda: against_bisection(erlang, bisected_erlang, 8.0),
    "tabulated_1e6": against_one_read,
    "surge_1e7": lambda: ten_million(surge),
    "erlang_1e7": lambda: ten_million(erlang),
    "tabulated_1e7": lambda: ten_million(tabulated),
    "allocate_surge_1e6": lambda: whole_allocation(surge),
    "allocate_erlang_1e6": lambda: whole_allocation(erlang),
    "allocate_tabulated_1e6": lambda: whole_allocation(tabulated),
    "sketch_surge": lambda: sketched(surge),
    "sketch_tabulated": lambda: sketched(tabulated),
    "sketch_over_ray_1e7": sketched_over_ray,
}


def main(names: list[str]) -> None:
    if len(names) == 1:
        print(json.dumps({"figure": names[0], **FIGURES[names[0]]()}), flush=True)
        return
    lines = []
    for name in names or FIGURES:  # this file, by names from its own table
        ran = subprocess.run([sys.executable, __file__, name], check=True, stdout=subprocess.PIPE, text=True)
        lines.append(ran.stdout.splitlines()[-1])
        print(lines[-1], flush=True)
    now = datetime.now(UTC)
    kept = Path(__file__).parent / "results" / f"price-{now:%Y-%m-%d}.json"
    kept.parent.mkdir(exist_ok=True)
    about = {
        "command": " ".join(["python benchmarks/price.py", *names]),
        "ended": now.isoformat(),
        "machine": machine(),
    }
    kept.write_text(json.dumps({**about, "figures": [json.loads(line) for line in lines]}, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "processor": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("numpy", "scipy", "ray")},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
