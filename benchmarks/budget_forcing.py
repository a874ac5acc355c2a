"""Does closing the reasoning at the end of a grant buy correct answers per token?

Prints one JSON line: for each ceiling, the correct answers and tokens of plain generation, and of generation whose last
tokens are kept back to write `Answer:` and what follows. Greedy, on the demo's queries and the embedded model. An answer
counts only if it ended by itself and is right, as in a run. Answers that end before the reserve are the same both ways.

    python benchmarks/budget_forcing.py            about 2 minutes of one core
    python benchmarks/budget_forcing.py --share 1  all of the demo's queries instead of every second
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from clear_ray.config.engine import TransformersConfig
from clear_ray.config.run import RunConfig
from clear_ray.engine import Generation, Grant, TransformersEngine
from clear_ray.engine.base import read_prompt
from clear_ray.tasks import generate_queries, load_scorer

DEMO = Path(__file__).resolve().parents[1] / "jobs" / "configs" / "demo.yaml"
CEILINGS = (8, 12, 16, 24, 32, 48, 64, 96)
RESERVES = (6, 10)
CLOSING, MARK = "\nAnswer:", "Answer:"


def run_all(engine: TransformersEngine, grants: list[Grant]) -> dict[str, Generation]:
    async def collect() -> dict[str, Generation]:
        return {answer.query_id: answer async for answer in engine.generate(grants)}

    return asyncio.run(collect())


def closing_ids(engine: TransformersEngine) -> tuple[int, ...]:
    return tuple(engine._rendering.plain_token_ids(CLOSING))


def forced_grants(
    engine: TransformersEngine, rows: list[dict[str, Any]], whole: dict[str, Generation], reserve: int
) -> list[Grant]:
    """Return a grant for the end of every answer that has neither ended nor begun its answer where the reserve begins."""
    closing = closing_ids(engine)
    grants = []
    for row in rows:
        for ceiling in CEILINGS:
            answer, cut = whole[row["query_id"]], ceiling - reserve
            has_ended = answer.finish_reason == "stop" and len(answer.token_ids) <= max(cut, 0)
            if cut >= 1 and not has_ended and MARK not in engine._rendering.text(answer.token_ids[:cut]):
                name, prefix = f"{row['query_id']}@{ceiling}", answer.token_ids[:cut] + closing
                grants.append(Grant(name, row["asked"], reserve - len(closing), prefix_token_ids=prefix))
    return grants


def table(
    rows: list[dict[str, Any]], whole: dict[str, Generation], forced: dict[str, Generation], reserve: int, closing: int
) -> dict[str, Any]:
    """Return correct answers and tokens at each ceiling; `reserve` 0 is plain generation."""
    score = load_scorer("reasoning_gym")

    def is_right(row: dict[str, Any], answer: Generation) -> bool:
        return answer.finish_reason == "stop" and (score(answer.text, row["gold"], row["metadata"]) or 0) >= 1

    figures: dict[str, Any] = {}
    for ceiling in CEILINGS:
        right = tokens = closed = 0
        for row in rows:
            plain, end = whole[row["query_id"]], forced.get(f"{row['query_id']}@{ceiling}")
            if end is not None:
                closed += 1
                tokens += ceiling - reserve + closing + len(end.token_ids)
                right += is_right(row, end)
            else:
                tokens += min(ceiling, len(plain.token_ids))
                right += len(plain.token_ids) <= ceiling and is_right(row, plain)
        figures[str(ceiling)] = {"correct": right, "tokens": tokens, "closed": closed}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=int, default=2, help="take every so many-th of the demo's queries")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = list(generate_queries(RunConfig.load(DEMO).input.tasks))[:: options.share]
    for row in rows:
        row["asked"] = read_prompt(row["prompt"] or row["messages"], is_conversation=not row["prompt"])
    engine = TransformersEngine(TransformersConfig(device="cpu", threads=options.threads))
    closing = closing_ids(engine)
    whole = run_all(engine, [Grant(row["query_id"], row["asked"], max(CEILINGS)) for row in rows])
    result: dict[str, Any] = {"queries": len(rows), "closing_tokens": len(closing)}
    result["plain"] = table(rows, whole, {}, 0, 0)
    for reserve in RESERVES:
        forced = run_all(engine, forced_grants(engine, rows, whole, reserve))
        result[f"reserve_{reserve}"] = table(rows, whole, forced, reserve, len(closing))
    engine.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
