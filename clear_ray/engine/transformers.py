"""Any causal language model of transformers, on CPU or CUDA, in one continuous batch.

Two ways of batching: `slots` (ours, the default) and `paged` (transformers' own). Both give the same tokens in float32.
`slots` is the faster one on CPU and the only one whose samples depend on nothing but seed, query and position;
docs/performance.md has the figures.

Shapes: N queries, D hidden width.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from clear_ray.engine.admission import Admission, check_sampling, empty_features, end_token_ids, model_card
from clear_ray.engine.base import Features, Generation, Grant, ModelCard, Prompt
from clear_ray.engine.batch import Batch, BatchThread, Turns
from clear_ray.engine.closing import CLOSING_TEXT, Closing, make_closing
from clear_ray.engine.grouping import PASS_COST, PREFILL_TOKENS, reading_groups
from clear_ray.engine.loading import cache_capacity_tokens, load_model, model_folder
from clear_ray.engine.rendering import Rendering
from clear_ray.engine.shallow import first_layers
from clear_ray.engine.slots import SlotBatch, refill_rows
from clear_ray.engine.streaming import Partial
from clear_ray.engine.threads import pass_seconds, threads_worth_having
from clear_ray.engine.trial import Way, find_way, make_cache, make_runner
from clear_ray.errors import ConfigError, EngineError, EngineFailedError

_TRIAL_ROWS = 32


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
        threads: Threads of torch on CPU, for the whole process; None takes as many as pay, which takes some passes to find.
        batching: `slots` or `paged`.
        enforce_eager: Launch every kernel of a pass by itself instead of replaying CUDA graphs; only of `slots` on CUDA.
        cache_tokens: Positions of the key-value cache over all answers; None derives it from the free memory.
        answer_reserve_tokens: Tokens at the end of each grant in which an unfinished answer is closed with `closing_text`
            and made to give its answer; None closes nothing. Only with `slots`.
        closing_text: What closes an answer.
        probe_layers: Layers that `prefill` runs; None runs all.

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
        enforce_eager: bool = False,
        answer_reserve_tokens: int | None = None,
        closing_text: str = CLOSING_TEXT,
        probe_layers: int | None = None,
    ) -> None:
        check_sampling(max_batch=max_batch, temperature=temperature, top_p=top_p)
        if batching not in ("slots", "paged"):
            raise ConfigError("the setting is out of range", "batching", str(batching), "Give slots or paged.")
        self._rendering = Rendering(model, chat_template=chat_template, system_prompt=system_prompt)
        closing = _closing(self._rendering, answer_reserve_tokens, closing_text, batching)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if place.type not in PREFILL_TOKENS:
            raise ConfigError("no such device here", "device", str(place), "Give cpu or cuda.")
        self._model = load_model(model, device=place, dtype=dtype)
        self._prefill_tokens = PREFILL_TOKENS[place.type]
        self._card = model_card(str(model), model_folder(model), self._model.config, max_context_tokens)
        self._admission = Admission(
            self._rendering,
            vocabulary=self._model.get_input_embeddings().num_embeddings,
            context_tokens=self._card.context_tokens,
        )
        self._way: Way = find_way(self._model)
        probed = self._model if probe_layers is None else first_layers(self._model, probe_layers)
        self._runner: Any = make_runner(probed, self._way)
        if place.type == "cpu":
            torch.set_num_threads(threads or _threads_for(self._model, max_batch, self._way))
        options = {
            "max_batch": max_batch,
            "cache_tokens": cache_tokens or cache_capacity_tokens(self._model),
            "prefill_tokens": self._prefill_tokens,
            "end_token_ids": end_token_ids(self._model.config, self._model.generation_config, self._rendering),
            "temperature": temperature,
            "top_p": top_p,
        }
        self._model_turns = Turns()
        batch = self._make_batch(batching, options, closing, graphs=place.type == "cuda" and not enforce_eager)
        self._thread = BatchThread(batch, model_turns=self._model_turns)
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
        ids_N = self._admission.readable(query_ids, prompts)
        features = empty_features(len(ids_N), self._card.hidden_width)
        features.prompt_tokens_N[:] = [len(ids) for ids in ids_N]
        try:
            pass_cost = PASS_COST[self._model.device.type]
            for rows in reading_groups(ids_N, pass_tokens=self._prefill_tokens, pass_cost=pass_cost):
                with self._model_turns:
                    self._prefill_rows(features, rows, ids_N)
        except RuntimeError as error:
            raise EngineFailedError(
                "the language model failed",
                "prefill",
                str(error),
                remedy="If memory ran out, lower engine.max_batch or engine.max_context_tokens.",
            ) from error
        return features

    def generate(self, grants: Sequence[Grant]) -> AsyncIterator[Generation]:
        """Run the grants in the continuous batch; yield each generation as soon as it ends.

        Raises:
            EngineError: The model failed, or the engine is closed.
        """
        self._refuse_if_closed()
        return self._admission.run(grants, self._thread)

    def stream(self, grant: Grant, every_tokens: int) -> AsyncIterator[Partial | Generation]:
        """Run one grant in the continuous batch; yield what there is after every `every_tokens` tokens, then the generation.

        Raises:
            EngineError: The model failed, or the engine is closed.
        """
        self._refuse_if_closed()
        return self._admission.stream(grant, every_tokens, self._thread)

    def cancel(self, query_ids: Iterable[str]) -> None:
        """End these queries' running generations at the next step; safe from any thread."""
        self._thread.cancel(query_ids)

    def close(self) -> None:
        """Stop the batch and release the model. Calling it again does nothing."""
        if self._close.alive:
            self._close()
            del self._model, self._runner

    def _make_batch(self, batching: str, options: dict[str, Any], closing: Closing | None, *, graphs: bool) -> Batch:
        if batching == "slots":
            few = refill_rows(options["max_batch"], self._model.device)
            return SlotBatch(self._model, closing=closing, graphs=graphs, refill_rows=few, way=self._way, **options)
        from clear_ray.engine.paged import PagedBatch

        return PagedBatch(self._model, **options)

    @torch.inference_mode()
    def _prefill_rows(self, features: Features, rows: list[int], ids_N: list[list[int]]) -> None:
        """Fill in the features of some rows from one pass over all but their last token, and one over that."""
        cache: Any = make_cache(self._way)
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


def _threads_for(model: Any, max_batch: int, way: Way) -> int:
    cores = len(os.sched_getaffinity(0))
    return threads_worth_having(cores, pass_seconds(model, min(max_batch, _TRIAL_ROWS), way)) if cores > 1 else 1


def _closing(rendering: Rendering, reserve_tokens: int | None, text: str, batching: str) -> Closing | None:
    if reserve_tokens is not None and batching != "slots":
        raise ConfigError("only slots can close answers", "answer_reserve_tokens", remedy="Set batching to slots.")
    return make_closing(rendering, reserve_tokens, text)
