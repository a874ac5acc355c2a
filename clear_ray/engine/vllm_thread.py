"""vLLM's asynchronous engine in a thread with an event loop of its own.

The engine lives in one event loop; our callers come from any loop and any thread. This thread stands between them as
`BatchThread` does for our own batches: it takes answers in, and hands each back through its `on_end`, exactly once.

A grant is one request, which goes on behind what the answer holds. Its tokens are chosen in vLLM's workers, as in our own
batch: see `vllm_choice`.

Shapes: N queries.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineGenerateError

from clear_ray.config.engine import VllmConfig
from clear_ray.engine.base import FinishReason
from clear_ray.engine.batch import OpenAnswers, RunningGrant
from clear_ray.engine.choice import choice_of
from clear_ray.engine.closing import Closing
from clear_ray.engine.vllm_choice import TOLD, told_of
from clear_ray.engine.vllm_probe import PROBE_PREFIX
from clear_ray.engine.vllm_sampling import has_stop, kept_to_structure, may_span, read_tokens, stopping
from clear_ray.errors import EngineError, EngineFailedError

PROBE_LOGPROBS = 256
STREAM_TOKENS = 16  # between outputs, each of which costs
_REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length", "abort": "cancelled"}
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are generated.

    Attributes:
        config: The run's sampling.
        end_token_ids: Tokens that end an answer.
        closing: How answers are forced at the end of their grants, if they are.
        thinking_tokens: Most tokens that an answer may think for, over all its grants; None for no limit.
    """

    config: VllmConfig
    end_token_ids: tuple[int, ...]
    closing: Closing | None = None
    thinking_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ProbeReading:
    """What one probe request told of its prompt.

    Attributes:
        log_p: Log-probabilities of the likeliest next tokens, at most `PROBE_LOGPROBS`; empty if not asked for.
        entropy: Entropy of the next token, nats; None if the states were not asked for or not read.
        last_D: Final-norm state of the last prompt token, float32.
        mean_D: Mean state over the prompt.
    """

    log_p: NDArray[np.float64]
    entropy: float | None = None
    last_D: NDArray[np.float32] | None = None
    mean_D: NDArray[np.float32] | None = None


class VllmThread:
    """Runs one vLLM engine.

    Args:
        arguments: Arguments of `AsyncEngineArgs`.
        decoding: How answers are generated.

    Attributes:
        progress: Grows with every `STREAM_TOKENS` tokens of an answer, and with every prompt that was read.
        cached_tokens: Tokens of prompts and prefixes that vLLM did not compute again, over all answers.

    Raises:
        EngineError: The engine cannot be started.
    """

    def __init__(self, arguments: dict[str, Any], decoding: Decoding) -> None:
        self._decoding = decoding
        self._open = OpenAnswers()
        self._names: dict[RunningGrant, str] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self.progress = self.cached_tokens = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="clear_ray-vllm", daemon=True)
        self._thread.start()
        try:
            self._llm: AsyncLLM = self._call(_start(arguments))
        except Exception as error:
            self._stop()
            raise EngineError(
                "vLLM cannot be started", "engine", str(error), "The log above has what its process said."
            ) from error

    def submit(self, answers: Sequence[RunningGrant]) -> None:
        """Hand answers to vLLM in order; each one's `on_end` will be called.

        Raises:
            EngineError: The engine has failed or is closed.
        """
        self._open.add(answers, lambda answer: self._loop.call_soon_threadsafe(self._begin, answer))

    def cancel(self, query_ids: Iterable[str]) -> None:
        """Let the open answers of these queries end."""
        self._end(self._open.cancel(query_ids))

    def abandon(self, answers: Iterable[RunningGrant]) -> None:
        """Let these answers end: nothing waits for them any more."""
        given_up = list(answers)
        for answer in given_up:
            answer.is_cancelled = True
        self._end(given_up)

    def read(self, ids_N: Sequence[list[int]], *, with_states: bool, with_log_p: bool) -> list[ProbeReading]:
        """Have prompts read, in one batch with whatever else runs; not to be called from the thread itself.

        Args:
            ids_N: Token ids of the prompts.
            with_states: Read their hidden states; then prompts are not taken from the prefix cache, only put into it.
            with_log_p: Return log-probabilities of the next token.

        Raises:
            EngineError: The engine failed, or is closed.
        """
        try:
            return self._call(self._read(ids_N, with_states, with_log_p))
        except EngineError:
            raise
        except Exception as error:
            raise EngineFailedError(
                "the language model failed",
                "prefill",
                f"{type(error).__name__}: {error}",
                remedy="If memory ran out, lower engine.max_batch or engine.max_context_tokens.",
            ) from error

    def follow(self) -> None:
        """Have vLLM's workers end as soon as this process does.

        Raises:
            EngineError: They cannot be called.
        """
        self._call_workers("clear_ray_follow", os.getpid())

    def watch(self) -> None:
        """Have vLLM's workers read the states of probe requests.

        Raises:
            EngineError: They cannot be called.
        """
        self._call_workers("clear_ray_watch")

    def close(self) -> None:
        """Stop the engine; what is open fails. Calling it again does nothing."""
        self._open.fail(EngineError("the engine is closed", remedy="Make a new one."))
        if self._thread.is_alive():
            self._call(self._shut_down())
            self._stop()

    def _call_workers(self, method: str, *arguments: int) -> None:
        try:
            self._call(self._llm.collective_rpc(method, args=arguments))
        except Exception as error:
            raise EngineError("vLLM's workers cannot be called", method, f"{type(error).__name__}: {error}") from error

    def _call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut_down(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._llm.shutdown()
        del self._llm  # it shuts down once more when it is collected, for which the interpreter's exit is too late

    def _begin(self, answer: RunningGrant) -> None:
        task = self._loop.create_task(self._run(answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end(self, answers: list[RunningGrant]) -> None:
        def abort() -> None:
            names = [self._names[answer] for answer in answers if answer in self._names]
            if names:
                task = self._loop.create_task(self._llm.abort(names))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        if answers and self._thread.is_alive():
            self._loop.call_soon_threadsafe(abort)

    async def _run(self, answer: RunningGrant) -> None:
        """Generate one answer to its end and hand it back."""
        try:
            reason = await self._generate(answer)
            self._open.hand_back(kept_to_structure(answer, reason, self._ends_of(answer)))
        except (VLLMClientError, EngineGenerateError, ValueError) as error:  # this query's alone
            cause = error.__cause__ or error
            self._open.hand_back(answer.end("cancelled", f"vLLM could not generate it: {cause}"))
        except asyncio.CancelledError:
            self._open.hand_back(answer.end("cancelled"))
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            self._open.fail(
                error
                if isinstance(error, EngineError)
                else EngineFailedError("the language model failed", "generate", told)
            )

    async def _generate(self, answer: RunningGrant) -> FinishReason:
        """Fill `answer.generated`; return how it ended."""
        while (left_tokens := answer.grant.max_tokens - len(answer.generated)) > 0:
            reason = await self._request(answer, left_tokens)
            if reason != "stop" or answer.generated[-1] in self._ends_of(answer) or has_stop(answer, left_tokens):
                return reason
            # vLLM saw a stop where the answer has none: in one that is too short to end, or in its own reading of the text.
        return "length"

    def _ends_of(self, answer: RunningGrant) -> frozenset[int]:
        own = choice_of(self._decoding.config, answer.grant.sampling).stop_token_ids
        return own.union(self._decoding.end_token_ids)

    async def _request(self, answer: RunningGrant, max_tokens: int) -> FinishReason:
        """Add at most `max_tokens` to what the answer has; return how that ended."""
        if _is_given_up(answer):
            return "cancelled"
        before, is_aborted, has_stopped, cached_tokens = len(answer.generated), False, False, 0
        reason: str | None = None
        name = self._names[answer] = f"clear_ray-{next(self._numbers)}"
        prompt = tokens_input([*answer.input_ids, *answer.generated])
        try:
            async for output in self._llm.generate(prompt, self._parameters(answer, max_tokens), name):
                new_tokens = len(output.outputs[0].token_ids)
                answer.generated += output.outputs[0].token_ids
                answer.read += read_tokens(answer, output.outputs[0])
                reason, cached_tokens = output.outputs[0].finish_reason, output.num_cached_tokens or 0
                self.progress += 1
                if answer.on_step is not None and reason is None:
                    answer.on_step(answer)
                if reason != "stop" and has_stop(answer, new_tokens):
                    # One that begins in an earlier grant, before this request: vLLM does not see it.
                    has_stopped = True
                    if reason is None and not is_aborted:
                        is_aborted = True
                        await self._llm.abort(name)
                if reason is None and not is_aborted and _is_given_up(answer):
                    is_aborted = True
                    await self._llm.abort(name)
        finally:
            del self._names[answer]
        self.cached_tokens += cached_tokens
        if not before and not answer.grant.prefix_token_ids:
            answer.cached_tokens = min(cached_tokens, len(answer.input_ids))
        spent_tokens = len(answer.generated) - before
        if spent_tokens > max_tokens:
            raise EngineError(
                f"vLLM generated {spent_tokens} tokens where {max_tokens} were allowed",
                f"query {answer.grant.query_id}",
                remedy="Report the version of vLLM: a cap that does not hold cannot be budgeted.",
            )
        if has_stopped:
            return "stop"
        if reason not in _REASONS:
            raise ValueError(f"it ended with {reason!r}")
        return _REASONS[reason]

    def _parameters(self, answer: RunningGrant, max_tokens: int) -> SamplingParams:
        decoding, stops = self._decoding, answer.stops
        choice = choice_of(decoding.config, answer.grant.sampling)
        told = told_of(answer, choice, decoding.closing)
        interval = STREAM_TOKENS if answer.on_step is None else answer.step_tokens
        is_in_stop = stops is not None and may_span(stops, answer.token_ids)
        return SamplingParams(
            n=1,
            max_tokens=max_tokens,
            temperature=0,
            extra_args=None if told is None else {TOLD: told},
            **stopping(answer, choice, decoding.end_token_ids, max_tokens=max_tokens),
            # The tokens that end an answer are ours, from all files of the model.
            ignore_eos=True,
            logprobs=answer.top_logprobs,
            # What is put into a structure breaks it.
            thinking_token_budget=decoding.thinking_tokens if answer.matcher is None else None,
            detokenize=stops is not None,
            stream_interval=1 if is_in_stop else interval,
            output_kind=RequestOutputKind.DELTA,
        )

    async def _read(self, ids_N: Sequence[list[int]], with_states: bool, with_log_p: bool) -> list[ProbeReading]:
        numbers = [next(self._numbers) for _ in ids_N]
        try:
            log_p_N = await asyncio.gather(
                *(self._probe(ids, number, with_states, with_log_p) for ids, number in zip(ids_N, numbers, strict=True))
            )
        finally:
            taken_N = await self._take(numbers) if with_states else [None] * len(numbers)
        return [_reading(log_p, taken) for log_p, taken in zip(log_p_N, taken_N, strict=True)]

    async def _probe(self, ids: list[int], number: int, with_states: bool, with_log_p: bool) -> NDArray[np.float64]:
        """Have one prompt read; return the log-probabilities of the likeliest next tokens, largest first."""
        parameters = SamplingParams(
            max_tokens=1,
            temperature=0,
            ignore_eos=True,
            logprobs=PROBE_LOGPROBS if with_log_p else None,
            detokenize=False,
            skip_reading_prefix_cache=with_states,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        read: Any = None
        async for output in self._llm.generate(tokens_input(ids), parameters, f"{PROBE_PREFIX}{number}"):
            read = output
            self.progress += 1
        entries = read.outputs[0].logprobs[0].values() if with_log_p else ()
        return np.array(sorted((entry.logprob for entry in entries), reverse=True)[:PROBE_LOGPROBS], np.float64)

    async def _take(self, numbers: list[int]) -> list[tuple[bytes, bytes, float] | None]:
        answers = await self._llm.collective_rpc("clear_ray_take", args=(numbers,))
        first: list[tuple[bytes, bytes, float] | None] = answers[0]
        return first


def _is_given_up(answer: RunningGrant) -> bool:
    # As a function, since another thread may set it at any time, which a type checker cannot know.
    return answer.is_cancelled


async def _start(arguments: dict[str, Any]) -> AsyncLLM:
    config = AsyncEngineArgs(**arguments).create_engine_config(UsageContext.ENGINE_CONTEXT)
    processor = "ChoiceV2" if config.use_v2_model_runner else "ChoiceV1"
    config.model_config.logits_processors = [f"clear_ray.engine.vllm_processors:{processor}"]
    return AsyncLLM.from_vllm_config(config, disable_log_stats=True)


def _reading(log_p: NDArray[np.float64], taken: tuple[bytes, bytes, float] | None) -> ProbeReading:
    if taken is None:
        return ProbeReading(log_p)
    last, mean, entropy = taken
    return ProbeReading(log_p, entropy, np.frombuffer(last, np.float32), np.frombuffer(mean, np.float32))
