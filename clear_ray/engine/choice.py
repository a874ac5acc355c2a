"""How the tokens of one answer are chosen: the run's settings, and what the answer's own row asks instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from clear_ray.config.engine import WorkersConfig
from clear_ray.config.sampling import Sampling

_NONE = Sampling()
_OF_MODELS = ("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """Settings of one answer, all of them decided; see `sampling.Sampling`.

    Attributes:
        stop_token_ids: Tokens that end this answer beside the model's own.
        min_tokens: Tokens before which the answer does not end by itself, those of its prefix among them.
        logit_bias: Pairs of token and what is added to its logit.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def is_penalising(self) -> bool:
        """Whether tokens are judged by what was read or written before."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0)

    @property
    def is_shaping(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        return self.is_penalising or bool(self.logit_bias) or self.min_tokens > 0


def choice_of(config: WorkersConfig, sampling: Sampling | None) -> TokenChoice:
    """Return how a row's tokens are chosen: as it says, and where it says nothing as the run does."""
    own = sampling or _NONE

    def decided(name: str) -> float:
        value: float | None = getattr(own, name)
        run_value: float = getattr(config, name)
        return run_value if value is None else value

    numbers = {name: decided(name) for name in _OF_MODELS if hasattr(config, name)}
    return TokenChoice(
        temperature=decided("temperature"),
        top_p=decided("top_p"),
        **numbers,  # type: ignore[arg-type]  # top_k is whole in both
        stop_token_ids=frozenset(own.stop_token_ids),
        min_tokens=own.min_tokens,
        logit_bias=own.logit_bias,
    )


@dataclass(frozen=True, slots=True)
class Stops:
    """Texts that end an answer.

    Attributes:
        texts: Any of them, the first that is complete, ends the answer.
        text_of: Returns the text of tokens.
        min_tokens: A stop that is complete before the answer has so many tokens is none.
        window_tokens: Last tokens in which a stop that the newest one completes must lie, as far as each has text.
    """

    texts: tuple[str, ...]
    text_of: Callable[[Sequence[int]], str]
    min_tokens: int = 0
    window_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        """Size the window: a token with text has at least a byte of it."""
        object.__setattr__(self, "window_tokens", max(len(text.encode()) for text in self.texts) + 8)

    def has_come(self, token_ids: Sequence[int]) -> bool:
        """Return whether an answer, of which the last token is new, holds a stop."""
        newest = self.text_of(token_ids[-self.window_tokens :])
        return any(text in newest for text in self.texts) and self.cut(token_ids) is not None

    def is_begun(self, token_ids: Sequence[int]) -> bool:
        """Return whether an answer ends with what may become a stop."""
        newest = self.text_of(token_ids[-self.window_tokens :])
        return any(newest.endswith(text[:size]) for text in self.texts for size in range(1, len(text)))

    def cut(self, token_ids: Sequence[int]) -> str | None:
        """Return the text of an answer before its first stop, or None if it holds none."""
        text = self.text_of(token_ids)
        begin = len(self.text_of(token_ids[: self.min_tokens])) if self.min_tokens else 0
        found = (text.find(stop, max(0, begin - len(stop) + 1)) for stop in self.texts)
        places = [place for place in found if place >= 0]
        return text[: min(places)] if places else None
