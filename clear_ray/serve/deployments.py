"""The deployment of engines, behind the ingress: each reads queries, buys their tokens and writes their answers.

What a query's text made fail comes back as a value with a message of ours: an exception would put the prompt into a
replica's log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import ray

from clear_ray.cluster.metrics import watch_engine
from clear_ray.config.engine import EngineConfig
from clear_ray.config.estimate import EstimateConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Generation, Grant, ModelCard, Prompt
from clear_ray.engine.row_sampling import sampling_check
from clear_ray.errors import ConfigError, EngineError, EngineFailedError, SchemaError
from clear_ray.estimation.head import HeadCard
from clear_ray.estimation.resolve import resolve_head
from clear_ray.serve.asking import Opening, Piece, PromptReading, ServedQuery, gathered, merged
from clear_ray.serve.batches.shared_slots import SharedSlots
from clear_ray.serve.cutting import cut_at_stop, showable
from clear_ray.serve.law import Curve
from clear_ray.serve.price_replica import SaleSettlement, Wanted
from clear_ray.serve.sale_queue import Sale
from clear_ray.serve.scaling import Outstanding
from clear_ray.serve.together import Together
from clear_ray.stages.worker import EngineWorker

_LINGER_SECONDS = 0.005  # in which an answer that begins at once travels with what was found of its query


class Health:
    """Tells an engine that works from one that hangs, by its pulse.

    Args:
        stall_seconds: How long an engine that has work may bring nothing forward.
    """

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._pulse: int | None = None
        self._moved_at = 0.0

    def check(self, pulse: int | None, now: float) -> None:
        """Take a pulse, `EngineWorker.pulse`, at a time of a steady clock, seconds.

        Raises:
            EngineError: It has been the same for too long.
        """
        if pulse is None or pulse != self._pulse:
            self._pulse, self._moved_at = pulse, now
        elif now - self._moved_at >= self._stall_seconds:
            raise EngineError("the engine hangs", value=f"nothing came for {now - self._moved_at:.0f} s")


class EngineReplica:
    """One loaded model behind Serve: the batch's own `EngineWorker`.

    Args:
        config: Which engine.
        estimate: Which head.
        cap_tokens: Largest ceiling of an answer.
        kept_slots: Places in the engine's batch that batches leave to interactive clients; an eighth if not given.
        model_name: Name of the model, for metrics.
        price: Handle of the price; without one, `answer` cannot be asked.
    """

    def __init__(
        self,
        config: EngineConfig,
        estimate: EstimateConfig,
        cap_tokens: int,
        kept_slots: int | None = None,
        model_name: str = "",
        price: Any = None,
    ) -> None:
        self._worker = EngineWorker(config, resolve_head(estimate.head, cap_tokens=cap_tokens, layers=estimate.layers))
        self._config, self._check = config, sampling_check(config)
        self._health = Health(config.stall_seconds)
        self._slots = SharedSlots(config.max_batch, kept=kept_slots)
        self._outstanding = Outstanding()
        self._price = price
        self._buy: Together[Wanted, Sale | None] = Together(self._buy_all, self._give_back)
        self._given_back = set[asyncio.Task[None]]()
        if ray.is_initialized():
            watch_engine(self._worker.occupancy, "server", model_name)

    async def check_health(self) -> None:
        """Called by Serve every few seconds; a replica that fails it is replaced.

        Raises:
            EngineError: The engine has failed, or has work and has brought nothing forward for `engine.stall_seconds`.
        """
        if (failure := self._worker.failure) is not None:
            raise EngineError("the engine has failed", value=f"{type(failure).__name__}: {failure}") from failure
        self._health.check(await self._worker.pulse(), time.monotonic())

    async def ready(self) -> None:
        """Do nothing; that it is done says that the model is loaded.

        Raises:
            EngineError: The engine has failed.
        """
        if self._worker.failure is not None:
            raise EngineError("the engine has failed")

    async def read(
        self, query_id: str, prompt: Prompt, sampling: Sampling | None = None, most_tokens: int | None = None
    ) -> PromptReading:
        """Read a prompt once and estimate its curve, unless this engine cannot do what is asked of its answer.

        Args:
            query_id: Name of the query.
            prompt: What to read.
            sampling: What is asked of the answer.
            most_tokens: Longest prompt that may be read.
        """
        model, head = await self._worker.cards()
        if sampling is not None and (refusal := await asyncio.to_thread(self._refusal, sampling)) is not None:
            param, reason = refusal
            return PromptReading(0, model.context_tokens, None, reason, param)
        try:
            if most_tokens is not None and (tokens := (await self._worker.prompt_tokens([prompt]))[0]) > most_tokens:
                said = f"it has {tokens} tokens, at most {most_tokens} are read here"
                return PromptReading(tokens, model.context_tokens, None, said, is_too_long=True)
            columns = await self._worker.probe([query_id], [prompt])
        except SchemaError as error:
            is_too_long = await self._is_too_long(prompt, model.context_tokens)
            return PromptReading(0, model.context_tokens, None, error.what, is_too_long=is_too_long)
        return PromptReading(
            prompt_tokens=int(columns["prompt_tokens"][0]),
            context_tokens=model.context_tokens,
            curve=Curve(_grid(head.tokens_K), columns["success_K"][0], columns["survival_K"][0]),
        )

    async def answer(self, asked: ServedQuery) -> AsyncIterator[list[Opening | tuple[int, Piece]]]:
        """Read a query, buy its tokens and answer it: what was found first, then pieces with the numbers of their choices.

        A query that has to wait for its price ends here after the opening: it holds no place while it waits.

        Args:
            asked: The query.
        """
        async with aclosing(gathered(self._answer(asked), _LINGER_SECONDS)) as lists:
            async for some in lists:
                yield some

    async def _answer(self, asked: ServedQuery) -> AsyncIterator[Opening | tuple[int, Piece]]:
        reading = await self.read(asked.query_id, asked.prompt, asked.sampling, asked.most_prompt_tokens)
        ask = asked.ask(reading)
        if ask is None:
            yield Opening(reading)
            return
        sale = await self._buy(Wanted(asked.name, asked.tenant, ask))
        if sale is None:
            yield Opening(reading, ask=ask)
            return
        yield Opening(replace(reading, curve=None), sale)
        if sale.hold is None:
            return
        grants = [asked.grant(choice, sale.tokens) for choice in range(asked.choices)]
        async for choice, piece in merged([self.write(grant, asked.stops, asked.every_tokens) for grant in grants]):
            yield choice, piece
            if piece.error:
                return

    async def _buy_all(self, wanted: Sequence[Wanted]) -> Sequence[Sale | None]:
        sales: Sequence[Sale | None] = await self._price.buy_now.remote(wanted)
        return sales

    def _give_back(self, wanted: Wanted, sale: Sale | None) -> None:
        """Settle what was bought for a query whose client has gone meanwhile."""
        if sale is None or sale.hold is None:
            return

        async def settle(settlement: SaleSettlement) -> None:
            await self._price.settle.remote([settlement])

        task = asyncio.create_task(settle(SaleSettlement(wanted.tenant, sale.hold, 0)))
        self._given_back.add(task)
        task.add_done_callback(self._given_back.discard)

    async def _is_too_long(self, prompt: Prompt, context_tokens: int) -> bool:
        """Whether a prompt that was refused leaves no room for an answer."""
        try:
            return (await self._worker.prompt_tokens([prompt]))[0] >= context_tokens
        except SchemaError:
            return False

    def _refusal(self, sampling: Sampling) -> tuple[str, str] | None:
        """Return the parameter that this engine cannot honour, and why; None if it honours all."""
        own = {"seed": None, "stop": ()}  # the server's own work
        for name in ("temperature", "top_p"):
            if getattr(sampling, name) == getattr(self._config, name):
                own[name] = None
        try:
            unheeded = self._check(sampling.model_copy(update=own))
        except (ConfigError, SchemaError) as error:
            return error.where, f"{error.what} ({error.value})" if error.value else error.what
        if not unheeded:
            return None
        return unheeded[0].partition(" ")[0], f"{unheeded[0]} has no effect here"

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what `scaling.TokenPolicy` reads; called by Serve every second or so."""
        return self._outstanding.report()

    async def write(
        self, grant: Grant, stops: Sequence[str], every_tokens: int, shown_characters: int = 0
    ) -> AsyncIterator[Piece]:
        """Answer a query, in pieces; all of them together never hold more tokens than the grant.

        Tokens that the engine generated after a stop string, before it was told, are charged.

        Args:
            grant: Permission to generate.
            stops: Strings that end the answer.
            every_tokens: Tokens of a piece; more where the caller does not keep up.
            shown_characters: How much of the text of the grant's prefix the client has had already.
        """
        left = grant.max_tokens
        self._outstanding.open(left)
        self._slots.enter()
        try:
            async for piece in self._pieces(grant, stops, every_tokens, shown_characters):
                left -= len(piece.token_ids)
                self._outstanding.bring(len(piece.token_ids), time.monotonic())
                yield piece
        finally:
            self._slots.leave()
            self._outstanding.close(left)

    async def cards(self) -> tuple[ModelCard, HeadCard]:
        """Return the cards of the model and the head.

        Raises:
            EngineFailedError: The engine has failed; Serve is about to replace this replica.
        """
        if (failure := self._worker.failure) is not None:
            raise EngineFailedError("the engine has failed", value=str(failure)) from failure
        return await self._worker.cards()

    async def probe_for_batch(
        self, query_ids: Sequence[str], prompts: Sequence[Prompt], direct_text: str
    ) -> dict[str, Any] | SchemaError:
        """Do what `EngineWorker.probe` does; what it refuses comes back as a value."""
        try:
            return await self._worker.probe(query_ids, prompts, direct_text=direct_text)
        except SchemaError as error:
            return error

    async def generate_for_batch(
        self, batch: str, weight: float, is_alone: bool, *grants: Grant
    ) -> AsyncIterator[list[Generation]]:
        """Do what `EngineWorker.generate` does, in the places that interactive queries and other batches leave.

        Args:
            batch: Name of the batch.
            weight: Its share beside other batches.
            is_alone: Wait until nothing else runs here, and let nothing else begin.
            grants: What to run.
        """
        left = {grant.query_id: grant.max_tokens for grant in grants}
        for tokens in left.values():
            self._outstanding.open(tokens)
        try:
            run = self._slots.run(batch, weight, grants, self._worker.generate, is_alone=is_alone)
            async with aclosing(run) as ended:
                async for generations in ended:
                    for each in generations:
                        self._outstanding.bring(len(each.token_ids), time.monotonic())
                        self._outstanding.close(left.pop(each.query_id) - len(each.token_ids))
                    yield generations
        finally:
            for tokens in left.values():
                self._outstanding.close(tokens)

    async def _pieces(self, grant: Grant, stops: Sequence[str], every_tokens: int, shown: int) -> AsyncIterator[Piece]:
        def is_over(text: str) -> bool:
            return cut_at_stop(text, stops) is not None

        told = read = 0
        async for item in self._worker.stream(grant, every_tokens=every_tokens, is_over=is_over):
            new, told = item.token_ids[told:], len(item.token_ids)
            logprobs = None if item.logprobs is None else item.logprobs[read:]
            read += len(logprobs or ())
            if not isinstance(item, Generation):
                text = showable(item.text, stops)
                # A text that is shorter than what was shown can only come from a tokenizer that changed its mind.
                yield Piece(text[shown:], new, logprobs=logprobs)
                shown = max(shown, len(text))
                continue
            stopped = cut_at_stop(item.text, stops)
            if item.error or (stopped is None and item.finish_reason == "cancelled"):
                yield Piece("", new, "cancelled", error="the engine could not generate this query")
                return
            text = item.text if stopped is None else stopped
            finish = item.finish_reason if stopped is None else "stop"
            yield Piece(text[shown:], new, finish, logprobs=logprobs)


def _grid(tokens_K: Sequence[int]) -> Any:
    import numpy as np

    return np.asarray(tokens_K, np.int64)
