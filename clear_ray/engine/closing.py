"""Answers forced at the end of a grant.

A grant that runs out in the middle of the reasoning buys nothing. With a reserve, an answer that has neither ended nor
given its answer when only the reserve is left has a closing text put into it (`Answer:`), and the model spends what
remains on what follows. The closing text is part of the answer and counts against the grant like every other token.

Off by default; benchmarks/results/notebook.md says what it was measured to buy. A forced answer that still does not end in
time is `length` like any other; one that is continued later goes on after the forced text, and is not forced twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clear_ray.config.engine import ModelConfig
from clear_ray.engine.batch import RunningGrant
from clear_ray.engine.rendering import Rendering
from clear_ray.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Closing:
    """When and with what an answer is closed.

    Attributes:
        reserve_tokens: Tokens kept back at the end of each grant, the closing text included. A grant that is not longer
            than the reserve is not closed.
        token_ids: The closing text.
        text_of: Returns the text of tokens: where it holds the closing text already, nothing is forced.
        mark: The closing text without the spaces around it.

    Raises:
        ConfigError: The reserve has no room for the closing text and a token after it.
    """

    reserve_tokens: int
    token_ids: tuple[int, ...]
    text_of: Callable[[Sequence[int]], str]
    mark: str

    def __post_init__(self) -> None:
        """Refuse a reserve in which no answer has room."""
        if not 0 < len(self.token_ids) < self.reserve_tokens:
            raise ConfigError(
                f"the closing text takes {len(self.token_ids)} tokens",
                "answer_reserve_tokens",
                str(self.reserve_tokens),
                "Keep back more tokens than the closing text has, and close with a text that is not empty.",
            )

    def is_wanted(self, answer: RunningGrant) -> bool:
        """Return whether the answer so far, with what earlier grants gave, lacks the closing text."""
        return self.mark not in self.text_of([*answer.grant.prefix_token_ids, *answer.generated])

    def has_begun(self, answer: RunningGrant) -> bool:
        """Return whether an answer that is gone on with in the middle of its grant was being closed."""
        begin = answer.grant.max_tokens - self.reserve_tokens
        forced = answer.generated[max(0, begin) :][: len(self.token_ids)]
        return begin > 0 and bool(forced) and tuple(forced) == self.token_ids[: len(forced)]

    def next_token(self, answer: RunningGrant, token_id: int, *, is_end: bool) -> int:
        """Return the token that the answer goes on with: the model's own, or the next one of the closing text.

        Args:
            answer: Changed: remembers that it is being closed.
            token_id: What the model chose.
            is_end: Whether that ends the answer.
        """
        after_cut = len(answer.generated) - (answer.grant.max_tokens - self.reserve_tokens)
        if after_cut == 0 and answer.generated and not is_end:
            answer.is_closing = self.is_wanted(answer)
        if answer.is_closing and after_cut < len(self.token_ids):
            return self.token_ids[after_cut]
        return token_id


def make_closing(rendering: Rendering, config: ModelConfig) -> Closing | None:
    """Return how answers are closed; None if the settings keep no reserve.

    Raises:
        ConfigError: The reserve has no room for the closing text and a token after it.
    """
    if config.answer_reserve_tokens is None:
        return None
    text = config.closing_text
    return Closing(config.answer_reserve_tokens, tuple(rendering.plain_token_ids(text)), rendering.text, text.strip())
