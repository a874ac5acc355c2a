"""Stage 2: a thin caller that reserves, has the engine generate, settles, and hands each answer on as it ends.

Reads `records.QUERY_SCHEMA` with `granted_tokens`, `round` and the answer so far; writes `records.ATTEMPT_SCHEMA`. A query
that the market refuses yields no row: nothing was generated for it, and the next round prices it again. One query's
failure is a row with its error. A dead engine is not the query's fault: its reservation is charged in full, since nobody
can say what it generated, and the query is tried again while the budget and `most_attempts` allow.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clear_ray.engine.base import Generation, Grant
from clear_ray.errors import EngineError
from clear_ray.ledger import REFUSED, WAIT, Settlement
from clear_ray.records import ATTEMPT_SCHEMA
from clear_ray.stages.probe import prompts_of

Row = dict[str, Any]
Scorer = Callable[[str, str | None, str | None], float | None]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What every call of the stage needs to know.

    Attributes:
        workers: Handles of `EngineWorker` actors.
        market: Handle of the `MarketActor`.
        scorer: Makes the scorer in the caller's process; None if answers are not scored.
        is_worker_death: Tells a dead or unreachable engine from an error of its own.
        seed: Of the run.
        sample: Which of several answers to the same query.
        most_attempts: Reservations that one query may use up in one call before it fails.
    """

    workers: Sequence[Any]
    market: Any
    scorer: Callable[[], Scorer] | None
    is_worker_death: Callable[[BaseException], bool]
    seed: int
    sample: int
    most_attempts: int = 3


class Generate:
    """Callable for `map_batches`: many calls in flight, one batch of rows each."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._scorer = dispatch.scorer() if dispatch.scorer else None
        self._calls = 0

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Yield the attempts of one batch of granted queries, each as soon as it is settled."""
        rows = batch.to_pylist()
        for row, prompt in zip(rows, prompts_of(batch), strict=True):
            row["conversation"] = prompt
        finished: asyncio.Queue[Row | BaseException | None] = asyncio.Queue()
        feeder = asyncio.ensure_future(self._feed(rows, finished))
        try:
            while (item := await finished.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield pa.Table.from_pylist([item], schema=ATTEMPT_SCHEMA)
        finally:
            feeder.cancel()

    async def _feed(self, rows: list[Row], finished: asyncio.Queue[Row | BaseException | None]) -> None:
        """Reserve in order and start whatever was granted, until every row has been decided and has ended."""
        try:
            # A group, so that a run that fails ends the wait for the tokens that it will never give back.
            async with asyncio.TaskGroup() as running:
                waiting = rows
                while waiting:
                    requests = [(row["index"], row["granted_tokens"]) for row in waiting]
                    answers = await self._dispatch.market.reserve.remote(rows[0]["round"], requests)
                    granted = [
                        row | {"attempt": answer}
                        for row, answer in zip(waiting, answers, strict=True)
                        if answer not in (WAIT, REFUSED)
                    ]
                    waiting = [row for row, answer in zip(waiting, answers, strict=True) if answer == WAIT]
                    if granted:
                        running.create_task(self._run(granted, finished, tries=1))
            await finished.put(None)
        except ExceptionGroup as failures:  # handed to the consumer, which raises the first
            await finished.put(failures.exceptions[0])

    async def _run(self, rows: list[Row], finished: asyncio.Queue[Row | BaseException | None], *, tries: int) -> None:
        """Generate reserved rows on one worker; on its death charge what was running and reserve again."""
        worker = self._dispatch.workers[self._calls % len(self._dispatch.workers)]
        self._calls += 1
        running = {row["query_id"]: row for row in rows}
        started = time.monotonic()
        try:
            async for reference in worker.generate.remote([self._grant(row) for row in rows]):
                generations: list[Generation] = await reference
                ended = [(running.pop(generation.query_id), generation) for generation in generations]
                for row in await self._settle(ended, time.monotonic() - started):
                    await finished.put(row)
        except Exception as error:
            if not self._dispatch.is_worker_death(error):
                raise
            await self._try_again(list(running.values()), finished, error, tries=tries)

    async def _try_again(
        self, rows: list[Row], finished: asyncio.Queue[Row | BaseException | None], error: Exception, *, tries: int
    ) -> None:
        await self._dispatch.market.forfeit.remote([(row["index"], row["attempt"]) for row in rows])
        if tries >= self._dispatch.most_attempts:
            raise EngineError(
                f"engine workers died {tries} times while generating the same queries",
                ", ".join(row["query_id"] for row in rows[:5]),
                repr(error),
                "Look for the cause in the logs of the workers; then run the same command again.",
            ) from error
        for row in rows:  # one by one, so that a query that kills its engine takes no other with it
            (answer,) = await self._dispatch.market.reserve.remote(
                row["round"], [(row["index"], row["granted_tokens"])]
            )
            if answer != REFUSED:
                await self._run([row | {"attempt": answer}], finished, tries=tries + 1)

    def _grant(self, row: Row) -> Grant:
        return Grant(
            query_id=row["query_id"],
            prompt=row["conversation"],
            max_tokens=row["granted_tokens"],
            seed=self._dispatch.seed + row["index"],
            prefix_token_ids=tuple(row["token_ids"]),
            sample=self._dispatch.sample,
        )

    async def _settle(self, ended: list[tuple[Row, Generation]], seconds: float) -> list[Row]:
        """Score what has ended, tell the market what it spent, and return the attempts."""
        rows = [self._attempt(row, generation, seconds) for row, generation in ended]
        await self._dispatch.market.settle.remote(
            [
                Settlement(
                    index=row["index"],
                    attempt=row["attempt"],
                    spent_tokens=row["attempt_tokens"],
                    has_ended=bool(row["error"]) or row["finish_reason"] == "stop",
                    correct=row["correct"],
                    label=_label(row),
                )
                for row in rows
            ]
        )
        return rows

    def _attempt(self, row: Row, generation: Generation, seconds: float) -> Row:
        error, correct = generation.error, None
        if self._scorer and not error:
            try:
                # A score of unfinished text would reward a cap for cutting a ramble off after a lucky line.
                correct = self._scorer(generation.text, row["gold"], row["metadata"])
                correct = correct if correct is None or generation.finish_reason == "stop" else 0.0
            except Exception as failure:  # the user's own scorer: its failure is this row's, not the run's
                error = f"scorer: {type(failure).__name__}: {failure}"
        return row | {
            "attempt_tokens": len(generation.token_ids),
            "finish_reason": generation.finish_reason,
            "text": generation.text,
            "token_ids": [*row["token_ids"], *generation.token_ids],
            "correct": correct,
            "error": error,
            "seconds": seconds,
        }


def _label(row: Row) -> str:
    """Describe an ended grant for the live display; never with prompt or answer in it."""
    mark = {None: "", 1.0: "  correct", 0.0: "  wrong"}.get(row["correct"], f"  score {row['correct']}")
    outcome = "failed" if row["error"] else row["finish_reason"]
    return f"{row['query_id']}  {row['attempt_tokens']} of {row['granted_tokens']} tokens  {outcome}{mark}"
