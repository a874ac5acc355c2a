"""Further answers to queries that have one already, where nothing but their agreement says which answers are right.

Beside each stage of a run that teaches itself some answers that ended are followed by others to the same query. What an
answer gives that most others give is probably right (`estimation.votes`); the query's answer is one of the most frequent
result. A second answer costs what a first one does and solves nothing, so they are few.

Shapes: N queries, M granted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.rounds.batch import Batch
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.states import QueryStates

_LONGER = 2
"""A further answer is given so many times the length of the one before."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many answers are compared.

    Attributes:
        answers: Most answers to one query.
        share: What is spent on further ones beside a stage, of what the stage grants.
    """

    answers: int = 2
    share: float = 0.4

    def rule(self, can_differ_N: NDArray[np.bool_]) -> AttemptRule:
        """Return what ends a query, by whether another answer to it may differ from the first."""
        return AttemptRule("vote", np.where(can_differ_N, self.answers, 1))

    def further(
        self,
        batch: Batch,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        least_tokens: int,
        stage_parts: int,
        left_parts: int,
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which queries are asked once more, and up to how many tokens each; one at least, if there is room for it.

        Those that have several answers already come first: of few queries more is known than of many a little.

        Args:
            batch: Ceilings and costs.
            states: Where every query stands.
            is_free_N: Queries that may be granted tokens now.
            least_tokens: Ceiling of an answer, at least.
            stage_parts: What the stage grants, thousandths of the budget's unit.
            left_parts: What is left beside it.
            rng: For the choice of queries.
        """
        index = np.flatnonzero(is_free_N & states.chosen_has_stopped_N & (states.left_N > 0))
        index = index[np.lexsort((rng.random(len(index)), -states.attempt_N[index]))]
        tokens = np.maximum(_LONGER * states.answer_tokens_N[index], least_tokens)
        tokens = np.minimum(tokens, batch.max_tokens_N[index])
        parts = batch.costs.taken_parts(index, tokens, np.zeros_like(tokens))
        fits = np.cumsum(parts) <= min(self.share * stage_parts, left_parts)
        fits[:1] |= parts[:1] <= left_parts
        return index[fits], tokens[fits]
