"""Stage 2: a thin caller that reserves, has the engine generate, settles, and hands each answer on as it ends.

Reads `records.QUERY_SCHEMA` with `granted_tokens`, `round` and the answer so far; yields lists of rows of
`records.ATTEMPT_SCHEMA`, those that were settled together, as dicts, since `attempt_files` makes one table of many. A query
that the market refuses yields no row: nothing was generated for it, and the next round prices it again. One query's failure
is a row with its error. A dead engine's reservations are charged in full, since what it generated is not known, and its
queries are tried again while the budget allows: first one by one, then, if an engine died with it once more, with no other
query on the engine. A query that kills its engine even so is a failed row; the rest of the batch goes on. An endpoint that
loses a grant, so that it is not known what it generated, has it charged in full as well, and the query is asked again. Nor
does an answer end the run that its scorer fails on, kills its process or hangs: what was generated is charged once, the row
says why, and other answers are generated meanwhile.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any
from uuid import uuid4

import pyarrow as pa

from clear_ray.config.prices import Prices, scaled_parts
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Chat, Generation, Grant, Prompt, RawText, TokenIds, Usage
from clear_ray.errors import ConfigError, EngineError
from clear_ray.ingest.logprobs import dump_logprobs, load_logprobs, of_answer
from clear_ray.ledger.client import AsyncMarketClient
from clear_ray.ledger.entries import Call, Settlement
from clear_ray.ledger.ledger import REFUSED, WAIT
from clear_ray.stages.answer_parts import kept
from clear_ray.stages.causes import ENGINE_DIED, ENGINE_FAILED, SCORER
from clear_ray.stages.charging import charged_parts
from clear_ray.stages.failures import LoneFailures, engine_failure
from clear_ray.stages.probe import prompts_of
from clear_ray.stages.roster import Roster, Workers
from clear_ray.tasks import Kind, Verdict, canonical, extract, get_ready, judged_by, scores_at_once

Row = dict[str, Any]
Rows = list[Row]
Finished = asyncio.Queue[Rows | BaseException | None]
_NO_USAGE: Row = {f"usage_{field.name}": None for field in fields(Usage)}
Scorer = Callable[[str, str | None, str | None], float | None]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What every call of the stage needs to know.

    Attributes:
        workers: The engine workers.
        market: Where tokens are reserved and settled.
        scorer: Makes the scorer in the caller's process; None if answers are not scored.
        seed: Seed of the run.
        prices: What tokens cost, where prompts are paid for.
        engine: Name of the engine, where a run has several.
        votes_by: How final answers are read where votes are counted; None where they are not.
        this_caller: Returns the caller, the same after a restart of its process; None if it need not be known.
        most_attempts: Reservations that one query may use up in one call before it fails; the last one has its engine
            to itself.
        most_lost: Reservations that an endpoint may lose of one query in one call before it fails.
        most_quarantined: Queries in a row that may fail so, with none answered between them, before the engines are
            held to be broken.
    """

    workers: Workers
    market: AsyncMarketClient
    scorer: Callable[[], Scorer] | None
    seed: int
    prices: Prices | None = None
    engine: str | None = None
    votes_by: Kind | None = None
    this_caller: Callable[[], str] | None = None
    most_attempts: int = 3
    most_lost: int = 5
    most_quarantined: int = 8


class Generate:
    """One call: the rows of a batch are reserved, generated and settled; many calls may be in flight."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._scorer = dispatch.scorer() if dispatch.scorer else None
        # One thread: a scorer's process takes one answer at a time, and those that wait for it must not fill the loop's pool.
        waits = self._scorer is not None and not scores_at_once(self._scorer)
        self._scoring = ThreadPoolExecutor(1, "scoring") if waits else None
        self._is_ready_to_score = False
        self._roster = Roster(dispatch.workers)
        self._caller = dispatch.this_caller() if dispatch.this_caller else ""
        self._life, self._requests = uuid4().hex[:8], itertools.count(1)
        self._quarantined = 0
        self._lone_failures = LoneFailures()

    async def __call__(self, batch: pa.Table, direct_text: str = "", home: int | None = None) -> AsyncIterator[Rows]:
        """Yield the attempts of one batch of granted queries, those that ended together as soon as they are settled.

        Args:
            batch: The queries.
            direct_text: Put after every prompt, to ask for a direct answer; nothing if empty.
            home: The worker that has read the prompts, if one has.
        """
        rows = batch.to_pylist()
        for row, prompt in zip(rows, prompts_of(batch), strict=True):
            row["conversation"] = asked_directly(prompt, direct_text)
        finished: Finished = asyncio.Queue()
        feeder = asyncio.ensure_future(self._feed(rows, finished, home))
        try:
            while (item := await finished.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            feeder.cancel()

    async def _feed(self, rows: Rows, finished: Finished, home: int | None) -> None:
        """Reserve in order and start whatever was granted, until every row has been decided and has ended."""
        try:
            # A group, so that a run that fails ends the wait for the tokens that it will never give back.
            async with self._roster.room(len(rows)), asyncio.TaskGroup() as running:
                waiting = rows
                while waiting:
                    answers = await self._reserve(rows[0]["round"], waiting)
                    granted = [
                        row | {"attempt": answer}
                        for row, answer in zip(waiting, answers, strict=True)
                        if answer not in (WAIT, REFUSED)
                    ]
                    waiting = [row for row, answer in zip(waiting, answers, strict=True) if answer == WAIT]
                    if granted:
                        running.create_task(self._run(granted, finished, tries=1, home=home))
            await finished.put(None)
        except ExceptionGroup as failures:  # handed to the consumer, which raises the first
            await finished.put(_first_of(failures))

    def look_again(self, times_ended: int) -> None:
        """See `Roster.look_again`."""
        self._roster.look_again(times_ended)

    async def give_up(self, indices: list[int]) -> None:
        """Tell the market that a block has failed, of which calls may hold reservations or stand in the line."""
        await self._dispatch.market.give_up(indices, self._life)

    async def _reserve(self, round_number: int, rows: list[Row]) -> list[int]:
        call = Call(self._caller, self._life, next(self._requests))
        requests = [(row["index"], row["granted_tokens"]) for row in rows]
        if self._dispatch.prices is None:
            return await self._dispatch.market.reserve(round_number, requests, call)
        parts = [row["reserved_parts"] for row in rows]
        return await self._dispatch.market.reserve(round_number, requests, call, parts)

    async def _run(
        self,
        rows: list[Row],
        finished: Finished,
        *,
        tries: int,
        times_lost: int = 0,
        home: int | None = None,
    ) -> None:
        """Generate reserved rows on one worker; on its death charge what was running and reserve again."""
        self._get_ready_to_score(rows[0].get("metadata"))
        grants = [self._grant(row) for row in rows]
        running = {(grant.query_id, grant.sample): row for grant, row in zip(grants, rows, strict=True)}
        lost: list[tuple[Row, Generation]] = []
        started = time.monotonic()
        try:
            async with self._roster.worker(home) as worker:
                async for reference in worker.generate.remote(grants, tries == self._dispatch.most_attempts):
                    generations: list[Generation] = await reference
                    self._quarantined = 0
                    self._lone_failures.forget()
                    ended = [(running.pop((one.query_id, one.sample)), one) for one in generations]
                    lost += [one for one in ended if one[1].is_lost]
                    known = [one for one in ended if not one[1].is_lost]
                    if known:
                        await finished.put(await self._settle(known, time.monotonic() - started))
        except Exception as error:
            if not self._dispatch.workers.is_death(error):
                raise
            await self._try_again(list(running.values()), finished, error, tries=tries)
        async with asyncio.TaskGroup() as asked:
            for row, generation in lost:
                asked.create_task(self._ask_again(row, generation, finished, times_lost=times_lost + 1))

    async def _ask_again(
        self,
        row: Row,
        lost: Generation,
        finished: Finished,
        *,
        times_lost: int,
    ) -> None:
        """Charge a grant that an endpoint has lost, and reserve another one."""
        await self._dispatch.market.forfeit([(row["index"], row["attempt"])])
        if times_lost >= self._dispatch.most_lost:
            nothing = Generation(row["query_id"], (), "", "cancelled", error=lost.error)
            await finished.put([self._attempt(row | {"attempt": 0}, nothing, 0.0)])  # all its reservations were charged
            return
        (answer,) = await self._reserve(row["round"], [row])
        if answer != REFUSED:
            await self._run([row | {"attempt": answer}], finished, tries=1, times_lost=times_lost)

    async def _try_again(self, rows: Rows, finished: Finished, error: Exception, *, tries: int) -> None:
        await self._dispatch.market.forfeit([(row["index"], row["attempt"]) for row in rows])
        is_last, failure = tries >= self._dispatch.most_attempts, engine_failure(error)
        # An engine that said what it failed of does so again: the next attempt shows whether this query is the cause.
        next_tries = tries + 1 if failure is None else self._dispatch.most_attempts
        for (
            row
        ) in rows:  # one by one, so that a query that kills its engine takes no other call's queries with it twice
            if is_last:
                await finished.put([self._quarantine(row, error)])
                continue
            (answer,) = await self._reserve(row["round"], [row])
            if answer != REFUSED:
                await self._run([row | {"attempt": answer}], finished, tries=next_tries)

    def _quarantine(self, row: Row, error: Exception) -> Row:
        """Return the failed attempt of a query that killed the engine it had to itself."""
        self._quarantined += 1
        if (failure := engine_failure(error)) is not None:
            self._lone_failures.note(failure, row["query_id"])
            said = f"{ENGINE_FAILED}{failure.value}"
        else:
            said = f"{ENGINE_DIED} {self._dispatch.most_attempts} times, the last time with no other query on it"
        if self._quarantined > self._dispatch.most_quarantined:
            raise EngineError(
                f"engines died with each of {self._quarantined} queries in a row, though each had one to itself",
                row["query_id"],
                repr(error),
                "Look for the cause in the logs of the workers; then run the same command again.",
            ) from error
        lost = Generation(row["query_id"], (), "", "cancelled", error=said)
        return self._attempt(row | {"attempt": 0}, lost, 0.0)  # no reservation stands behind it: all were charged

    def _grant(self, row: Row) -> Grant:
        sampling = Sampling.load(row.get("sampling"))
        return Grant(
            query_id=row["query_id"],
            prompt=row["conversation"],
            max_tokens=row["granted_tokens"],
            seed=seed_of(sampling, self._dispatch.seed + row["index"]),
            prefix_token_ids=tuple(row["token_ids"]),
            sample=row.get("sample") or 0,
            sampling=sampling,
            prefix_text=row.get("text") or "",
        )

    async def _settle(self, ended: list[tuple[Row, Generation]], seconds: float) -> list[Row]:
        """Score what has ended, tell the market what it spent, and return the attempts."""
        rows = await self._attempts(ended, seconds)
        for row, (_, generation) in zip(rows, ended, strict=True):
            row["taken_parts"] = self._spent_parts(row, generation)
        await self._dispatch.market.settle(
            [
                Settlement(
                    index=row["index"],
                    attempt=row["attempt"],
                    spent_tokens=row["attempt_tokens"],
                    has_ended=bool(row["error"]) or row["finish_reason"] == "stop" or row["is_at_end"],
                    correct=row["correct"],
                    label=_label(row),
                    spent_parts=row["taken_parts"],
                )
                for row in rows
            ]
        )
        return rows

    def _spent_parts(self, row: Row, generation: Generation) -> int | None:
        """Return what a call took, by its usage; None where the market knows it by the tokens, of one engine."""
        prices = self._dispatch.prices
        if prices is None or (generation.usage is None and self._dispatch.engine is None):
            return None
        if generation.usage is None:
            unused_tokens = row["granted_tokens"] - len(generation.token_ids)
            unused_parts: int = unused_tokens * scaled_parts(prices.token_parts, row["cost"])
            return int(row["reserved_parts"]) - unused_parts
        return charged_parts(
            prices,
            generation.usage,
            generated_tokens=len(generation.token_ids),
            reserved_parts=row["reserved_parts"],
            cost=row["cost"],
        )

    def _get_ready_to_score(self, metadata: str | None) -> None:
        """Begin what the first score waits for while the first answers are generated."""
        if self._scoring is not None and self._scorer is not None and not self._is_ready_to_score:
            self._is_ready_to_score = True
            self._scoring.submit(get_ready, self._scorer, metadata)

    async def _attempts(self, ended: list[tuple[Row, Generation]], seconds: float) -> list[Row]:
        def attempts() -> list[Row]:
            return [self._attempt(row, generation, seconds) for row, generation in ended]

        if self._scoring is None:
            return attempts()
        return await asyncio.get_running_loop().run_in_executor(self._scoring, attempts)

    def _attempt(self, row: Row, generation: Generation, seconds: float) -> Row:
        error, verdict = generation.error, Verdict(None)
        if self._scorer and not error:
            try:
                asked = {"prompt": row["prompt"], "is_conversation": row["is_conversation"]}
                verdict = judged_by(self._scorer, generation.text, row["gold"], row["metadata"], **asked)
                # A score of unfinished text would reward a cap for cutting a ramble off after a lucky line.
                verdict = verdict if generation.finish_reason == "stop" else verdict.cut_off()
            except ConfigError:  # the scorer's process does not start: that is no row's doing
                raise
            except Exception as failure:  # the user's own scorer: its failure is this row's, not the run's
                error = f"{SCORER}{type(failure).__name__}: {failure}"
        vote = None
        if self._dispatch.votes_by is not None and generation.finish_reason == "stop" and not error:
            result, vote = vote_of(generation.text, self._dispatch.votes_by, row)
            verdict = verdict if self._scorer else Verdict(None, "", result)
        logprobs = _logprobs(row, generation)
        return row | {
            "attempt_tokens": len(generation.token_ids),
            "finish_reason": generation.finish_reason,
            "text": generation.text,
            "token_ids": [*row["token_ids"], *generation.token_ids],
            "answer_tokens": len(row["token_ids"]) + len(generation.token_ids),
            "kept_characters": kept(row.get("text"), generation.text),
            "kept_logprobs": kept(row.get("logprobs"), logprobs),
            "correct": verdict.score,
            "answer": verdict.kept_answer(),
            "verdict": verdict.reason or None,
            "error": error,
            "seconds": seconds,
            "ended_at": time.time(),
            "is_at_end": generation.is_at_end,
            "engine": self._dispatch.engine,
            "vote": vote,
            "logprobs": logprobs,
            "cached_tokens": generation.cached_tokens,
            **_usage_columns(generation.usage),
        }


def _first_of(failures: ExceptionGroup[Exception]) -> Exception:
    """Return the first error of a group, and of a group in it."""
    first = failures.exceptions[0]
    return _first_of(first) if isinstance(first, ExceptionGroup) else first


def _logprobs(row: Row, generation: Generation) -> str | None:
    """Return those of the answer so far, where its query asks for them."""
    sampling = Sampling.load(row.get("sampling"))
    if sampling is None or sampling.logprobs is None:
        return None
    earlier = load_logprobs(row.get("logprobs")) if row["token_ids"] else ()
    return dump_logprobs(of_answer(generation.text, generation.logprobs, earlier))


def _usage_columns(usage: Usage | None) -> Row:
    """Return the columns of `records.ATTEMPT_SCHEMA` that say what an endpoint counted."""
    return _NO_USAGE if usage is None else {f"usage_{name}": tokens for name, tokens in asdict(usage).items()}


def vote_of(text: str, kind: Kind, row: Row) -> tuple[str | None, int | None]:
    """Return the final answer of a text, and it as a number that equal ones share; None twice if it holds none."""
    result = extract(text, kind, prompt=row["prompt"], is_conversation=row["is_conversation"])
    if result is None:
        return None, None
    digest = hashlib.blake2b(canonical(result, kind).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return result, int.from_bytes(digest, "big", signed=True) or 1


def seed_of(sampling: Sampling | None, otherwise: int) -> int:
    """Return the seed of a query: its own, or what it is otherwise."""
    return otherwise if sampling is None or sampling.seed is None else sampling.seed


def asked_directly(prompt: Prompt, text: str) -> Prompt:
    """Return a prompt with a text after it: at the end of the last turn of a conversation."""
    if not text or isinstance(prompt, TokenIds):  # ids of a tokenizer that is not here
        return prompt
    if isinstance(prompt, str):
        asked = f"{prompt}\n\n{text}"
        return RawText(asked) if isinstance(prompt, RawText) else asked
    *turns, (role, content) = prompt
    asked_turns = (*turns, (role, f"{content}\n\n{text}"))
    return Chat(asked_turns, prompt.sampling, prompt.names) if isinstance(prompt, Chat) else asked_turns


def _label(row: Row) -> str:
    """Describe an ended grant for the live display; never with prompt or answer in it."""
    mark = {None: "", 1.0: "  correct", 0.0: "  wrong"}.get(row["correct"], f"  score {row['correct']}")
    outcome = "failed" if row["error"] else row["finish_reason"]
    by = f"  {row['engine']}" if row["engine"] else ""
    return f"{row['query_id']}{by}  {row['attempt_tokens']} of {row['granted_tokens']} tokens  {outcome}{mark}"
