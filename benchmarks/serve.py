"""Does the online price bring more correct answers per second than uniform ceilings, at equal tokens per second?

One run, two applications on the same Ray Serve with the same replayed engine: `priced` is clear_ray's server; `plain` is a
bare FastAPI ingress before the engine, without probe and price, that gives every query the same ceiling. Both see the
same queries at the same times: open-loop (Poisson) arrivals with a step up and a step down. The ceiling is chosen after the
priced run, with what only hindsight knows: of all ceilings the one that spends most nearly what the priced server spent on
exactly these queries. Prints one JSON line for each budget.

    python benchmarks/serve.py [--budgets 150 300] [--seconds 45] [--head-dir HEAD]
    python benchmarks/serve.py --overhead [--streams 1 200 1000] [--times 3]

The second asks what the server costs: the same events from the same engine, with a price that binds no query, by both
applications in turns. It prints the seconds of each and their ratios.

What a batch over HTTP costs beside `clear-ray run` is another question: `python benchmarks/serve_batches.py`.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pyarrow.parquet as pq
from fastapi import FastAPI
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

from clear_ray.calibrate import fit_recorded
from clear_ray.cluster.joining import joined_cluster
from clear_ray.engine import Grant
from clear_ray.serve.app import application
from clear_ray.serve.deployments import EngineReplica
from clear_ray.serve.settings import ServeConfig

ROLLOUTS = Path(__file__).resolve().parents[1] / "tests/data/rollouts"
# No postponed annotations here: FastAPI resolves them in a copy that Serve makes.
LOADS = (4.0, 8.0, 4.0)  # queries a second, in three equal parts
CAP_TOKENS = 400
PIECE_TOKENS = 16
Arrivals = list[tuple[float, dict[str, Any]]]

plain_api = FastAPI()


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=10_000)
@serve.ingress(plain_api)
class Plain:
    """Serve as one would write it first: one ceiling, one call to the engine, its pieces as events."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._asked = engine, 0

    @plain_api.post("/v1/chat/completions")
    async def chat_completions(self, request: Request) -> StreamingResponse:
        """Answer one query, as a stream."""
        body, self._asked = await request.json(), self._asked + 1
        grant = Grant(f"{body['metadata']['query_id']}#{self._asked}", "", body["max_tokens"])

        async def events() -> AsyncIterator[str]:
            spent, frame = 0, {"id": "plain", "object": "chat.completion.chunk", "created": 0, "model": "replay"}
            first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            yield f"data: {json.dumps({**frame, 'choices': [first]})}\n\n"
            async for piece in self._engine.options(stream=True).write.remote(grant, (), PIECE_TOKENS):
                spent += len(piece.token_ids)
                delta = {"index": 0, "delta": {"content": piece.text}, "finish_reason": piece.finish_reason}
                yield f"data: {json.dumps({**frame, 'choices': [delta]})}\n\n"
            usage = {"prompt_tokens": 0, "completion_tokens": spent, "total_tokens": spent}
            yield f"data: {json.dumps({**frame, 'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


def price_settings(budget: int) -> dict[str, Any]:
    price = {"budget_tokens_per_second": budget, "carry_over_tokens": 10 * budget}
    return price | {"clearing_seconds": 1.0, "window_seconds": 10.0, "deadline_seconds": 10.0}


def settings(head_dir: str, budget: int) -> ServeConfig:
    engine = {
        "kind": "replay",
        "rollouts": str(ROLLOUTS / "rollouts.parquet"),
        "features": str(ROLLOUTS / "features.parquet"),
        "tokens_per_second": 100.0,
        "max_batch": 64,
    }
    base = {"model_name": "replay", "max_tokens": CAP_TOKENS, "stream_tokens": PIECE_TOKENS}
    return ServeConfig.parse(base | {"engine": engine, "estimate": {"head": head_dir}, "price": price_settings(budget)})


def plain(config: ServeConfig, calls: int = 128) -> serve.Application:
    options = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": calls}
    deployment: Any = serve.deployment(EngineReplica)
    engine = deployment.options(name="engine", **options).bind(config.engine, config.estimate, config.max_tokens)
    ingress: Any = Plain
    app: serve.Application = ingress.bind(engine)
    return app


def arrivals(rows: list[dict[str, Any]], seconds: float) -> Arrivals:
    rng, now, found = random.Random(0), 0.0, []
    while now < seconds:
        now += rng.expovariate(LOADS[min(int(now / seconds * len(LOADS)), len(LOADS) - 1)])
        found.append((now, rng.choice(rows)))
    return found


def equal_ceiling(queries: Arrivals, tokens: int) -> int:
    """Return the ceiling under which these queries spend most nearly so many tokens."""
    lengths = [row["output_tokens"] for _, row in queries]
    spent = {ceiling: sum(min(length, ceiling) for length in lengths) for ceiling in range(1, CAP_TOKENS + 1)}
    return min(spent, key=lambda ceiling: abs(spent[ceiling] - tokens))


async def one(client: openai.AsyncOpenAI, row: dict[str, Any], at: float, max_tokens: int) -> dict[str, Any]:
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
        return {"at": at, "code": error.status_code, "tokens": 0, "correct": False}
    account = (usage.model_extra or {}).get("clear_ray", {}) if usage else {}
    return {
        "at": at,
        "code": 200,
        "tokens": usage.completion_tokens if usage else 0,
        "price": account.get("shadow_price"),
        "waited": account.get("waited_seconds", 0.0),
        "correct": bool(row["correct"] and text == row["text"]),
        "first": first,
    }


async def drive(url: str, queries: Arrivals, max_tokens: int) -> dict[str, Any]:
    """Send queries in an open loop and return what came of them."""
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    tasks, start = [], time.perf_counter()
    for at, row in queries:
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(client, row, at, max_tokens)))
    found = await asyncio.gather(*tasks)
    seconds = time.perf_counter() - start
    answered = [entry for entry in found if entry["code"] == 200]
    priced = [entry for entry in answered if entry["price"] is not None]
    return {
        "queries": len(found),
        "answered": len(answered),
        "correct": sum(entry["correct"] for entry in found),
        "tokens": sum(entry["tokens"] for entry in found),
        "correct_per_second": round(sum(entry["correct"] for entry in found) / seconds, 3),
        "tokens_per_second": round(sum(entry["tokens"] for entry in found) / seconds, 1),
        "first_token_seconds": _quantiles([entry["first"] for entry in answered if entry["first"]]),
        "waited_seconds": _quantiles([entry["waited"] for entry in answered]),
        "price_trace": [[round(entry["at"], 1), entry["price"]] for entry in priced[:: max(1, len(priced) // 15)]],
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    return {f"p{share}": round(ordered[int(len(ordered) * share / 100)], 3) for share in (50, 95)}


async def one_token_seconds(url: str, row: dict[str, Any]) -> float:
    """Return the median seconds of a query for one token, sent one after another."""
    client, seconds = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0), []
    for _ in range(40):
        started = time.perf_counter()
        await one(client, row, 0.0, 1)
        seconds.append(time.perf_counter() - started)
    return round(sorted(seconds)[len(seconds) // 2], 4)


async def ask_at_once(url: str, row: dict[str, Any], streams: int) -> tuple[list[float], list[float], int]:
    """Send so many streamed queries at once; return the seconds to the first piece and to the end of each, and all events."""
    body = {"model": "replay", "messages": [{"role": "user", "content": row["question"]}], "max_tokens": 64}
    body |= {"metadata": {"query_id": row["query_id"]}, "stream": True, "stream_options": {"include_usage": True}}
    first, last, events = [], [], 0

    async def one_stream(session: aiohttp.ClientSession) -> None:
        nonlocal events
        started, seen = time.perf_counter(), 0
        async with session.post(f"{url}/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: "):
                    seen += 1
                    if seen == 2:  # the first one only says that the assistant speaks
                        first.append(time.perf_counter() - started)
        last.append(time.perf_counter() - started)
        events += seen

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600)) as session:
        if streams == 1:
            for _ in range(40):
                await one_stream(session)
        else:
            await asyncio.gather(*(one_stream(session) for _ in range(streams)))
    return sorted(first), sorted(last), events


def compare(port: int, row: dict[str, Any], levels: list[int], times: int) -> dict[str, Any]:
    """Return what both applications took for the same streams, in turns, and the ratios of the medians."""
    found: dict[str, Any] = {}
    for streams in levels:
        seconds: dict[str, list[list[float]]] = {"priced": [], "plain": []}
        counts: dict[str, int] = {}
        for _ in range(times):
            for name, told in seconds.items():
                first, last, counts[name] = asyncio.run(ask_at_once(f"http://127.0.0.1:{port}/{name}/v1", row, streams))
                told.append([first[len(first) // 2], last[len(last) // 2], last[-1]])
        assert counts["priced"] == counts["plain"], counts
        medians = {
            name: [round(sorted(column)[times // 2], 4) for column in zip(*told, strict=True)]
            for name, told in seconds.items()
        }
        ratios = [round(ours / bare, 2) for ours, bare in zip(*medians.values(), strict=True)]
        names = ("first_piece_p50", "end_p50", "end_of_all")
        found[str(streams)] = {name: dict(zip(names, values, strict=True)) for name, values in medians.items()}
        found[str(streams)] |= {"ratio": dict(zip(names, ratios, strict=True)), "events": counts["plain"]}
        print(json.dumps({"streams": streams} | found[str(streams)]), flush=True)
    return found


def _median(values: Sequence[float]) -> float:
    return round(sorted(values)[len(values) // 2], 4)


def overhead(port: int, row: dict[str, Any], levels: list[int], times: int) -> None:
    """Print what the server costs beside a bare one."""
    price = {"budget_tokens_per_second": 10_000_000, "carry_over_tokens": 10_000_000}
    files = {"rollouts": str(ROLLOUTS / "rollouts.parquet"), "features": str(ROLLOUTS / "features.parquet")}
    config = ServeConfig.parse(
        {
            **{"model_name": "replay", "max_tokens": CAP_TOKENS, "stream_tokens": PIECE_TOKENS, "max_queued": 10_000},
            **{"engine": {"kind": "replay", **files, "max_batch": 512}, "price": price, "estimate": {"head": "prior"}},
        }
    )
    serve.run(plain(config, calls=1_024), name="plain", route_prefix="/plain")
    serve.run(application(config), name="priced", route_prefix="/priced")
    for name in ("plain", "priced"):  # both are warm
        asyncio.run(ask_at_once(f"http://127.0.0.1:{port}/{name}/v1", row, 1))
    found = compare(port, row, levels, times)
    print(json.dumps({"overhead": found, "load": os.getloadavg(), "cores": os.cpu_count()}), flush=True)


def cross_fitted_head(folder: str) -> str:
    rollouts, features = str(ROLLOUTS / "rollouts.parquet"), str(ROLLOUTS / "features.parquet")
    fit_recorded(rollouts, features, head_dir=folder, folds_path=str(ROLLOUTS / "split.json"))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--head-dir", help="a fitted head; fitted anew, across folds, if not given")
    parser.add_argument("--seconds", type=float, default=45.0, help="of one run; there are two for each budget")
    parser.add_argument("--overhead", action="store_true", help="measure what the server costs beside a bare one")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 200, 1_000], help="at once, for --overhead")
    parser.add_argument("--times", type=int, default=3, help="how often, for --overhead")
    parser.add_argument("--budgets", type=int, nargs="+", default=[150, 300], help="tokens per second")
    arguments = parser.parse_args()
    rows = [row for row in pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist() if row["sample"] == 0]
    queries = arrivals(rows, arguments.seconds)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, joined_cluster():
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        if arguments.overhead:
            row = next(row for row in rows if row["output_tokens"] > 64)
            overhead(port, row, arguments.streams, arguments.times)
            serve.shutdown()
            return
        head_dir = arguments.head_dir or cross_fitted_head(f"{folder}/head")

        def play(name: str, app: serve.Application, max_tokens: int) -> dict[str, Any]:
            serve.run(app, name=name, route_prefix=f"/{name}")
            url = f"http://127.0.0.1:{port}/{name}/v1"
            found = asyncio.run(drive(url, queries, max_tokens))
            found["one_token_query_seconds"] = asyncio.run(one_token_seconds(url, rows[0]))
            serve.delete(name)
            return found

        for budget in arguments.budgets:
            config = settings(head_dir, budget)
            priced = play("priced", application(config), CAP_TOKENS)
            ceiling = equal_ceiling(queries, priced["tokens"])
            result = {"budget_tokens_per_second": budget, "plain_max_tokens": ceiling, "priced": priced}
            print(
                json.dumps(result | {"plain": play("plain", plain(config), ceiling), "load": os.getloadavg()}),
                flush=True,
            )
        serve.shutdown()


if __name__ == "__main__":
    main()
