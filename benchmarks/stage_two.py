"""How much of the engine's speed is left when the whole second stage stands around it?

One run of `clear-ray run` on local Ray with the embedded model, all queries under one ceiling, one round; then the
same engine by itself, in a process without Ray, with the same grants in the same order. Greedy, so both generate the same
tokens, which is checked. Prints one JSON line.

    python benchmarks/stage_two.py                  some six minutes on two idle cores
    python benchmarks/stage_two.py --queries 96 --ceiling 48
    python benchmarks/stage_two.py --engine '{"kind": "vllm", "model": "FOLDER"}'       the same with vLLM

What is in the line:
    stage2_tokens_per_second    of wall time, from the opening of the round to its last row on disk
    direct_tokens_per_second    of the engine driven directly
    share                       the first over the second
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from clear_ray.batch.run import run
from clear_ray.config.run import RunConfig
from clear_ray.engine.base import Grant
from clear_ray.engine.build import build_engine
from clear_ray.run_folder.grants import read_grants
from clear_ray.stages.probe import prompts_of
from clear_ray.storage import open_folder

CHECKOUT = Path(__file__).resolve().parents[1]
DEMO = CHECKOUT / "jobs" / "configs" / "demo.yaml"
RECORDED = CHECKOUT / "tests" / "data" / "rollouts" / "queries.parquet"
"""Asked where reasoning-gym, which makes the demo's queries, is not installed."""


def configured(folder: str, queries: int, ceiling: int, engine: str | None) -> RunConfig:
    """Return the demo with so many queries under one ceiling, which its budget pays for; with its engine, or another."""
    demo = RunConfig.load(DEMO)
    other = {} if engine is None else {"engine": json.loads(engine), "estimate": {}}
    each = -(-queries // len(demo.input.tasks))
    tasks = [{**task.model_dump(), "count": each} for task in demo.input.tasks]
    asked, many = demo.input.model_dump() | {"tasks": tasks}, each * len(tasks)
    if importlib.util.find_spec("reasoning_gym") is None:
        asked, many = {"path": str(RECORDED)}, pq.read_metadata(RECORDED).num_rows
        other |= {"scoring": {}}
    settings = demo.model_dump() | {
        "run_dir": f"{folder}/run",
        "budget": ceiling * many,
        "input": asked,
        "allocation": demo.allocation.model_dump() | {"policy": "uniform", "max_tokens": ceiling, "max_rounds": 1},
    }
    return RunConfig.parse(settings | other)


async def answered(engine: Any, grants: list[Grant]) -> int:
    return sum([len(generation.token_ids) async for generation in engine.generate(grants)])


def direct(run_dir: str) -> None:
    """Print what the engine by itself takes for the grants of a finished run."""
    folder = open_folder(run_dir)
    config = RunConfig.parse(json.loads(folder.read("manifest.json"))["config"])
    found = read_grants(folder, 1)
    assert found is not None
    rows = pq.read_table(folder.child("queries").files(".parquet"), filesystem=folder.filesystem).sort_by("index")
    prompts, names = prompts_of(rows), rows["query_id"].to_pylist()
    tokens_N = dict(zip(found.clearing.index_M.tolist(), found.clearing.tokens_M.tolist(), strict=True))
    grants = [Grant(names[n], prompts[n], tokens_N[n]) for n in sorted(tokens_N, key=lambda n: -tokens_N[n])]
    engine = build_engine(config.engine)
    asyncio.run(answered(engine, grants[:1]))
    started = time.perf_counter()
    tokens = asyncio.run(answered(engine, grants))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "tokens": tokens, "threads": torch.get_num_threads()}))
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=208)
    parser.add_argument("--ceiling", type=int, default=96)
    parser.add_argument("--engine", help="settings of another engine than the demo's, as JSON")
    parser.add_argument("--direct", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.direct:
        direct(options.direct)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = run(None, configured(folder, options.queries, options.ceiling, options.engine)).report
        command = [sys.executable, __file__, "--direct", f"{folder}/run"]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    alone = json.loads(ended.stdout.splitlines()[-1])
    seconds = sum(one.seconds for one in report.rounds)
    assert report.generated_tokens == alone["tokens"], (report.generated_tokens, alone)
    staged, by_itself = report.generated_tokens / seconds, alone["tokens"] / alone["seconds"]
    print(
        json.dumps(
            {
                "figure": "stage_two",
                "queries": report.queries,
                "tokens": alone["tokens"],
                "stage2_tokens_per_second": round(staged, 1),
                "direct_tokens_per_second": round(by_itself, 1),
                "share": round(staged / by_itself, 3),
                "stage2_seconds": round(seconds, 1),
                "run_seconds": round(report.seconds, 1),
                "threads": alone["threads"],
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
