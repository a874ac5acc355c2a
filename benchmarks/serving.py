"""Does the online price bring more correct answers per second than uniform ceilings, at equal tokens per second?

One run, two applications on the same Ray Serve with the same replayed engine: `priced` is clear_ray's server, `uniform` the
same server with a budget that never binds and every query asking for the one ceiling that spends the budget at the mean
load. Arrivals are open-loop (Poisson) with a step up and a step down. Prints one JSON line.

    python benchmarks/serving.py --head-dir HEAD [--seconds 60] [--tokens-per-second 600] [--uniform-max-tokens 175]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import time
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
from ray import serve

from clear_ray.cluster import joined_cluster
from clear_ray.serve.app import application
from clear_ray.serve.settings import ServeConfig

ROLLOUTS = Path(__file__).resolve().parents[1] / "tests/data/rollouts"
LOADS = (4.0, 8.0, 4.0)  # queries a second, in three equal parts


def settings(head_dir: str | None, price: dict[str, Any]) -> ServeConfig:
    engine = {
        "kind": "replay",
        "rollouts": str(ROLLOUTS / "rollouts.parquet"),
        "features": str(ROLLOUTS / "features.parquet"),
        "tokens_per_second": 100.0,
        "max_batch": 64,
    }
    return ServeConfig.parse(
        {"engine": engine, "estimate": {"head": head_dir}, "price": price, "model_name": "replay", "max_tokens": 400}
    )


async def drive(url: str, rows: list[dict[str, Any]], *, seconds: float, max_tokens: int) -> dict[str, Any]:
    """Send queries in an open loop and return what came of them."""
    client, rng = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120), random.Random(0)
    found: list[dict[str, Any]] = []

    async def one(row: dict[str, Any], at: float) -> None:
        started, first, text, usage = time.perf_counter(), 0.0, "", None
        try:
            stream = await client.chat.completions.create(
                model="replay",
                messages=[{"role": "user", "content": row["question"]}],
                metadata={"query_id": row["query_id"]},
                max_tokens=max_tokens,
                stream=True,
                stream_options={"include_usage": True},
            )
            async for chunk in stream:
                delta = chunk.choices[0].delta.content if chunk.choices else None
                first = first or (time.perf_counter() - started if delta else 0.0)
                text, usage = text + (delta or ""), chunk.usage or usage
        except openai.APIStatusError as error:
            found.append({"at": at, "code": error.status_code, "tokens": 0, "correct": False})
            return
        account = usage.model_extra["clear_ray"] if usage and usage.model_extra else {}
        is_whole = text == row["text"]
        found.append(
            {
                "at": at,
                "code": 200,
                "tokens": account.get("spent_tokens", 0),
                "price": account.get("shadow_price"),
                "correct": bool(row["correct"] and is_whole),
                "first": first,
            }
        )

    tasks, now, start = [], 0.0, time.perf_counter()
    while now < seconds:
        now += rng.expovariate(LOADS[min(int(now / seconds * len(LOADS)), len(LOADS) - 1)])
        await asyncio.sleep(max(0.0, start + now - time.perf_counter()))
        tasks.append(asyncio.create_task(one(rng.choice(rows), now)))
    await asyncio.gather(*tasks)
    took = time.perf_counter() - start
    firsts = sorted(entry["first"] for entry in found if entry.get("first"))
    return {
        "queries": len(found),
        "answered": sum(entry["code"] == 200 for entry in found),
        "correct_per_second": sum(entry["correct"] for entry in found) / took,
        "tokens_per_second": sum(entry["tokens"] for entry in found) / took,
        "first_token_seconds_p50": firsts[len(firsts) // 2],
        "first_token_seconds_p95": firsts[int(len(firsts) * 0.95)],
        "price_trace": [
            [round(entry["at"], 1), entry["price"]] for entry in found[:: max(1, len(found) // 15)] if "price" in entry
        ],
    }


async def overhead_seconds(url: str, row: dict[str, Any]) -> float:
    """Return the median seconds of a query for one token: read, buy, write and settle, one after another."""
    client, seconds = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0), []
    for _ in range(30):
        started = time.perf_counter()
        await client.chat.completions.create(
            model="replay",
            messages=[{"role": "user", "content": "?"}],
            metadata={"query_id": row["query_id"]},
            max_tokens=1,
        )
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--head-dir")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tokens-per-second", type=int, default=600)
    parser.add_argument("--uniform-max-tokens", type=int, help="ceiling of `uniform`; set it so that both spend alike")
    arguments = parser.parse_args()
    rows = [row for row in pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist() if row["sample"] == 0]
    budget = arguments.tokens_per_second
    ceiling = arguments.uniform_max_tokens or int(budget / (sum(LOADS) / len(LOADS)))
    base = {"clearing_seconds": 1.0, "window_seconds": 10.0, "deadline_seconds": 10.0}
    scarce = base | {"budget_tokens_per_second": budget, "carry_over_tokens": 5 * budget}
    ample = base | {"budget_tokens_per_second": 10**6, "carry_over_tokens": 10**6}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result: dict[str, Any] = {"budget_tokens_per_second": budget, "uniform_max_tokens": ceiling}
    with joined_cluster():
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        for name, price, max_tokens in (("uniform", ample, ceiling), ("priced", scarce, 400)):
            serve.run(application(settings(arguments.head_dir, price)), name=name, route_prefix=f"/{name}")
            url = f"http://127.0.0.1:{port}/{name}/v1"
            result[name] = asyncio.run(drive(url, rows, seconds=arguments.seconds, max_tokens=max_tokens))
            if name == "uniform":
                result["one_token_query_seconds"] = asyncio.run(overhead_seconds(url, rows[0]))
            serve.delete(name)
        serve.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
