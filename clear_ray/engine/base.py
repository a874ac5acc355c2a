"""What a language model looks like to the rest of clear_ray: one worker's engine, without Ray.

An engine does two things. `prefill` reads prompts once and returns features for the estimate; it generates nothing.
`generate` runs granted queries in one continuous batch: each has its own ceiling, and each generation is handed out as
soon as it ends. Several `generate` calls may be open at once; they share the batch.

The contract that the ledger rests on: a generation never holds more tokens than its grant. Engines count the tokens
themselves, and `check_generation` is called on everything that leaves one, because real engines have silently ignored
caps: a limit on thinking that vLLM 0.18 took as an extra argument did nothing.

Shapes: N queries, D hidden width.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.sampling import Sampling
from clear_ray.errors import EngineError
from clear_ray.ingest.logprobs import TokenLogprob

if TYPE_CHECKING:
    from clear_ray.engine.streaming import Partial


class RawText(str):
    """A prompt that the model reads as it stands: no chat template and no system prompt is put around it."""

    __slots__ = ()


class TokenIds(tuple[int, ...]):
    """A prompt that is given as the tokens that the model reads."""

    __slots__ = ()


class Chat(tuple[tuple[str, str], ...]):
    """A conversation that says itself how the chat template is to take it.

    Attributes:
        sampling: What it says: `template`, `continue_final_message`, `add_generation_prompt`.
        names: What the speaker of each turn is called, empty for one without a name; none if no speaker has one.
    """

    sampling: Sampling
    names: tuple[str, ...]

    def __new__(cls, turns: Iterable[tuple[str, str]], sampling: Sampling, names: Iterable[str] = ()) -> Chat:
        """Return the turns with what is said of them."""
        chat = super().__new__(cls, turns)
        chat.sampling, chat.names = sampling, tuple(names)
        return chat

    def __reduce__(self) -> tuple[type[Chat], tuple[Any, ...]]:
        return Chat, (tuple(self), self.sampling, self.names)


Prompt = str | tuple[tuple[str, str], ...] | TokenIds
"""Text, raw or to be put into a chat template; a conversation as (role, content) pairs; or token ids."""

FinishReason = Literal["stop", "length", "cancelled"]

UNKNOWN_TOKEN = -1
"""Stands for a token that an engine has counted and not seen."""


@dataclass(frozen=True, slots=True)
class Features:
    """What one prefill of the serving model says about N prompts, in the order they were given.

    Attributes:
        prompt_tokens_N: Tokens of each rendered prompt, int64.
        entropy_N: Entropy of the untempered next-token distribution after the prompt, nats, float32.
        hidden_last_ND: Final-norm hidden state of the last prompt token, float32. D may be 0 if not reachable.
        hidden_mean_ND: Mean final-norm hidden state over the prompt's tokens, float32. D may be 0.
    """

    prompt_tokens_N: NDArray[np.int64]
    entropy_N: NDArray[np.float32]
    hidden_last_ND: NDArray[np.float32]
    hidden_mean_ND: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Grant:
    """Permission to generate at most `max_tokens` further tokens for one query.

    Attributes:
        query_id: The query; at most one of its grants is in an engine at a time for a given `sample`.
        prompt: What the model is asked.
        max_tokens: Ceiling of *further* tokens, end token included; at least 1.
        seed: Seed of this query's sampling; the same for every grant of the same query and sample.
        prefix_token_ids: Tokens generated under earlier grants; generation goes on after them.
        sample: Which of several independent answers to the same query this is, from 0.
        sampling: What the query asks for itself; None for the run's settings. Its seed is in `seed` already.
        prefix_text: Answer so far as text, as the last generation had it; for engines that go on from texts.
        drawn_as: Name of its draws, beside seed and sample, where that is not the query's: the same name, the same draws.
    """

    query_id: str
    prompt: Prompt
    max_tokens: int
    seed: int = 0
    prefix_token_ids: tuple[int, ...] = ()
    sample: int = 0
    sampling: Sampling | None = None
    prefix_text: str = ""
    drawn_as: str | None = None

    def __reduce__(self) -> tuple[type[Grant], tuple[Any, ...]]:
        """Return what makes it again: there may be millions on their way, and a dataclass pickles in Python."""
        first = self.query_id, self.prompt, self.max_tokens, self.seed, self.prefix_token_ids
        return Grant, (*first, self.sample, self.sampling, self.prefix_text, self.drawn_as)


@dataclass(frozen=True, slots=True)
class Usage:
    """What an endpoint says that one grant took, tokens.

    Attributes:
        prompt_tokens: Read, the answer so far included; those of its cache too.
        cached_tokens: Of these, taken from its cache.
        output_tokens: Generated, those of its reasoning too.
        reasoning_tokens: Of these, reasoning that is no part of the text.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True)
class Generation:
    """What came of one grant.

    Attributes:
        query_id: The query of the grant.
        token_ids: Tokens generated under this grant alone, end token included; `len` is what it spent. Of an engine that
            only counts them, each is `UNKNOWN_TOKEN`.
        text: Answer so far as text, prefix included, special tokens dropped; what stands before a stop text that came.
        finish_reason: `stop` if the model ended by itself or a stop came, `length` if the grant ran out, else `cancelled`.
        error: Empty, or why this query alone could not be generated; its tokens still count.
        sample: The sample of the grant.
        usage: What the endpoint said that it took; None of a model of ours, or where it did not say.
        is_at_end: Whether an answer that was cut off cannot be gone on with.
        is_lost: Whether it is not known what became of the grant: all of it counts as spent, and another may be tried.
        logprobs: Of the tokens that have text, where the grant asks for them; None where the engine gives none.
        cached_tokens: Of prompt and prefix, those that a model of ours did not read for this grant: it had read them before.
    """

    query_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    error: str = ""
    sample: int = 0
    usage: Usage | None = None
    is_at_end: bool = False
    is_lost: bool = False
    logprobs: tuple[TokenLogprob, ...] | None = None
    cached_tokens: int = 0

    def __reduce__(self) -> tuple[type[Generation], tuple[Any, ...]]:
        """As of `Grant`."""
        first = self.query_id, self.token_ids, self.text, self.finish_reason, self.error, self.sample, self.usage
        return Generation, (*first, self.is_at_end, self.is_lost, self.logprobs, self.cached_tokens)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Identity and limits of an engine's model.

    Attributes:
        name: Human-readable name.
        fingerprint: SHA-256 hex digest over architecture, weights and tokenizer; a fitted head names the one it is for.
        context_tokens: Prompt and answer together may not be longer.
        hidden_width: D of `Features`; 0 if hidden states are not reachable.
    """

    name: str
    fingerprint: str
    context_tokens: int
    hidden_width: int


class Engine(Protocol):
    """One worker's language model."""

    @property
    def card(self) -> ModelCard:
        """Identity and limits of the model."""

    @property
    def progress(self) -> int:
        """A number that changes whenever the engine has brought something forward: a pass of the model, a token."""

    def prompt_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Count the tokens of each rendered prompt, without running the model."""

    def prefill(self, query_ids: Sequence[str], prompts: Sequence[Prompt]) -> Features:
        """Read each prompt once; generates nothing and changes no state."""

    def generate(self, grants: Sequence[Grant]) -> AsyncIterator[Generation]:
        """Run the grants in the continuous batch; yield each generation as soon as it ends, in any order.

        Yields exactly one generation for each grant.

        Raises:
            EngineError: The engine as a whole failed; nothing more will be yielded.
        """

    def stream(self, grant: Grant, every_tokens: int) -> AsyncIterator[Partial | Generation]:
        """Run one grant in the continuous batch and tell of it meanwhile.

        Yields a `Partial` about every `every_tokens` tokens, fewer where the caller does not keep up or nothing is known
        before the end, and last the generation, as `generate` would.

        Raises:
            EngineError: The engine as a whole failed; nothing more will be yielded.
        """

    def cancel(self, query_ids: Iterable[str]) -> None:
        """End these queries' running generations; each is still yielded, as `cancelled`, with what it spent."""

    def close(self) -> None:
        """Release the model. Further calls are errors."""


def read_prompt(
    prompt: str, *, is_conversation: bool, form: str | None = None, sampling: Sampling | None = None
) -> Prompt:
    """Return a prompt that `records.QUERY_SCHEMA` keeps as a text, a JSON list of {role, content} or one of token ids."""
    if form == "raw":
        return RawText(prompt)
    if form == "tokens":
        return TokenIds(json.loads(prompt))
    is_told = sampling is not None and sampling.is_for_the_template
    if not is_conversation:
        return Chat([("user", prompt)], sampling) if sampling is not None and is_told else prompt
    return conversation_of(json.loads(prompt), sampling)


def conversation_of(messages: Sequence[Mapping[str, str]], sampling: Sampling | None) -> Prompt:
    """Return messages, {role, content} and the speaker's name where it has one, as a prompt."""
    turns = tuple((turn["role"], turn["content"]) for turn in messages)
    names = [turn.get("name") or "" for turn in messages] if any("name" in turn for turn in messages) else []
    if names or (sampling is not None and sampling.is_for_the_template):
        return Chat(turns, sampling or Sampling(), names)
    return turns


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """Return a prompt that is no token ids as messages: `conversation_of` the other way round; a text is the user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    turns: Iterable[Any] = () if isinstance(prompt, TokenIds) else prompt
    messages = [{"role": role, "content": content} for role, content in turns]
    names = prompt.names if isinstance(prompt, Chat) else ()
    for message, name in zip(messages, names, strict=False):
        message |= {"name": name} if name else {}
    return messages


def words_of(prompt: Prompt) -> str:
    """Return the text of a prompt: all contents of a conversation; nothing of token ids."""
    if isinstance(prompt, TokenIds):
        return ""
    return prompt if isinstance(prompt, str) else "\n".join(content for _, content in prompt)


def check_generation(grant: Grant, generation: Generation) -> Generation:
    """Return `generation` if it keeps its grant.

    Raises:
        EngineError: It holds more tokens than were granted, or belongs to another query.
    """
    if generation.query_id != grant.query_id:
        raise EngineError("the engine answered another query", f"query {grant.query_id}", generation.query_id)
    spent_tokens = len(generation.token_ids)
    # A refused grant may ask for less than nothing; it has spent nothing.
    if spent_tokens > max(0, grant.max_tokens):
        raise EngineError(
            f"the engine generated {spent_tokens} tokens on a grant of {grant.max_tokens}",
            f"query {grant.query_id}",
            remedy="Report the engine and its version: a cap that does not hold cannot be budgeted.",
        )
    return generation
