"""How long does a run take from its command to its first reservation, and how much CPU time?

Prints one JSON line. Starts `clear-ray run` again and again, of this checkout and, if there is one, of another in turn, each
time into a folder of its own, and ends it when the first reservation is in its journal. The machine should be quiet.

    git worktree add /tmp/before 28fe560
    python benchmarks/start.py --before /tmp/before         about 2 minutes on 2 cores
    python benchmarks/start.py --config my.yaml --times 5

What is in the line, for `now` and `before`:
    seconds         from the start of the command to the first reservation, of each time
    cpu_seconds     CPU time of all of its processes by then
    processes       how many there were by then
    cpu_of          the CPU time of each of them that had more than a quarter of a second, of the last time
and `ratio`, the median of `now` over that of `before`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parents[1]
_LOOK_SECONDS, _WORTH_NAMING_SECONDS = 0.02, 0.25
_PATIENCE_SECONDS = 240.0


def first_reservation(checkout: Path, config: Path, overrides: list[str]) -> dict[str, Any]:
    """Start a run and end it at its first reservation; return what it took."""
    with tempfile.TemporaryDirectory() as made:
        run_dir = Path(made) / "run"
        chosen = [part for override in (f"run_dir={run_dir}", *overrides) for part in ("--set", override)]
        command = [sys.executable, "-P", "-m", "clear_ray.cli", "run", "--quiet", "--config", str(config), *chosen]
        environment = os.environ | {"PYTHONPATH": str(checkout), "RAY_AUTH_MODE": "disabled"}
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_for(run_dir / "journal.jsonl", process, started)
            seconds = time.perf_counter() - started
            return {"seconds": round(seconds, 2), **cost_of(process.pid)}
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def wait_for(journal: Path, process: subprocess.Popen[bytes], started: float) -> None:
    """Return when a journal holds a reservation."""
    while not (journal.exists() and b'"reserve"' in journal.read_bytes()):
        if process.poll() is not None or time.perf_counter() - started > _PATIENCE_SECONDS:
            raise SystemExit(f"no reservation, exit code {process.returncode}")
        time.sleep(_LOOK_SECONDS)


def cost_of(pid: int) -> dict[str, Any]:
    """Return the CPU time of a process and all below it so far, and how many they are."""
    spent, named = 0.0, []
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for member in family:
        try:
            times, words = member.cpu_times(), member.cmdline()
        except psutil.Error:
            continue
        own = times.user + times.system
        spent += own + times.children_user + times.children_system
        scripts = [word.rpartition("/")[2] for word in words if word.endswith(".py")]
        name = "driver" if member.pid == pid else (scripts or [" ".join(words)[:60].rpartition("/")[2]])[0]
        if own > _WORTH_NAMING_SECONDS:
            named.append((name, round(own, 1)))
    named.sort(key=lambda one: -one[1])
    return {"cpu_seconds": round(spent, 1), "processes": len(family), "cpu_of": named}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE / "jobs" / "configs" / "demo.yaml")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--before", type=Path, help="Another checkout to compare with.")
    parser.add_argument("--times", type=int, default=3)
    chosen = parser.parse_args()
    checkouts = {"now": HERE} | ({"before": chosen.before.resolve()} if chosen.before else {})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for _ in range(chosen.times):
        for name, checkout in checkouts.items():
            found[name].append(first_reservation(checkout, chosen.config.resolve(), chosen.overrides))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    said: dict[str, Any] = {"benchmark": "start", "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    said |= {"command": " ".join(sys.argv), "config": chosen.config.name}
    for name, times in found.items():
        said[name] = {key: [one[key] for one in times] for key in times[0]} | {"cpu_of": times[-1]["cpu_of"]}
    if "before" in found:
        now, before = (statistics.median(said[name]["seconds"]) for name in ("now", "before"))
        said["ratio"] = round(now / before, 3)
    said["machine"] = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
