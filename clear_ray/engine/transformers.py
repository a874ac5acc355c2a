"""Any causal language model of transformers, on CPU or CUDA, in one continuous batch.

Shapes: N queries, D hidden width.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import torch

from clear_ray.config.engine import TransformersConfig
from clear_ray.engine.admission import Admission, empty_features, end_token_ids, model_card
from clear_ray.engine.base import Features, Generation, Grant, ModelCard, Prompt
from clear_ray.engine.batch import BatchThread, FairLock
from clear_ray.engine.closing import make_closing
from clear_ray.engine.grouping import PASS_COST, PREFILL_TOKENS, reading_groups
from clear_ray.engine.kept_prompts import KeptPrompts
from clear_ray.engine.loading import cache_capacity_tokens, load_model, model_folder
from clear_ray.engine.prefix_cache import PrefixCache
from clear_ray.engine.reading import read_prompts
from clear_ray.engine.rendering import rendering_of
from clear_ray.engine.shallow import first_layers
from clear_ray.engine.slots import SlotBatch, refill_rows
from clear_ray.engine.streaming import Partial
from clear_ray.engine.structured import Structures
from clear_ray.engine.threads import PassThreads, threads_here
from clear_ray.engine.trial import OWN_CACHE_ANSWERS, Way, find_way, make_runner
from clear_ray.errors import ConfigError, EngineError, EngineFailedError, told

_KEPT_SHARE = 0.5  # of the cache, for prompts that were read and not asked yet
_PREFIX_SHARE = 0.25  # likewise, for what ended answers have read


class TransformersEngine:
    """A model of transformers behind the Engine protocol.

    A grant that does not fit the context with its prompt, or whose prompt cannot be rendered, is that query's `error`.

    Sampling draws from a random stream keyed by seed, query, sample and token position, so a continued answer goes on
    as the uninterrupted one would have, whatever else is in the batch; see clear_ray/engine/sampling.py for the limits
    that rounding sets.

    Args:
        config: Model, device and sampling.
        probe_layers: Layers that `prefill` runs; None runs all.
        cache_tokens: Positions of the key-value cache over all answers; None derives it from the free memory.
        told: As for `load_model`.

    Raises:
        ConfigError: The device or the reserve cannot be had, or the model cannot be used.
        EngineError: The model cannot be loaded.
    """

    def __init__(
        self,
        config: TransformersConfig,
        *,
        probe_layers: int | None = None,
        cache_tokens: int | None = None,
        told: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._rendering = rendering_of(config)
        closing = make_closing(self._rendering, config)
        device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type not in PREFILL_TOKENS:
            raise ConfigError("no such device here", "device", str(device), "Give cpu or cuda.")
        self._threads = _threads_of(config) if device.type == "cpu" else None
        dtype = None if config.dtype == "auto" else config.dtype
        self._model = load_model(config.model, device=device, dtype=dtype, told=told)
        self._prefill_tokens = PREFILL_TOKENS[device.type]
        self._card = model_card(config, model_folder(config.model), self._model.config)
        vocabulary = int(self._model.get_input_embeddings().num_embeddings)
        ends = end_token_ids(self._model.config, self._model.generation_config, self._rendering)
        self._admission = Admission(
            self._rendering,
            vocabulary=vocabulary,
            context_tokens=self._card.context_tokens,
            structures=Structures(self._rendering, vocabulary=vocabulary, end_token_ids=ends),
        )
        self._way: Way = find_way(self._model, context_tokens=self._card.context_tokens)
        if self._way == "own_caches":
            config = config.model_copy(update={"max_batch": min(config.max_batch, OWN_CACHE_ANSWERS)})
        probed = self._model if probe_layers is None else first_layers(self._model, probe_layers)
        self._runner: Any = make_runner(probed, self._way)
        cache_tokens = cache_tokens or cache_capacity_tokens(self._model, self._way, answers=config.max_batch)
        is_whole = self._way == "slots" and probed is self._model
        self._kept = KeptPrompts(int(cache_tokens * _KEPT_SHARE)) if is_whole else None
        most_tokens = int(cache_tokens * _PREFIX_SHARE) if self._way == "slots" else 0
        self._prefixes = PrefixCache(most_tokens, 2 * config.max_batch)
        batch = SlotBatch(
            self._model,
            config,
            cache_tokens=cache_tokens,
            prefill_tokens=self._prefill_tokens,
            end_token_ids=ends,
            closing=closing,
            graphs=device.type == "cuda" and not config.enforce_eager,
            refill_rows=refill_rows(config.max_batch, device),
            way=self._way,
            kept=self._kept,
            prefixes=self._prefixes,
            threads=self._threads,
        )
        self._model_turns = FairLock()
        # A long prompt that is probed lets answers go on between its chunks.
        self._runner.pause = self._model_turns.pause
        self._thread = BatchThread(batch, model_turns=self._model_turns)
        # Runs at the latest when the interpreter exits, so that the thread is never caught inside torch.
        self._close = weakref.finalize(self, self._thread.close)

    @property
    def card(self) -> ModelCard:
        """Identity and limits of the model."""
        return self._card

    @property
    def progress(self) -> int:
        """Passes of the model so far."""
        return int(self._runner.passes) + self._thread.progress

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
                    if self._threads is not None:  # which a thread has for itself
                        self._threads.set_for_reading()
                    read_prompts(
                        self._runner,
                        self._way,
                        features,
                        rows,
                        ids_N,
                        pass_tokens=self._prefill_tokens,
                        kept=self._kept,
                    )
        except RuntimeError as error:
            raise EngineFailedError(
                "the language model failed",
                "prefill",
                told(error),
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

    def _refuse_if_closed(self) -> None:
        if not self._close.alive:
            raise EngineError("the engine is closed", remedy="Make a new one.")


def _threads_of(config: TransformersConfig) -> PassThreads | None:
    """Set the threads of an engine on a CPU; return what chooses them from now on, None if they are given."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
        return None
    threads = threads_here(torch.set_num_threads)
    threads.set_for_reading()
    return threads
