"""What engines with a model of their own do around their batch: refuse what cannot run, and hand out what has ended.

Shapes: N queries, D hidden width.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from clear_ray.config.engine import ModelConfig
from clear_ray.engine.base import Features, Generation, Grant, ModelCard, Prompt, check_generation
from clear_ray.engine.batch import ReadToken, RunningGrant
from clear_ray.engine.choice import Stops
from clear_ray.engine.context import context_tokens
from clear_ray.engine.fingerprint import model_fingerprint
from clear_ray.engine.rendering import Rendering
from clear_ray.engine.streaming import Partial
from clear_ray.engine.structured import Structures
from clear_ray.engine.token_bytes import TokenBytes
from clear_ray.errors import ConfigError, EngineError, SchemaError
from clear_ray.ingest.logprobs import LEAST_LOGPROB, TokenLogprob

_Item = TypeVar("_Item")


class Runner(Protocol):
    """Whatever keeps a batch going: `BatchThread`, or vLLM's engine in a thread."""

    def submit(self, answers: Sequence[RunningGrant]) -> None:
        """Hand answers to the batch; each one's `on_end` will be called."""

    def abandon(self, answers: Iterable[RunningGrant]) -> None:
        """Let these answers end soon: nothing waits for them any more."""


class Admission:
    """Turns grants into answers to be generated, and answers that have ended into generations.

    Args:
        rendering: Rendering of prompts for the model.
        vocabulary: Tokens that the model knows.
        context_tokens: Prompt and answer together may not be longer.
        structures: Makes the matchers of answers that keep to a structure; None where the engine does so itself.
    """

    def __init__(
        self, rendering: Rendering, *, vocabulary: int, context_tokens: int, structures: Structures | None = None
    ) -> None:
        self._rendering, self._vocabulary, self._context_tokens = rendering, vocabulary, context_tokens
        self._structures = structures
        self._token_bytes: TokenBytes | None = None

    def readable(self, query_ids: Sequence[str], prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of prompts that are to be read.

        Raises:
            SchemaError: A prompt cannot be rendered, does not fit the context, or has tokens that the model does not know.
        """
        ids_N = self._rendering.token_ids(prompts)
        for query_id, ids in zip(query_ids, ids_N, strict=True):
            if len(ids) >= self._context_tokens:
                raise SchemaError(
                    f"the prompt leaves no room for an answer in a context of {self._context_tokens} tokens",
                    f"query {query_id}",
                    f"{len(ids)} tokens",
                    "Shorten the prompt.",
                )
            if not self._is_known(ids):
                raise SchemaError(
                    f"the prompt has tokens outside the vocabulary of {self._vocabulary}",
                    f"query {query_id}",
                    remedy="Use the tokenizer that the model was made with.",
                )
        return ids_N

    def admit(self, grant: Grant, on_end: Callable[[RunningGrant | EngineError], None]) -> RunningGrant:
        """Return the grant as an answer to be generated, or as one that has already failed."""
        try:
            input_ids = self._rendering.token_ids([grant.prompt])[0]
        except SchemaError as error:
            return RunningGrant(grant, [], on_end).end("cancelled", str(error))
        answer = RunningGrant(grant, [*input_ids, *grant.prefix_token_ids], on_end)
        if grant.max_tokens < 1:
            return answer.end("cancelled", f"a grant must allow at least 1 token, not {grant.max_tokens}")
        if not self._is_known(answer.input_ids):
            # On CUDA an unknown token would end the process, not the query.
            return answer.end("cancelled", f"prompt or prefix has tokens outside the vocabulary of {self._vocabulary}")
        needed = len(answer.input_ids) + grant.max_tokens
        if needed > self._context_tokens:
            return answer.end(
                "cancelled",
                f"prompt, prefix and grant are {needed} tokens, the context is {self._context_tokens}",
            )
        return self._with_own_rules(answer)

    def _with_own_rules(self, answer: RunningGrant) -> RunningGrant:
        """Give an answer the stops and the structure that its query asks for, or let it fail."""
        sampling = answer.grant.sampling
        if sampling is None:
            return answer
        named = [*sampling.stop_token_ids, *(token_id for token_id, _ in sampling.logit_bias)]
        if not self._is_known(named):
            return answer.end(
                "cancelled", f"stop_token_ids or logit_bias name tokens outside the vocabulary of {self._vocabulary}"
            )
        if sampling.stop:
            answer.stops = Stops(sampling.stop, self._rendering.text, sampling.min_tokens)
            if marks := self._known_bytes().special_ids(sampling.stop):  # which have no text
                sampling = sampling.model_copy(update={"stop_token_ids": (*sampling.stop_token_ids, *marks)})
                answer.grant = replace(answer.grant, sampling=sampling)
        if sampling.structure is not None and self._structures is not None:
            try:
                answer.matcher = self._structures.matcher(sampling.structure, answer.grant.prefix_token_ids)
            except (ConfigError, SchemaError) as error:
                return answer.end("cancelled", str(error))
        return answer

    def generation(self, answer: RunningGrant) -> Generation:
        """Return what came of an answer that has ended.

        Raises:
            EngineError: It is longer than its grant.
        """
        grant = answer.grant
        # What is outside the vocabulary was refused, and has no text.
        text = self._text(answer, answer.token_ids) if self._is_known(answer.token_ids) else ""
        generation = Generation(
            query_id=grant.query_id,
            token_ids=tuple(answer.generated),
            text=text,
            finish_reason=answer.finish_reason or "cancelled",
            error=answer.error,
            sample=grant.sample,
            logprobs=None if answer.top_logprobs is None else self._logprobs(answer.read),
            cached_tokens=answer.cached_tokens,
        )
        return check_generation(grant, generation)

    def _logprobs(self, read: Sequence[ReadToken]) -> tuple[TokenLogprob, ...]:
        """Return the entries of those tokens that have text."""
        known = self._known_bytes()
        return tuple(
            TokenLogprob(
                known.of(token.token_id),
                max(token.logprob, LEAST_LOGPROB),
                tuple((known.of(token_id), max(value, LEAST_LOGPROB)) for token_id, value in token.top),
            )
            for token in read
            if not known.is_special(token.token_id)
        )

    def _known_bytes(self) -> TokenBytes:
        if self._token_bytes is None:
            self._token_bytes = TokenBytes(self._rendering.tokenizer)
        return self._token_bytes

    async def run(self, grants: Sequence[Grant], runner: Runner) -> AsyncIterator[Generation]:
        """Have the grants run; yield each generation as soon as it ends.

        Raises:
            EngineError: The engine failed, or a generation is longer than its grant.
        """
        ended: asyncio.Queue[RunningGrant | EngineError] = asyncio.Queue()
        on_end = _deliver_to(ended, asyncio.get_running_loop())
        answers = [self.admit(grant, on_end) for grant in grants]
        waiting = {answer for answer in answers if answer.finish_reason is None}
        runner.submit([answer for answer in answers if answer in waiting])
        try:
            for answer in answers:
                if answer not in waiting:
                    yield self.generation(answer)
            while waiting:
                answer_or_failure = await ended.get()
                if isinstance(answer_or_failure, EngineError):
                    raise type(answer_or_failure)(*answer_or_failure.args)
                waiting.discard(answer_or_failure)
                yield self.generation(answer_or_failure)
        finally:
            # What a caller that went away would have got is asked for no more.
            runner.abandon(waiting)

    async def stream(self, grant: Grant, every_tokens: int, runner: Runner) -> AsyncIterator[Partial | Generation]:
        """Have one grant run; yield what there is after every `every_tokens` tokens, then the generation.

        Raises:
            EngineError: The engine failed, or the generation is longer than its grant.
        """
        news: asyncio.Queue[tuple[int, ...] | RunningGrant | EngineError] = asyncio.Queue()
        tell = _deliver_to(news, asyncio.get_running_loop())
        answer = self.admit(grant, tell)
        if answer.finish_reason is not None:
            yield self.generation(answer)
            return
        answer.on_step, answer.step_tokens = _every(every_tokens, tell), every_tokens
        runner.submit([answer])
        try:
            while True:
                item = await news.get()
                while not news.empty():
                    item = news.get_nowait()  # the newest one says all that the others say
                if isinstance(item, EngineError):
                    raise type(item)(*item.args)
                if isinstance(item, RunningGrant):
                    yield self.generation(item)
                    return
                read = None if answer.top_logprobs is None else self._logprobs(answer.read[: len(item)])
                yield Partial(item, self._text(answer, [*grant.prefix_token_ids, *item]), read)
        finally:
            runner.abandon([answer])

    def _text(self, answer: RunningGrant, token_ids: Sequence[int]) -> str:
        """Return the text of an answer's tokens, up to the first of its stops."""
        cut = None if answer.stops is None else answer.stops.cut(token_ids)
        return self._rendering.text(token_ids) if cut is None else cut

    def _is_known(self, token_ids: Sequence[int]) -> bool:
        return not token_ids or (min(token_ids) >= 0 and max(token_ids) < self._vocabulary)


def model_card(config: ModelConfig, folder: Path, saved: Any) -> ModelCard:
    """Return the card of a saved model, hidden states included.

    Args:
        config: Name of the model, and the longest context that is wanted.
        folder: Where the model is saved.
        saved: Its own configuration, as transformers reads it.

    Raises:
        ConfigError: The model's context is shorter, or unknown and not given.
    """
    return ModelCard(
        name=config.model,
        fingerprint=model_fingerprint(folder),
        context_tokens=context_tokens(config, saved),
        hidden_width=hidden_width(saved),
    )


def hidden_width(config: Any) -> int:
    """Return the width of a model's last hidden states: of its layers, unless it projects them (OPT 350M).

    Args:
        config: Its own configuration, as transformers reads it.
    """
    text = config.get_text_config()
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


def end_token_ids(config: Any, generation_config: Any, rendering: Rendering) -> frozenset[int]:
    """Return all tokens that end an answer, by any of the model's files.

    Args:
        config: The model's configuration, as transformers reads it.
        generation_config: Its generation configuration; None if it has none.
        rendering: Its tokenizer.
    """
    named: set[int] = set()
    for source in (generation_config, config, config.get_text_config()):
        ids = getattr(source, "eos_token_id", None)
        named.update([ids] if isinstance(ids, int) else ids or ())
    if rendering.end_token_id is not None:
        named.add(rendering.end_token_id)
    return frozenset(named)


def empty_features(queries: int, width: int) -> Features:
    """Return features to be filled in.

    Args:
        queries: Number of queries, N.
        width: Size of a hidden state, D.
    """
    return Features(
        prompt_tokens_N=np.zeros(queries, dtype=np.int64),
        entropy_N=np.zeros(queries, dtype=np.float32),
        hidden_last_ND=np.zeros((queries, width), dtype=np.float32),
        hidden_mean_ND=np.zeros((queries, width), dtype=np.float32),
    )


def _deliver_to(queue: asyncio.Queue[_Item], loop: asyncio.AbstractEventLoop) -> Callable[[_Item], None]:
    def deliver(item: _Item) -> None:
        # A loop that was closed has nothing left that waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, item)

    return deliver


def _every(tokens: int, tell: Callable[[tuple[int, ...]], None]) -> Callable[[RunningGrant], None]:
    """Return a watcher that tells what an answer holds whenever so many more tokens have come."""
    told = 0

    def watch(answer: RunningGrant) -> None:
        nonlocal told
        if len(answer.generated) - told >= tokens:
            told = len(answer.generated)
            tell(tuple(answer.generated))

    return watch
