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
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.engine import VllmConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.admission import Admission, empty_features, end_token_ids, model_card
from clear_ray.engine.base import Features, Generation, Grant, ModelCard, Prompt, TokenIds
from clear_ray.engine.batch import RunningGrant
from clear_ray.engine.closing import make_closing
from clear_ray.engine.rendering import rendering_of
from clear_ray.engine.streaming import Partial
from clear_ray.engine.structured import Structures
from clear_ray.engine.vllm_choice import TOLD, ModelFacts
from clear_ray.engine.vllm_settings import check_installed, placement, read_configs, reasoning, whole_model_folder
from clear_ray.errors import EngineError

_TRIAL_TOKENS = 7
_TRIAL_NATS = 0.05


class VllmEngine:
    """A model of vLLM behind the Engine protocol.

    A grant that does not fit the context with its prompt, or whose prompt cannot be rendered, is that query's `error`.

    Tokens are chosen by the code of `slots`, in vLLM's workers. So a text depends neither on what else is in the batch nor on
    how it was cut into grants, except where rounding tips a token.

    Args:
        config: Model, devices and sampling.
        hidden_states: Read hidden states in the probe where this vLLM lets us; otherwise log-probabilities alone.

    Raises:
        ConfigError: vLLM is not installed, or the model cannot be used so.
        EngineError: The model cannot be loaded.
    """

    def __init__(self, config: VllmConfig, *, hidden_states: bool = True) -> None:
        check_installed()
        from clear_ray.engine.vllm_thread import PROBE_LOGPROBS, Decoding, VllmThread

        folder = whole_model_folder(config.model)
        saved, generation_config = read_configs(folder)
        self._rendering = rendering_of(config, folder)
        ends = self._ends = end_token_ids(saved, generation_config, self._rendering)
        decoding = Decoding(
            config,
            tuple(sorted(ends)),
            make_closing(self._rendering, config),
            config.thinking_tokens,
        )
        self._card = model_card(config, folder, saved)
        self._vocabulary = int(saved.get_text_config().vocab_size)
        self._admission = Admission(
            self._rendering,
            vocabulary=self._vocabulary,
            context_tokens=self._card.context_tokens,
            structures=Structures(self._rendering, vocabulary=self._vocabulary, end_token_ids=ends),
        )
        arguments: dict[str, Any] = {
            "model": str(folder),
            # The configuration has been refused if it names code of its own; weights are never unpickled.
            "trust_remote_code": False,
            "load_format": "safetensors",
            "max_model_len": self._card.context_tokens,
            "max_num_seqs": config.max_batch,
            "enable_prefix_caching": True,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "tensor_parallel_size": config.tensor_parallel,
            "enforce_eager": config.enforce_eager,
            # Sampling is the run's, not what the model's files suggest.
            "generation_config": "vllm",
            "max_logprobs": PROBE_LOGPROBS,
            "logprobs_mode": "raw_logprobs",  # the model's own, as `slots` has them
            "stream_interval": 1,  # the least; a request may have a longer one
            "worker_extension_cls": "clear_ray.engine.vllm_probe.VllmProbe",
            "disable_log_stats": True,
            "additional_config": {TOLD: asdict(ModelFacts(str(folder), self._vocabulary, decoding.end_token_ids))},
            "seed": 0,
            **placement(config),
        }
        if config.thinking_tokens is not None:
            arguments["reasoning_config"] = reasoning(self._rendering, config)
        self._thread = VllmThread(arguments, decoding)
        # Runs at the latest when the interpreter exits, so that vLLM's processes end before ours.
        self._close = weakref.finalize(self, self._thread.close)
        self._thread.follow()
        self._try_choice()
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

    def stream(self, grant: Grant, every_tokens: int) -> AsyncIterator[Partial | Generation]:
        """Run one grant in the continuous batch; yield what there is after every `every_tokens` tokens, then the generation.

        Raises:
            EngineError: The model failed, the engine is closed, or vLLM generated more than it was granted.
        """
        self._refuse_if_closed()
        return self._admission.stream(grant, every_tokens, self._thread)

    def cancel(self, query_ids: Iterable[str]) -> None:
        """End these queries' running generations with the tokens that vLLM has handed out; safe from any thread."""
        self._thread.cancel(query_ids)

    def close(self) -> None:
        """End vLLM and its processes. Calling it again does nothing."""
        self._close()

    def _try_choice(self) -> None:
        """Have two tokens chosen that vLLM alone would not choose, behind others that it takes for the prompt's.

        Raises:
            EngineError: This vLLM does not take them.
        """
        plain = (token for token in range(self._vocabulary // 2, self._vocabulary) if token not in self._ends)
        first, second = next(plain), next(plain)
        # Far beyond what a row may ask for, so that no logit of the model's own counts.
        biases = ((first, 1e5), (second, 1e5))
        sampling = Sampling.model_construct(
            temperature=0, frequency_penalty=1e3, presence_penalty=0, repetition_penalty=1, logit_bias=biases
        )
        trial = Grant("trial", TokenIds([second]), 2, prefix_token_ids=(first, first), sampling=sampling)
        ended: Future[RunningGrant | EngineError] = Future()
        self._thread.submit([self._admission.admit(trial, ended.set_result)])
        answer = ended.result()
        if isinstance(answer, EngineError):
            raise answer
        if answer.generated != [second, second]:
            raise EngineError(
                "this vLLM does not take the tokens that are chosen for it",
                "engine.kind vllm",
                f"{answer.generated} in place of {[second, second]} {answer.error}".strip(),
                remedy="Set VLLM_USE_V2_MODEL_RUNNER=0, or choose the engine transformers, and report the version of vLLM.",
            )

    def _try_states(self, is_wanted: bool) -> bool:
        """Return whether this vLLM shows us the hidden states of this model: a trial prompt tells."""
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
