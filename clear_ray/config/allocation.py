"""Settings of the allocation: what answers are for, and how the budget is shared among queries."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clear_ray.config.base import Settings
from clear_ray.config.bounds import MOST_TOKENS
from clear_ray.config.scoring import VoteKind

MOST_ROUNDS = 8
"""Clearings of the price after which a run ends that does not teach itself."""

MOST_ATTEMPTS_ROUNDS = 32
"""The same of a run that may ask its queries again, if that is enough for all attempts of one."""
DEFAULT_ATTEMPTS = 8

Objective = Literal["correct", "solved", "best_of_n", "vote", "groups"]
"""What the answers of a query are for."""

JUDGED = ("solved", "best_of_n", "groups")
"""Objectives that ask again by what a scorer says of the answers so far."""


class AllocationConfig(Settings):
    """How the budget is shared."""

    objective: Objective = "correct"
    """`correct`: one answer to each query. `solved`: a query is asked again until an answer is right, by its scorer.
    `best_of_n`: the same for scores between wrong and right; the answer with the highest score counts. `vote`: without a
    scorer, as long as another answer may change which result is the most frequent; the answer is one that gives it.
    `groups`: for training, until a query has a right answer and a wrong one; the answer is the right one."""
    attempts: int | None = Field(default=None, ge=1, le=1_000)
    """Most answers to one query, where the objective is not `correct`; 8 if not given. A row's own `n` above 1 lowers it, and
    stands alone where this is not given. Of several engines: most answers of each, one if not given."""
    votes_by: VoteKind | None = None
    """How the final answer of a text is read, and which are the same, where votes are counted (objective `vote`):
    a kind of scorer. If not given, that of the scorer, or else `exact`."""
    max_tokens: int = Field(default=512, ge=1, le=MOST_TOKENS)
    """Ceiling of one answer over all its grants; less where the model's context leaves less beside its prompt."""
    smallest_grant_tokens: int = Field(default=4, ge=1, le=MOST_TOKENS)
    """Rounds end when less than this is left beside what is owed as minimum service; the first is always cleared."""
    max_rounds: int | None = Field(default=None, ge=1, le=100)
    """Most clearings of the price; if not given, 24 of a run that learns, which takes 3 at least, and 8 of others; with
    several attempts 32, or 4 for each attempt. Those made beside running grants count only if this is given."""
    overlap: bool | None = None
    """Whether the price is cleared again while grants run, as soon as engines have free slots and tokens have come back; if
    not given, unless `max_rounds` is. Such a run is sooner done, and its grants depend on which answers come first."""
    policy: Literal["clear_ray", "uniform"] = "clear_ray"
    """`uniform` gives every query the same ceiling; for comparison."""
    sketched: bool | None = None
    """Price from demand sketches made where the estimates are; if not given, above a hundred thousand queries. Where prompts
    are read meanwhile (`streamed`), once all are."""
    streamed: bool | None = None
    """Whether the first price is cleared over a part of the prompts while the rest is being read; if not given, of a batch of
    8,192 queries or more that has none of what keeps from it (docs/price.md)."""
    minimum_service_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Set aside for every query before pricing, for a direct answer of one that is not worth the price; off if not given."""
    minimum_service_text: str | None = Field(default=None, min_length=1)
    """What asks for the direct answer, put after the prompt; words to that effect in English if not given."""

    @property
    def most_attempts(self) -> int:
        """Most answers to one query."""
        return 1 if self.objective == "correct" else self.attempts or DEFAULT_ATTEMPTS

    @property
    def overlaps(self) -> bool:
        """Whether the price is cleared while grants run."""
        return self.max_rounds is None if self.overlap is None else self.overlap

    @property
    def most_rounds(self) -> int:
        """Most clearings of a run that does not teach itself."""
        if self.max_rounds is not None:
            return self.max_rounds
        return MOST_ROUNDS if self.most_attempts == 1 else max(MOST_ATTEMPTS_ROUNDS, 4 * self.most_attempts)

    @model_validator(mode="after")
    def _asks_again_for_something(self) -> AllocationConfig:
        if self.objective == "correct" and (self.attempts or 1) > 1:
            raise ValueError("several attempts need an objective that uses them: solved, best_of_n, vote or groups")
        if self.votes_by is not None and self.objective != "vote":
            raise ValueError("votes_by says how votes are counted, and the objective is not vote")
        if self.most_attempts > 1 and self.policy != "clear_ray":
            raise ValueError("uniform asks every query once: leave out policy, objective or attempts")
        if self.most_attempts > 1 and self.sketched:
            raise ValueError(
                "a batch that is priced from sketches asks every query once: leave out sketched or attempts"
            )
        return self
