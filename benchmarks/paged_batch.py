"""Continuous batching by transformers' own paged cache: what `throughput.py` compares our batch with.

Prefixes that queries share are read once. Against it: on CPU it takes about three times the processor time of ours
(benchmarks/results/notebook.md); every draw of a sampled batch comes from one stream, so a seed does not fix a text; and a
cancelled answer holds the tokens handed out so far, while the one in flight is lost.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from clear_ray.config.engine import WorkersConfig
from clear_ray.engine.batch import RunningGrant
from clear_ray.errors import EngineError

_PAGE_TOKENS = 32
_POLL_SECONDS = 0.02
_STOP_SECONDS = 30


class PagedBatch:
    """Answers in the continuous batch of a transformers manager, which runs in a thread of its own.

    Args:
        model: A causal language model of transformers.
        config: How many answers run at the same time, and how their tokens are chosen.
        cache_tokens: Positions of the cache; on CUDA transformers derives it from the free memory instead.
        prefill_tokens: Positions of one pass.
        end_token_ids: Tokens that end an answer.
    """

    def __init__(
        self,
        model: Any,
        config: WorkersConfig,
        *,
        cache_tokens: int,
        prefill_tokens: int,
        end_token_ids: frozenset[int],
    ) -> None:
        self._end_token_ids = sorted(end_token_ids) or [-1]
        sampling: dict[str, Any] = {"do_sample": False}
        if config.temperature > 0:
            sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
        generation: Any = GenerationConfig
        self._scope = contextlib.ExitStack()
        self._manager: Any = self._scope.enter_context(
            model.continuous_batching_context_manager(
                generation_config=generation(eos_token_id=self._end_token_ids, **sampling),
                continuous_batching_config=_configure(model, config.max_batch, cache_tokens, prefill_tokens),
                timeout=_STOP_SECONDS,
            )
        )
        self._cache_tokens = None if model.device.type == "cuda" else cache_tokens
        self._open: dict[str, RunningGrant] = {}
        self._refused: list[RunningGrant] = []
        self._added = self.progress = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._open and not self._refused

    def add(self, answer: RunningGrant) -> None:
        """Hand an answer to the manager, unless the cache could never hold it: that would end the whole batch."""
        needed = len(answer.input_ids) + answer.grant.max_tokens
        if self._cache_tokens is not None and needed > self._cache_tokens:
            error = f"prompt and grant need {needed} cache positions, there is memory for {self._cache_tokens}"
            self._refused.append(answer.end("cancelled", error))
            return
        name = str(self._added)
        self._added += 1
        self._open[name] = answer
        # Streaming costs little, and is the only way to know what a cancelled answer had spent.
        self._manager.add_request(
            answer.input_ids,
            request_id=name,
            max_new_tokens=answer.grant.max_tokens,
            streaming=True,
            eos_token_id=self._end_token_ids,
        )

    def step(self) -> list[RunningGrant]:
        """Collect what the manager has brought forward; wait a moment for the first of it."""
        ended, self._refused = self._refused, []
        for name in [name for name, answer in self._open.items() if answer.is_cancelled]:
            self._manager.cancel_request(name)
            ended.append(self._open.pop(name).end("cancelled"))
        result = self._manager.get_result(timeout=_POLL_SECONDS) if self._open else None
        if result is None and self._open and not self._manager.is_running():
            raise EngineError("the continuous batch of transformers has stopped")
        while result is not None:
            ended += self._take_in(result)
            result = self._manager.get_result(timeout=0)
        return ended

    def close(self) -> None:
        """Stop the manager."""
        # A manager that is told to stop finishes its work first.
        for name in self._open:
            self._manager.cancel_request(name)
        self._scope.close()

    def _take_in(self, result: Any) -> list[RunningGrant]:
        answer = self._open.get(result.request_id)
        if answer is None:
            return []
        self.progress += 1
        answer.generated = list(result.generated_tokens)
        if result.error is not None:
            # A failure of the whole batch fails each answer first and ends the manager's thread right after.
            time.sleep(_POLL_SECONDS)
            if not self._manager.is_running():
                raise EngineError("the continuous batch of transformers has failed", value=str(result.error))
            return [self._open.pop(result.request_id).end("cancelled", str(result.error))]
        if not result.is_finished():
            return []
        has_stopped = bool(answer.generated) and answer.generated[-1] in self._end_token_ids
        return [self._open.pop(result.request_id).end("stop" if has_stopped else "length")]


def _configure(model: Any, max_batch: int, cache_tokens: int, prefill_tokens: int) -> Any:
    """Return the manager's configuration, by the names that the installed version of transformers knows."""
    known = inspect.signature(ContinuousBatchingConfig).parameters
    page = "page_size" if "page_size" in known else "block_size"
    settings: dict[str, Any] = {
        page: _PAGE_TOKENS,
        "max_requests_per_batch": max_batch,
        "allow_block_sharing": True,
        # A switch to flash attention would change the model under the probe, which gives masks of its own.
        "auto_switch_to_flash": False,
    }
    if model.device.type != "cuda":
        settings |= {
            "num_blocks": max(1, cache_tokens // _PAGE_TOKENS),
            "max_batch_tokens": max(prefill_tokens, max_batch),
            "use_cuda_graph": False,
            "use_async_batching": False,
        }
    return ContinuousBatchingConfig(**{name: value for name, value in settings.items() if name in known})
