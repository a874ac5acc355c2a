"""How near does the engine over HTTP come to what an endpoint takes, without being told, and how often is it turned away?

A server of ours in a process of its own takes so many calls at once, or so many a second, and answers 429 to all others, with
`Retry-After` or without. The engine knows neither number. Ideal is what the server could have answered in the time from the
first call to the last answer, slow start and end included. On a busy machine a call takes longer than the server means it to:
`share_of_slots` is how much of the time its places were taken, whatever that was. Prints one JSON line.

    python benchmarks/endpoint.py [--seconds 100] [--call-seconds 4] [--at-once 32] [--per-second 10] [--limits told]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from clear_ray.config.engine import OpenAIConfig
from clear_ray.engine.base import Grant
from clear_ray.engine.endpoint.engine import OpenAIEngine

ROOT = Path(__file__).resolve().parents[1]
TOKENS = 12


@contextmanager
def serving(behaviour: dict[str, Any], facts: dict[str, Any]) -> Iterator[str]:
    """Run the server; yield its address, and put into `facts` what it has to say at its end."""
    command = [sys.executable, "-m", "tests.endpoint_server", json.dumps(behaviour)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        said, _ = process.communicate()
        facts |= json.loads(said)


async def answered(engine: OpenAIEngine, calls: int) -> float:
    """Have so many calls answered; return the seconds that took."""
    started = time.monotonic()
    grants = [Grant(f"q{number}", "write 8", TOKENS) for number in range(calls)]
    generations = [generation async for generation in engine.generate(grants)]
    assert all(generation.text and not generation.error for generation in generations)
    return time.monotonic() - started


def measured(
    behaviour: dict[str, Any], *, ideal_per_second: float, seconds: float, call_seconds: float
) -> dict[str, Any]:
    """Return what one limit gave."""
    calls = round(ideal_per_second * seconds)
    facts: dict[str, Any] = {}
    with serving({"seconds": call_seconds, **behaviour}, facts) as base_url:
        settings = {"base_url": base_url, "model": "words", "continuation": "none", "max_batch": 1_000}
        engine = OpenAIEngine(OpenAIConfig.model_validate(settings))
        took = asyncio.run(_with_loop(engine, calls))
        counts = took["counts"]
    rate = calls / took["seconds"]
    limited, slots = counts.get("limited", 0), behaviour.get("most_at_once")
    return {
        "server": behaviour,
        "calls": calls,
        "seconds": round(took["seconds"], 2),
        "calls_per_second": round(rate, 2),
        "ideal_per_second": ideal_per_second,
        "share_of_ideal": round(rate / ideal_per_second, 4),
        "share_of_slots": round(facts["busy_seconds"] / (slots * took["seconds"]), 4) if slots else None,
        "limited": limited,
        "share_limited": round(limited / (calls + limited), 4),
    }


async def _with_loop(engine: OpenAIEngine, calls: int) -> dict[str, Any]:
    seconds = await answered(engine, calls)
    return {"seconds": seconds, "counts": engine.counts}


def main() -> None:
    """Measure each limit and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--call-seconds", type=float, default=4.0)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--per-second", type=float, default=10.0)
    parser.add_argument("--limits", default="at_once,told,per_second", help="which of the three, separated by commas")
    asked = parser.parse_args()
    at_once = {"most_at_once": asked.at_once}
    per_second = {"per_second": asked.per_second, "burst": asked.per_second}
    told = {"retry_after": "seconds", "retry_after_seconds": 1}
    times = {"seconds": asked.seconds, "call_seconds": asked.call_seconds}
    limits: dict[str, tuple[dict[str, Any], float]] = {
        "at_once": (at_once, asked.at_once / asked.call_seconds),
        "told": (at_once | told, asked.at_once / asked.call_seconds),
        "per_second": (per_second | told, asked.per_second),
    }
    found = [
        measured(behaviour, ideal_per_second=ideal, **times)
        for behaviour, ideal in (limits[name] for name in asked.limits.split(","))
    ]
    row = {"benchmark": "endpoint", "date": date.today().isoformat(), "command": " ".join(["python", *sys.argv])}
    print(json.dumps(row | {"call_seconds": asked.call_seconds, "load": os.getloadavg()[1], "limits": found}))


if __name__ == "__main__":
    main()
