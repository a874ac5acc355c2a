"""Where every query of a running batch stands, in a few numbers each: what rounds change and verdicts are read from.

Shapes: N queries of the batch, M of them granted or run.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from clear_ray.records import COST_PARTS
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.ballots import NO_VOTE, Ballot, Ballots
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.history import SOLVED_SCORE, AttemptRule, PastAttempts


class QueryStates:
    """Sums over the rounds so far; every attribute that ends in N has shape (N,).

    `answer_tokens_N`, `correct_N` and `has_stopped_N` are those of the current attempt. `chosen_round_N` is the round whose
    answer counts as the query's by now, and `chosen_score_N` its score. `right_N` and `wrong_N` count the answers that have
    ended by themselves.

    Args:
        cost_N: What a token of each query takes from the budget, shape (N,).
        failed: Queries that failed before the first round.
        rule: What ends a query; its first answer if not given.
    """

    def __init__(
        self, cost_N: NDArray[np.float64], *, failed: Collection[int] = (), rule: AttemptRule | None = None
    ) -> None:
        queries = len(cost_N)
        self.cost_N, self.rule, self.past = cost_N, rule or AttemptRule(), PastAttempts()
        self.ballots = Ballots()
        self.attempt_N = np.zeros(queries, np.int32)
        self.option_N = np.zeros(queries, np.int64)
        self.may_go_on_N = np.zeros(queries, bool)
        self.chosen_round_N = np.zeros(queries, np.int32)
        self.chosen_attempt_N = np.zeros(queries, np.int32)
        self.chosen_score_N = np.full(queries, np.nan)
        self.chosen_has_stopped_N = np.zeros(queries, bool)
        self.is_open_N = np.ones(queries, bool)
        self.has_stopped_N = np.zeros(queries, bool)
        self.has_failed_N = np.zeros(queries, bool)
        self.was_granted_N = np.zeros(queries, bool)
        self.is_served_N = np.zeros(queries, bool)
        self.answer_tokens_N = np.zeros(queries, np.int64)
        self.written_tokens_N = np.zeros(queries, np.int64)
        self.granted_tokens_N = np.zeros(queries, np.int64)
        self.last_round_N = np.zeros(queries, np.int32)
        self.rounds_N = np.zeros(queries, np.int32)
        self.price_N = np.zeros(queries)
        self.expected_utility_N = np.zeros(queries)
        self.surplus_N = np.zeros(queries)
        self.correct_N = np.full(queries, np.nan)
        self.vote_N = np.full(queries, NO_VOTE)
        self.right_N = np.zeros(queries, np.int64)
        self.wrong_N = np.zeros(queries, np.int64)
        self.fail(failed)

    def fail(self, failed: Collection[int]) -> None:
        """Note queries that are not to be asked, since their prompts cannot be read."""
        index = np.fromiter(failed, np.int64)
        self.is_open_N[index], self.has_failed_N[index] = False, True

    def grant(self, clearing: Clearing) -> None:
        """Note a clearing before its grants are run."""
        self.price_N[self.rounds_N == 0] = clearing.shadow_price
        self.was_granted_N[clearing.index_M] = True

    def begins_M(self, clearing: Clearing) -> NDArray[np.bool_]:
        """Return which grants begin an attempt; the others go on with a cut answer."""
        has_none_M: NDArray[np.bool_] = self.attempt_N[clearing.index_M] == 0
        return has_none_M if clearing.is_fresh_M is None else has_none_M | clearing.is_fresh_M

    @property
    def left_N(self) -> NDArray[np.int64]:
        """How many more attempts each query may begin."""
        left_N: NDArray[np.int64] = self.rule.most_of(np.arange(len(self.cost_N))) - self.attempt_N
        return np.maximum(left_N, 0)

    @property
    def is_mixed_N(self) -> NDArray[np.bool_]:
        """Which queries have a right answer and a wrong one, both of which ended by themselves."""
        return np.asarray((self.right_N > 0) & (self.wrong_N > 0), np.bool_)

    @property
    def is_unanswered_N(self) -> NDArray[np.bool_]:
        """Which queries can still come to a first answer: not asked yet, or cut off and able to go on."""
        is_cut_N = (self.attempt_N == 1) & self.may_go_on_N
        return np.asarray((self.attempt_N == 0) | is_cut_N, np.bool_)

    def take(self, number: int, clearing: Clearing, attempts: Attempts) -> None:
        """Note what some grants of a round came to.

        Args:
            number: The round.
            clearing: These grants, in the order of the attempts.
            attempts: What came of them.
        """
        index, utility = attempts.index_M, clearing.expected_utility_M
        taken = clearing.parts_M(self.cost_N) / COST_PARTS
        self._begin(index, self.begins_M(clearing))
        if clearing.option_M is not None:
            self.option_N[index] = clearing.option_M
        self.price_N[index] = clearing.shadow_price
        self.expected_utility_N[index] += utility
        self.surplus_N[index] = utility - clearing.shadow_price * taken
        self.is_served_N[index] = clearing.is_service
        self.answer_tokens_N[index] = attempts.answer_tokens_M
        self.written_tokens_N[index] += attempts.attempt_tokens_M
        self.granted_tokens_N[index] += attempts.granted_tokens_M
        self.last_round_N[index] = number
        self.rounds_N[index] += 1
        self.correct_N[index] = attempts.correct_M
        self.vote_N[index] = NO_VOTE if attempts.vote_M is None else attempts.vote_M
        self.has_stopped_N[index] = attempts.has_stopped_M
        self.may_go_on_N[index] = ~attempts.is_over_M
        self.right_N[index] += attempts.has_stopped_M & (attempts.correct_M >= SOLVED_SCORE)
        self.wrong_N[index] += attempts.has_stopped_M & (attempts.correct_M < SOLVED_SCORE)
        self.is_open_N[index] = ~self.rule.closes_M(attempts, self.attempt_N[index])
        if self.rule.objective == "groups":
            self.is_open_N[index] &= ~self.is_mixed_N[index]
        self._choose(number, attempts)
        if self.rule.objective == "vote" and attempts.vote_M is not None:
            self._count(number, attempts, attempts.vote_M)

    def some(self, index: NDArray[np.int64]) -> QueryStates:
        """Return where the queries at `index` stand by now."""
        place_N = np.full(len(self.cost_N), -1)
        place_N[index] = np.arange(len(index))
        part = QueryStates(self.cost_N[index], rule=self.rule.of(index))
        part.past, part.ballots = self.past.of(place_N), self.ballots.of(place_N)
        for name, values in vars(self).items():
            if name.endswith("_N"):
                setattr(part, name, values[index])
        return part

    def _count(self, number: int, attempts: Attempts, vote_M: NDArray[np.int64]) -> None:
        """Count the votes of answers, and take the first one of the most frequent result for the query's answer."""
        for place in np.flatnonzero(attempts.has_stopped_M & (vote_M != NO_VOTE)).tolist():
            index = int(attempts.index_M[place])
            ballot = Ballot(int(vote_M[place]), int(self.attempt_N[index]), number, float(attempts.correct_M[place]))
            kept = self.ballots.cast(index, ballot)
            self.chosen_round_N[index], self.chosen_attempt_N[index] = kept.round, kept.attempt
            self.chosen_score_N[index], self.chosen_has_stopped_N[index] = kept.score, True

    def _begin(self, index: NDArray[np.int64], is_fresh_M: NDArray[np.bool_]) -> None:
        """Leave the current attempt of the queries that were asked again."""
        left = index[is_fresh_M & (self.attempt_N[index] > 0)]
        self.past.add(
            left,
            tokens=self.answer_tokens_N[left],
            has_stopped=self.has_stopped_N[left],
            correct=self.correct_N[left],
            number=self.attempt_N[left],
            last_round=self.last_round_N[left],
            option=self.option_N[left],
            vote=self.vote_N[left],
        )
        self.attempt_N[index[is_fresh_M]] += 1

    def _choose(self, number: int, attempts: Attempts) -> None:
        """Take an answer for the query's answer if it is at least as good as the one that the query has."""
        index = attempts.index_M
        is_same_M = self.chosen_attempt_N[index] == self.attempt_N[index]
        has_none_M = self.chosen_attempt_N[index] == 0
        score_M, chosen_M = np.nan_to_num(attempts.correct_M, nan=-np.inf), self.chosen_score_N[index]
        chosen_M = np.nan_to_num(chosen_M, nan=-np.inf)
        is_whole_M = attempts.has_stopped_M & ~self.chosen_has_stopped_N[index]
        if self.rule.objective == "vote":  # scores say nothing of which answer is kept
            score_M = chosen_M = np.zeros(len(index))
        is_better_M = (score_M > chosen_M) | ((score_M == chosen_M) & is_whole_M)
        takes_M = is_same_M | has_none_M | (is_better_M & ~attempts.has_failed_M)
        rows = index[takes_M]
        self.chosen_round_N[rows], self.chosen_attempt_N[rows] = number, self.attempt_N[rows]
        self.chosen_score_N[rows] = attempts.correct_M[takes_M]
        self.chosen_has_stopped_N[rows] = attempts.has_stopped_M[takes_M]
        self.has_failed_N[rows] = attempts.has_failed_M[takes_M]
