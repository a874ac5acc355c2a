"""Any causal language model that vLLM runs, on CUDA or, with vLLM's CPU build, on CPU. Needs the `vllm` extra.

vLLM batches, pages and schedules; what is ours is the contract. Every grant has its own `max_tokens`, and every generation is
counted here against its grant. Prompts are rendered and tokenised as for `TransformersEngine`, the same tokens end an
answer, and the model's fingerprint is the same: a head fitted with one engine is good for the other, as the states
differ by the rounding of the number format alone. docs/vllm.md says what holds and what does not.

Shapes: N queries, D hidden width.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.admission import Admission, check_sampling, empty_features, end_token_ids, model_card
from clear_ray.engine.base import Features, Generation, Grant, ModelCard, Prompt
from clear_ray.engine.closing import CLOSING_TEXT, make_closing
from clear_ray.engine.rendering import Rendering
from clear_ray.engine.vllm_settings import check_installed, placement, read_configs, reasoning, whole_model_folder
from clear_ray.errors import EngineError

_TRIAL_TOKENS = 7
_TRIAL_NATS = 0.05


class VllmEngine:
    """A model of vLLM behind the Engine protocol.

    A grant that does not fit the context with its prompt, or whose prompt cannot be rendered, is that query's `error`.

    Sampling is vLLM's own, from a generator of each request, so a text does not depend on what else is in the batch, except
    where rounding tips a token. Each grant has a seed made of seed, query, sample and the length of its prefix: the
    same grants give the same texts, but an answer that was cut into grants is not the uncut one, unless it is greedy.

    Args:
        model: A local folder of safetensors, a hub name, or `smollm2-135m-instruct`.
        dtype: `float32`, `bfloat16` or `float16`; None takes float32 on CPU, and on CUDA what the model was saved in.
        max_batch: Answers that run at the same time, if memory allows.
        max_context_tokens: Prompt and answer together; None takes the model's own limit.
        chat_template: Wrap a plain prompt as one user message, where the model has a chat template.
        system_prompt: System message put before every prompt that has none of its own.
        temperature: 0 is greedy.
        top_p: Nucleus of the sampling distribution.
        gpu_memory_utilization: Share of a GPU's memory that the engine takes, weights included.
        tensor_parallel: GPUs of this node over which the model is split.
        enforce_eager: Neither compile nor capture CUDA graphs.
        cpu_cache_gib: Memory of the key-value cache on CPU, GiB.
        answer_reserve_tokens: Tokens at the end of each grant in which an unfinished answer is closed with `closing_text`
            and made to give its answer; None closes nothing.
        closing_text: What closes an answer.
        thinking_tokens: Most tokens that an answer may think for, over all its grants; None for no limit.
        thinking_start: What begins the model's thinking, one token.
        thinking_end: What ends it, one token.
        hidden_states: Read hidden states in the probe where this vLLM lets us; otherwise log-probabilities alone.

    Raises:
        ConfigError: vLLM is not installed, a setting is out of range, or the model cannot be used.
        EngineError: The model cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str | None = None,
        max_batch: int = 256,
        max_context_tokens: int | None = None,
        chat_template: bool = True,
        system_prompt: str | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        gpu_memory_utilization: float = 0.9,
        tensor_parallel: int = 1,
        enforce_eager: bool = False,
        cpu_cache_gib: float = 2.0,
        answer_reserve_tokens: int | None = None,
        closing_text: str = CLOSING_TEXT,
        thinking_tokens: int | None = None,
        thinking_start: str = "<think>",
        thinking_end: str = "</think>",
        hidden_states: bool = True,
    ) -> None:
        check_sampling(max_batch=max_batch, temperature=temperature, top_p=top_p)
        check_installed()
        from clear_ray.engine.vllm_thread import PROBE_LOGPROBS, STREAM_TOKENS, Decoding, VllmThread

        folder = whole_model_folder(model)
        config, generation_config = read_configs(folder)
        self._rendering = Rendering(folder, chat_template=chat_template, system_prompt=system_prompt)
        decoding = Decoding(
            temperature,
            top_p,
            tuple(sorted(end_token_ids(config, generation_config, self._rendering))),
            make_closing(self._rendering, answer_reserve_tokens, closing_text),
            thinking_tokens,
        )
        self._card = model_card(str(model), folder, config, max_context_tokens)
        self._vocabulary = int(config.get_text_config().vocab_size)
        self._admission = Admission(
            self._rendering, vocabulary=self._vocabulary, context_tokens=self._card.context_tokens
        )
        arguments: dict[str, Any] = {
            "model": str(folder),
            # The configuration has been refused if it names code of its own; weights are never unpickled.
            "trust_remote_code": False,
            "load_format": "safetensors",
            "max_model_len": self._card.context_tokens,
            "max_num_seqs": max_batch,
            "enable_prefix_caching": True,
            "gpu_memory_utilization": gpu_memory_utilization,
            "tensor_parallel_size": tensor_parallel,
            "enforce_eager": enforce_eager,
            # Sampling is the run's, not what the model's files suggest.
            "generation_config": "vllm",
            "max_logprobs": PROBE_LOGPROBS,
            "stream_interval": STREAM_TOKENS,
            "worker_extension_cls": "clear_ray.engine.vllm_probe.Probe",
            "disable_log_stats": True,
            "seed": 0,
            **placement(dtype, tensor_parallel, cpu_cache_gib),
        }
        if thinking_tokens is not None:
            arguments["reasoning_config"] = reasoning(self._rendering, thinking_start, thinking_end)
        self._thread = VllmThread(arguments, decoding)
        # Runs at the latest when the interpreter exits, so that vLLM's processes end before ours.
        self._close = weakref.finalize(self, self._thread.close)
        self._has_states = self._try_states(hidden_states)
        if not self._has_states:
            self._card = replace(self._card, hidden_width=0)

    @property
    def card(self) -> ModelCard:
        """Identity and limits of the model; `hidden_width` is 0 where vLLM does not let us read hidden states."""
        return self._card

    @property
    def progress(self) -> int:
        """Outputs of vLLM so far: one for every few tokens of an answer, one for every prompt read."""
        return self._thread.progress

    @property
    def cached_tokens(self) -> int:
        """Tokens of prompts and prefixes that vLLM took from its cache instead of computing them, over all grants."""
        return self._thread.cached_tokens

    def prompt_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Count the tokens of each rendered prompt, without running the model.

        Raises:
            SchemaError: A prompt cannot be rendered.
        """
        return [len(ids) for ids in self._rendering.token_ids(prompts)]

    def prefill(self, query_ids: Sequence[str], prompts: Sequence[Prompt]) -> Features:
        """Read each prompt once; generates nothing that is kept. What was read stays in vLLM's prefix cache for `generate`.

        Where hidden states cannot be read, their width is 0 and the entropy is an upper bound: see `entropy_bounds`.

        Raises:
            SchemaError: A prompt cannot be rendered or does not fit the context.
            EngineError: The model failed, or the engine is closed.
        """
        self._refuse_if_closed()
        ids_N = self._admission.readable(query_ids, prompts)
        features = empty_features(len(ids_N), self._card.hidden_width)
        features.prompt_tokens_N[:] = [len(ids) for ids in ids_N]
        readings = self._thread.read(ids_N, with_states=self._has_states, with_log_p=not self._has_states)
        for row, reading in enumerate(readings):
            if not self._has_states:
                features.entropy_N[row] = entropy_bounds(reading.log_p, self._vocabulary)[1]
                continue
            if reading.entropy is None:  # it had to make room for others, or shared its rows: alone it does neither
                (reading,) = self._thread.read([ids_N[row]], with_states=True, with_log_p=False)
            if reading.entropy is None:
                raise EngineError("vLLM did not show the hidden states of a prompt", f"query {query_ids[row]}")
            features.entropy_N[row] = reading.entropy
            features.hidden_last_ND[row], features.hidden_mean_ND[row] = reading.last_D, reading.mean_D
        return features

    def generate(self, grants: Sequence[Grant]) -> AsyncIterator[Generation]:
        """Run the grants in the continuous batch; yield each generation as soon as it ends.

        Raises:
            EngineError: The model failed, the engine is closed, or vLLM generated more than it was granted.
        """
        self._refuse_if_closed()
        return self._admission.run(grants, self._thread)

    def cancel(self, query_ids: Iterable[str]) -> None:
        """End these queries' running generations with the tokens that vLLM has handed out; safe from any thread."""
        self._thread.cancel(query_ids)

    def close(self) -> None:
        """End vLLM and its processes. Calling it again does nothing."""
        self._close()

    def _try_states(self, is_wanted: bool) -> bool:
        """Return whether this vLLM shows us the hidden states of this model: a trial prompt tells."""
        self._thread.follow()
        if not is_wanted:
            return False
        try:
            self._thread.watch()
        except EngineError:  # a version whose workers are made otherwise; it generates all the same
            return False
        ids = [(7 * i + 3) % self._vocabulary for i in range(_TRIAL_TOKENS)]
        (reading,) = self._thread.read([ids], with_states=True, with_log_p=True)
        if reading.entropy is None or reading.last_D is None or len(reading.last_D) != self._card.hidden_width:
            return False
        least, most = entropy_bounds(reading.log_p, self._vocabulary)
        return least - _TRIAL_NATS <= reading.entropy <= most + _TRIAL_NATS

    def _refuse_if_closed(self) -> None:
        if not self._close.alive:
            raise EngineError("the engine is closed", remedy="Make a new one.")


def entropy_bounds(log_p_K: NDArray[np.float64], vocabulary: int) -> tuple[float, float]:
    """Return between which values the entropy of a distribution lies, of which only the likeliest entries are known.

    The rest of the probability adds least if it is one entry, and most if it is spread evenly over the vocabulary.

    Args:
        log_p_K: Log-probabilities of the K likeliest entries.
        vocabulary: Entries in all.

    Returns:
        Lower and upper bound, nats.
    """
    p_K = np.exp(log_p_K)
    known, rest = float(-(p_K * log_p_K).sum()), max(0.0, 1.0 - float(p_K.sum()))
    if rest < 1e-9:
        return known, known
    least = known - rest * np.log(rest)
    return float(least), float(least + rest * np.log(max(1, vocabulary - len(log_p_K))))
