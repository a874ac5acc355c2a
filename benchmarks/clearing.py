"""How long do engines wait for a clearing: from the last answer that it waits for to the first of its grants at an engine?

Prints one JSON line. Runs `clear-ray run` on Ray with ReplayEngine at so many tokens a second, over some of the recorded
queries, of which nothing is known: the run learns from its own answers, so a clearing is a fit and a price. All times are
read from the run folder afterwards. A caller writes down when an answer had come (`ended_at`) and how long before it had
asked an engine for it (`seconds`); an answer took as long as its tokens take at the rate.

    python benchmarks/clearing.py                         a minute on 2 cores
    python benchmarks/clearing.py --queries 199 --tokens 24

What is in the line:
    seconds         of each clearing after the first, as above; of those beside running grants likewise
    median, most    of them
    to_disk         part of it until the answer was in its file, the median
    to_grants       part of it from there until the grants were on disk: hand-over, fit and price
    to_engine       part of it from there until an engine was asked: dispatch, rows, reservation
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

ROLLOUTS = Path(__file__).resolve().parents[1] / "tests" / "data" / "rollouts"
TOKENS_A_SECOND = 100.0


def run(folder: Path, queries: int, tokens: float) -> None:
    """Run a batch in a folder."""
    pq.write_table(pq.read_table(ROLLOUTS / "queries.parquet").slice(0, queries), folder / "queries.parquet")
    engine = {name: str(ROLLOUTS / f"{name}.parquet") for name in ("rollouts", "features")}
    settings = {
        "run_dir": str(folder / "run"),
        "input": {"path": str(folder / "queries.parquet")},
        "budget": int(tokens * queries),
        "engine": {"kind": "replay", "max_batch": 32, "tokens_per_second": TOKENS_A_SECOND, **engine},
        "allocation": {"max_tokens": 160},
        "scoring": {"scorer": "clear_ray.tasks.recorded:score_recorded"},
        "dispatch": {"rows_per_file": 1},  # so that a file says of each answer when it was written
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "clear_ray.cli", "run", "--config", str(folder / "run.yaml"), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"RAY_AUTH_MODE": "disabled"})


def waits(run_dir: Path) -> list[dict[str, float]]:
    """Return what each clearing after the first took, in its parts."""
    answers: list[tuple[float, float]] = []  # when each ended at its engine, and when it was in its file
    asked: dict[int, float] = {}
    for path in sorted((run_dir / "rounds").glob("r*/*.parquet")):
        for row in pq.read_table(path, columns=["round", "attempt_tokens", "seconds", "ended_at"]).to_pylist():
            asked_at = row["ended_at"] - row["seconds"]
            asked[row["round"]] = min(asked.get(row["round"], asked_at), asked_at)
            answers.append((asked_at + row["attempt_tokens"] / TOKENS_A_SECOND, path.stat().st_mtime))
    found = []
    for number in sorted(asked)[1:]:
        granted_at = (run_dir / "grants" / f"r{number:02d}.parquet").stat().st_mtime
        ended_at, written_at = max((ended, written) for ended, written in answers if written < granted_at)
        parts = {"to_disk": written_at - ended_at, "to_grants": granted_at - written_at}
        parts |= {"to_engine": asked[number] - granted_at, "seconds": asked[number] - ended_at}
        found.append(parts)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=104)
    parser.add_argument("--tokens", type=float, default=24.0, help="average budget of a query")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        run(Path(made), chosen.queries, chosen.tokens)
        found = waits(Path(made) / "run")
    seconds = [parts["seconds"] for parts in found]
    medians = {name: round(statistics.median(parts[name] for parts in found), 3) for name in found[0]}
    machine: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    machine["load"] = round(os.getloadavg()[0], 1)
    said = {"benchmark": "clearing", "date": f"{datetime.now(UTC):%Y-%m-%d}", "command": " ".join(sys.argv)}
    said |= {"queries": chosen.queries, "clearings": len(found), "median": medians.pop("seconds"), **medians}
    said |= {"most": round(max(seconds), 3), "seconds": [round(each, 3) for each in seconds], "machine": machine}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
