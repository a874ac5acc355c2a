"""Any causal language model of transformers, on CPU or CUDA, in one continuous batch.

Two ways of batching: `slots` (ours, the default) and `paged` (transformers' own). Both give the same tokens in float32.
`slots` is the faster one on CPU and the only one whose samples depend on nothing but seed, query and position;
docs/performance.md has the figures.

Shapes: N queries, D hidden width.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clear_ray.engine.base import Features, Generation, Grant, ModelCard, Prompt, check_generation
from clear_ray.engine.batch import Answer, Batch, BatchThread, Turns
from clear_ray.engine.closing import CLOSING_TEXT, Closing
from clear_ray.engine.fingerprint import model_fingerprint
from clear_ray.engine.grouping import reading_groups
from clear_ray.engine.loading import cache_capacity_tokens, check_slots_fit, load_model, model_folder
from clear_ray.engine.rendering import Rendering
from clear_ray.engine.slot_cache import SlotCache, SlotRunner
from clear_ray.engine.slots import SlotBatch
from clear_ray.errors import ConfigError, EngineError, SchemaError

_PREFILL_TOKENS = {"cpu": 512, "cuda": 8192}


class TransformersEngine:
    """A model of transformers behind the Engine protocol.

    A grant that does not fit the context with its prompt, or whose prompt cannot be rendered, is that query's `error`.

    Sampling draws from a random stream keyed by seed, query, sample and token position, so a continued answer goes on
    as the uninterrupted one would have, whatever else is in the batch; see clear_ray/engine/sampling.py for the limits
    that rounding sets. This holds for `slots`; `paged` draws from one stream for the whole batch and looks at no seed.

    Args:
        model: A local folder of safetensors, a hub name, or `smollm2-135m-instruct`.
        device: `cpu`, `cuda`, `cuda:1`, …; None takes CUDA where there is any.
        dtype: `float32`, `bfloat16` or `float16`; None takes float32 on CPU, bfloat16 (or float16) on CUDA.
        max_batch: Answers that run at the same time, if memory allows.
        max_context_tokens: Prompt and answer together; None takes the model's own limit.
        chat_template: Wrap a plain prompt as one user message, where the model has a chat template.
        system_prompt: System message put before every prompt that has none of its own.
        temperature: 0 is greedy.
        top_p: Nucleus of the sampling distribution.
        threads: Threads of torch on CPU, for the whole process; None takes all cores the process may use.
        batching: `slots` or `paged`.
        cache_tokens: Positions of the key-value cache over all answers; None derives it from the free memory.
        answer_reserve_tokens: Tokens at the end of each grant in which an unfinished answer is closed with `closing_text`
            and made to give its answer; None closes nothing. Only with `slots`.
        closing_text: What closes an answer.

    Raises:
        ConfigError: A setting is out of range, or the model cannot be used.
        EngineError: The model cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        max_batch: int = 32,
        max_context_tokens: int | None = None,
        chat_template: bool = True,
        system_prompt: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        threads: int | None = None,
        batching: Literal["slots", "paged"] = "slots",
        cache_tokens: int | None = None,
        answer_reserve_tokens: int | None = None,
        closing_text: str = CLOSING_TEXT,
    ) -> None:
        _check_settings(max_batch=max_batch, temperature=temperature, top_p=top_p, batching=batching)
        self._rendering = Rendering(model, chat_template=chat_template, system_prompt=system_prompt)
        closing = _closing(self._rendering, answer_reserve_tokens, closing_text, batching)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if place.type == "cpu":
            torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        self._model = load_model(model, device=place, dtype=dtype)
        self._prefill_tokens = _PREFILL_TOKENS.get(place.type, _PREFILL_TOKENS["cuda"])
        self._card = _card(str(model), model_folder(model), self._model.config, max_context_tokens)
        self._vocabulary: int = self._model.get_input_embeddings().num_embeddings
        self._runner = SlotRunner(self._model)
        check_slots_fit(self._model)
        options = {
            "max_batch": max_batch,
            "cache_tokens": cache_tokens or cache_capacity_tokens(self._model),
            "prefill_tokens": self._prefill_tokens,
            "end_token_ids": _end_token_ids(self._model, self._rendering),
            "temperature": temperature,
            "top_p": top_p,
        }
        self._model_turns = Turns()
        self._thread = BatchThread(self._make_batch(batching, options, closing), model_turns=self._model_turns)
        # Runs at the latest when the interpreter exits, so that the thread is never caught inside torch.
        self._close = weakref.finalize(self, self._thread.close)

    @property
    def card(self) -> ModelCard:
        """Identity and limits of the model."""
        return self._card

    @property
    def progress(self) -> int:
        """Passes of the model so far; with `paged`, passes of prefill and tokens."""
        return self._runner.passes + self._thread.progress

    def prompt_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Count the tokens of each rendered prompt, without running the model.

        Raises:
            SchemaError: A prompt cannot be rendered.
        """
        return [len(ids) for ids in self._rendering.token_ids(prompts)]

    def prefill(self, query_ids: Sequence[str], prompts: Sequence[Prompt]) -> Features:
        """Read each prompt once, like lengths together; generates nothing and changes no state.

        Raises:
            SchemaError: A prompt cannot be rendered or does not fit the context.
            EngineError: The model failed, or the engine is closed.
        """
        self._refuse_if_closed()
        ids_N = self._rendering.token_ids(prompts)
        for query_id, ids in zip(query_ids, ids_N, strict=True):
            if len(ids) >= self._card.context_tokens:
                raise SchemaError(
                    f"the prompt leaves no room for an answer in a context of {self._card.context_tokens} tokens",
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
        features = _empty_features(len(ids_N), self._card.hidden_width)
        features.prompt_tokens_N[:] = [len(ids) for ids in ids_N]
        try:
            for rows in reading_groups(ids_N, pass_tokens=self._prefill_tokens):
                with self._model_turns:
                    self._prefill_rows(features, rows, ids_N)
        except RuntimeError as error:
            raise EngineError("the language model failed", "prefill", str(error)) from error
        return features

    async def generate(self, grants: Sequence[Grant]) -> AsyncIterator[Generation]:
        """Run the grants in the continuous batch; yield each generation as soon as it ends.

        Raises:
            EngineError: The model failed, or the engine is closed.
        """
        self._refuse_if_closed()
        ended: asyncio.Queue[Answer | EngineError] = asyncio.Queue()
        on_end = _deliver_to(ended, asyncio.get_running_loop())
        answers = [self._admit(grant, on_end) for grant in grants]
        waiting = {answer for answer in answers if answer.finish_reason is None}
        self._thread.submit([answer for answer in answers if answer in waiting])
        try:
            for answer in answers:
                if answer not in waiting:
                    yield self._generation(answer)
            while waiting:
                answer_or_failure = await ended.get()
                if isinstance(answer_or_failure, EngineError):
                    raise EngineError(*answer_or_failure.args)
                waiting.discard(answer_or_failure)
                yield self._generation(answer_or_failure)
        finally:
            # Nobody asks for what a caller that went away would have got.
            self._thread.abandon(waiting)

    def cancel(self, query_ids: Iterable[str]) -> None:
        """End these queries' running generations at the next step; safe from any thread."""
        self._thread.cancel(query_ids)

    def close(self) -> None:
        """Stop the batch and release the model. Calling it again does nothing."""
        if self._close.alive:
            self._close()
            del self._model, self._runner

    def _make_batch(self, batching: str, options: dict[str, Any], closing: Closing | None) -> Batch:
        if batching == "slots":
            return SlotBatch(self._model, closing=closing, **options)
        from clear_ray.engine.paged import PagedBatch

        return PagedBatch(self._model, **options)

    def _admit(self, grant: Grant, on_end: Callable[[Answer | EngineError], None]) -> Answer:
        """Return the grant as an answer to be generated, or as one that has already failed."""
        try:
            input_ids = self._rendering.token_ids([grant.prompt])[0]
        except SchemaError as error:
            return Answer(grant, [], on_end).end("cancelled", str(error))
        answer = Answer(grant, [*input_ids, *grant.prefix_token_ids], on_end)
        if grant.max_tokens < 1:
            return answer.end("cancelled", f"a grant must allow at least 1 token, not {grant.max_tokens}")
        if not self._is_known(answer.input_ids):
            # On CUDA an unknown token would end the process, not the query.
            return answer.end("cancelled", f"prompt or prefix has tokens outside the vocabulary of {self._vocabulary}")
        needed = len(answer.input_ids) + grant.max_tokens
        if needed > self._card.context_tokens:
            return answer.end(
                "cancelled",
                f"prompt, prefix and grant are {needed} tokens, the context is {self._card.context_tokens}",
            )
        return answer

    def _generation(self, answer: Answer) -> Generation:
        grant = answer.grant
        token_ids = [*grant.prefix_token_ids, *answer.generated]
        generation = Generation(
            query_id=grant.query_id,
            token_ids=tuple(answer.generated),
            # What is outside the vocabulary was refused, and has no text.
            text=self._rendering.text(token_ids) if self._is_known(token_ids) else "",
            finish_reason=answer.finish_reason or "cancelled",
            error=answer.error,
            sample=grant.sample,
        )
        return check_generation(grant, generation)

    def _is_known(self, token_ids: Sequence[int]) -> bool:
        return not token_ids or (min(token_ids) >= 0 and max(token_ids) < self._vocabulary)

    @torch.inference_mode()
    def _prefill_rows(self, features: Features, rows: list[int], ids_N: list[list[int]]) -> None:
        """Fill in the features of some rows from one pass over all but their last token, and one over that."""
        cache = SlotCache()
        longest = max(len(ids_N[row]) for row in rows)
        cache.reserve(len(rows), longest, kept_rows=0)
        heads = [ids_N[row][:-1] for row in rows]
        total_ND = (
            self._runner.prefill(cache, 0, heads, max(1, self._prefill_tokens // len(rows))) if longest > 1 else 0.0
        )
        output = self._runner.decode(
            cache, [ids_N[row][-1] for row in rows], [len(head) for head in heads], with_hidden=True
        )
        last_ND = output.hidden_states[-1][:, -1].float()
        length_N1 = torch.tensor([[len(ids_N[row])] for row in rows], device=last_ND.device)
        log_p_NV = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
        features.hidden_last_ND[rows] = last_ND.cpu().numpy()
        features.hidden_mean_ND[rows] = ((total_ND + last_ND) / length_N1).cpu().numpy()
        features.entropy_N[rows] = torch.special.entr(log_p_NV.exp()).sum(dim=-1).cpu().numpy()

    def _refuse_if_closed(self) -> None:
        if not self._close.alive:
            raise EngineError("the engine is closed", remedy="Make a new one.")


def _check_settings(*, max_batch: int, temperature: float, top_p: float, batching: str) -> None:
    checks = {
        "max_batch": (max_batch >= 1, max_batch, "Give at least 1."),
        "temperature": (temperature >= 0, temperature, "Give 0 for greedy, or a positive number."),
        "top_p": (0 < top_p <= 1, top_p, "Give a number above 0, at most 1."),
        "batching": (batching in ("slots", "paged"), batching, "Give slots or paged."),
    }
    for setting, (is_fine, value, remedy) in checks.items():
        if not is_fine:
            raise ConfigError("the setting is out of range", setting, str(value), remedy)


def _closing(rendering: Rendering, reserve_tokens: int | None, text: str, batching: str) -> Closing | None:
    if reserve_tokens is None:
        return None
    if batching != "slots":
        raise ConfigError("only slots can close answers", "answer_reserve_tokens", remedy="Set batching to slots.")
    return Closing(reserve_tokens, tuple(rendering.plain_token_ids(text)), rendering.text, text.strip())


def _card(name: str, folder: Path, config: Any, max_context_tokens: int | None) -> ModelCard:
    text_config = config.get_text_config()
    limit = int(getattr(text_config, "max_position_embeddings", 0)) or max_context_tokens
    if limit is None:
        raise ConfigError("the model states no longest context", "max_context_tokens", remedy="Set max_context_tokens.")
    if max_context_tokens is not None and not 1 < max_context_tokens <= limit:
        raise ConfigError(
            f"the model's context is {limit} tokens", "max_context_tokens", str(max_context_tokens), "Give less."
        )
    return ModelCard(
        name=name,
        fingerprint=model_fingerprint(folder),
        context_tokens=max_context_tokens or limit,
        hidden_width=int(text_config.hidden_size),
    )


def _end_token_ids(model: Any, rendering: Rendering) -> frozenset[int]:
    """Return all tokens that end an answer, by any of the model's files."""
    named: set[int] = set()
    for source in (model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id):
        named.update([source] if isinstance(source, int) else source or ())
    if rendering.end_token_id is not None:
        named.add(rendering.end_token_id)
    return frozenset(named)


def _deliver_to(
    ended: asyncio.Queue[Answer | EngineError], loop: asyncio.AbstractEventLoop
) -> Callable[[Answer | EngineError], None]:
    def deliver(item: Answer | EngineError) -> None:
        # A loop that was closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.put_nowait, item)

    return deliver


def _empty_features(queries: int, width: int) -> Features:
    return Features(
        prompt_tokens_N=np.zeros(queries, dtype=np.int64),
        entropy_N=np.zeros(queries, dtype=np.float32),
        hidden_last_ND=np.zeros((queries, width), dtype=np.float32),
        hidden_mean_ND=np.zeros((queries, width), dtype=np.float32),
    )
