"""What does vLLM cost beside our own continuous batch, on the same grants, and what does a continued query cost with it?

Prints one JSON line. Both engines run in one process, one after the other, through the Engine protocol, on heavy-tailed
grants (mean 96, most 512), longest first, no answer stopping by itself. CPU seconds count vLLM's own processes too. To be
run in the environment of `make test-vllm`:

    .venv-vllm/bin/python benchmarks/vllm_throughput.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
from throughput import MOST_TOKENS, Seconds, demo_prompts, heavy_tailed_grants, per_second

from clear_ray.config.engine import TransformersConfig, VllmConfig
from clear_ray.engine import Engine, Grant, TransformersEngine, VllmEngine
from clear_ray.engine.smollm2 import EMBEDDED_MODEL


def cpu_seconds() -> float:
    """Return the processor time of this process and its living children."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def timed(action: Callable[[], Any]) -> tuple[Any, Seconds]:
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = action()
    return result, Seconds(cpu_seconds() - cpu, time.perf_counter() - wall)


def run_all(engine: Engine, grants: list[Grant]) -> dict[str, tuple[int, ...]]:
    async def collect() -> dict[str, tuple[int, ...]]:
        return {answer.query_id: answer.token_ids async for answer in engine.generate(grants)}

    return asyncio.run(collect())


def measure(engine: Any, grants: list[Grant]) -> dict[str, Any]:
    """Time probe, grants and continuations; `cached_tokens` is vLLM's own count of what it did not compute again."""
    run_all(engine, [replace(grants[-1], query_id="warm", max_tokens=4)])
    names, prompts = [grant.query_id for grant in grants], [grant.prompt for grant in grants]
    _, probe = timed(lambda: engine.prefill(names, prompts))
    before = getattr(engine, "cached_tokens", 0)
    answers, generation = timed(lambda: run_all(engine, grants))
    from_probe = getattr(engine, "cached_tokens", 0) - before
    rests = [replace(grant, max_tokens=1, prefix_token_ids=answers[grant.query_id]) for grant in grants]
    before = getattr(engine, "cached_tokens", 0)
    _, continuation = timed(lambda: run_all(engine, rests))
    tokens = sum(map(len, answers.values()))
    return {
        "tokens": tokens,
        "tokens_per_second": per_second(tokens, generation),
        "probe_share": {"cpu": round(probe.cpu / generation.cpu, 4), "wall": round(probe.wall / generation.wall, 4)},
        "cached_from_probe": from_probe,
        "continuation_seconds": {"cpu": round(continuation.cpu, 2), "wall": round(continuation.wall, 2)},
        "continuation_tokens": sum(engine.prompt_tokens(prompts)) + tokens,
        "cached_in_continuation": getattr(engine, "cached_tokens", 0) - before,
        "load": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cpu-cache-gib", type=float, default=1.0)
    options = parser.parse_args()
    grants = [
        Grant(f"q{i}", prompt, tokens)
        for i, (prompt, tokens) in enumerate(
            zip(demo_prompts(options.queries), heavy_tailed_grants(options.queries), strict=True)
        )
    ]
    grants.sort(key=lambda grant: -grant.max_tokens)
    shared = {
        "model": options.model,
        "dtype": options.dtype,
        "max_batch": options.batch,
        "max_context_tokens": 2 * MOST_TOKENS,
    }
    ours = TransformersEngine(TransformersConfig(threads=1, **shared))
    ours._thread._batch._end_token_ids = frozenset()  # type: ignore[attr-defined]
    found = {"slots": measure(ours, grants)}
    ours.close()
    vllm = VllmEngine(VllmConfig(cpu_cache_gib=options.cpu_cache_gib, enforce_eager=True, **shared))
    vllm._thread._decoding = replace(vllm._thread._decoding, end_token_ids=())
    found["vllm"] = measure(vllm, grants)
    vllm.close()
    rates = [found[name]["tokens_per_second"]["cpu"] for name in ("vllm", "slots")]
    found["vllm_over_slots"] = {"cpu": round(rates[0] / rates[1], 2)}
    print(json.dumps({"benchmark": "vllm_throughput", "settings": vars(options), **found}))


if __name__ == "__main__":
    main()
