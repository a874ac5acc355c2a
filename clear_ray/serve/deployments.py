"""The two deployments behind the ingress: the engine that reads and writes, and the price that says how much.

What a query's text made fail comes back as a value with a message of ours: an exception would put the prompt into a
replica's log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from clear_ray.config.engine import EngineConfig
from clear_ray.config.run import EstimateConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import FinishReason, Generation, Grant, ModelCard, Prompt
from clear_ray.engine.row_sampling import sampling_check
from clear_ray.errors import ConfigError, EngineError, EngineFailedError, SchemaError
from clear_ray.estimation.head import HeadCard
from clear_ray.estimation.resolve import resolve_head
from clear_ray.ingest.logprobs import TokenLogprob
from clear_ray.serve.batches.shared_slots import SharedSlots
from clear_ray.serve.cutting import cut_at_stop, showable
from clear_ray.serve.law import Account, Ask, Curve, Hold
from clear_ray.serve.sale_queue import Sale, SaleQueue, settings_of
from clear_ray.serve.scaling import Outstanding
from clear_ray.stages.worker import EngineWorker


@dataclass(frozen=True, slots=True, eq=False)
class PromptReading:
    """What the probe found about one query, or why the query cannot be read.

    Attributes:
        prompt_tokens: Length of the rendered prompt.
        context_tokens: Prompt and answer together may not be longer.
        curve: The estimate; None if the query cannot be read.
        error: Empty, or why not; no prompt text.
        param: Parameter of the request that it is about.
        is_too_long: Whether it cannot be read because it is too long.
    """

    prompt_tokens: int
    context_tokens: int
    curve: Curve | None
    error: str = ""
    param: str = ""
    is_too_long: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer.

    Attributes:
        text: What is new.
        token_ids: Generated for it, those of text that is held back or cut away included.
        finish_reason: None while the answer goes on.
        error: Empty, or why this query could not be generated.
        logprobs: Of those of its tokens that have text, where they are asked for; None where there are none.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    error: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None


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
    """

    def __init__(
        self, config: EngineConfig, estimate: EstimateConfig, cap_tokens: int, kept_slots: int | None = None
    ) -> None:
        self._worker = EngineWorker(config, resolve_head(estimate.head, cap_tokens=cap_tokens, layers=estimate.layers))
        self._config, self._check = config, sampling_check(config)
        self._health = Health(config.stall_seconds)
        self._slots = SharedSlots(config.max_batch, kept=kept_slots)
        self._outstanding = Outstanding()

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


class PriceReplica:
    """The one sale queue of a server. New settings arrive through Serve's `user_config`, without a restart."""

    _queue: SaleQueue

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Begin, or go on, under these settings; called by Serve before the first query and at every change."""
        settings = settings_of(user_config)
        if hasattr(self, "_queue"):
            self._queue.change(settings)
        else:
            self._queue = SaleQueue(settings)

    async def buy(self, ask: Ask) -> Sale:
        """Sell tokens to a query, at once or when its turn in the queue has come."""
        return await self._queue.buy(ask)

    async def settle(self, hold: Hold, spent_tokens: int) -> None:
        """Charge what was generated."""
        self._queue.settle(hold, spent_tokens)

    async def stop_selling(self) -> None:
        """Refuse every query from now on; those in the queue keep their places."""
        self._queue.stop_selling()

    async def is_selling(self) -> bool:
        """Whether new queries are taken."""
        return self._queue.is_selling

    async def account(self) -> tuple[Account, int]:
        """Return the account, and how many queries wait."""
        return self._queue.account(), self._queue.waiting


def _grid(tokens_K: Sequence[int]) -> Any:
    import numpy as np

    return np.asarray(tokens_K, np.int64)
