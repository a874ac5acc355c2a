"""A run that teaches itself, and does not wait for its longest answers: further stages begin while they are running.

**What is running is seen too.** An answer that has come to so many tokens and has not ended is one that was cut there, as far
as anybody knows. Were it left out, those that came back would be the short ones, and all would be believed to be short.

**The next stage** begins once what is still running is few beside the answers that are there: how those end would change
little. A run that went on sooner would price by what the short answers have taught. In a small batch each answer counts; in a
large one many of a stage are alike, and more of them may be missing. A stage is as large as what was spent and what the
running grants are expected to spend make it.

**The rest**, with no stage left, is priced over all that is open (`beside`) however much is running, but only once a good
part of what is not spent has come back: a clearing cuts its dearest grant short, and many small ones cut many.

**What a stage has go on** (`learning_offers`) is waited for by the next one: it shows whether a kind of query ends that was
always cut, and has to come to twice its length again and again before all that is left is granted.

The pilot is waited for, since before it nothing is known, and so is a batch that is asked again, for its answers or for
labels by agreement, or that pays for prompts.

Shapes: N queries, M running.

Source: method.md sections 8 and 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clear_ray.estimation.factors import Observed
from clear_ray.rounds.batch import expected_spend, taken_tokens
from clear_ray.rounds.beside import RunningGrants, clear_beside
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.learning_offers import LearningOffers, observe
from clear_ray.rounds.states import QueryStates

FEW_RUNNING_SHARES, QUERIES_OF_THE_LARGER = (1 / 32, 1 / 8), 1_000
"""Of the answers that are there: while more are running, no stage begins. The larger share is that of batches of so many
queries or more; of smaller ones it is as much less, down to the other."""
LEARNING_CAME_BACK_SHARE = 1 / 4
"""Of what is not spent: with less to grant no clearing of the rest is made beside running grants."""


@dataclass(frozen=True, slots=True, eq=False)
class OverlappingLearningOffers(LearningOffers):
    """See the module."""

    def clear_beside(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        running: RunningGrants,
        available_tokens: int,
    ) -> Clearing:
        """See `OverlappingOffers`."""
        nothing = nothing_to_grant(len(is_free_N))
        answers = observe(states, label=self.label)
        is_asked_again = self.asks_again or self.agreement is not None
        if not len(answers) or is_asked_again or self.calls is not None or self.basis != "ceilings":
            return nothing
        promised_tokens = taken_tokens(_tokens_N(running, len(is_free_N)), self.cost_N)
        unspent_tokens = available_tokens + promised_tokens
        goes_on_M = states.answer_tokens_N[running.index_M] > 0
        if self.has_explored(states, unspent_tokens):
            return nothing
        if self._stage_tokens(states, unspent_tokens) is not None:
            few = few_running_share(len(is_free_N)) * len(answers)
            waits = len(running.index_M) > few or bool(goes_on_M.any())
        else:
            waits = available_tokens < LEARNING_CAME_BACK_SHARE * unspent_tokens
        if waits:
            return nothing
        belief = self.learned(with_running(answers, states, running))
        batch = self._believed(belief, is_guarded=self.is_guarded(states, unspent_tokens))
        clearing = clear_beside(
            batch,
            generated_tokens_N=states.answer_tokens_N,
            is_free_N=is_free_N,
            running=running,
            available_tokens=available_tokens,
        )
        before_M = states.answer_tokens_N[running.index_M]
        spend_M = expected_spend(batch.curves.take(running.index_M), before_M, running.tokens_M)
        expected_tokens = float(np.maximum(spend_M, running.progress_M) @ self.cost_N[running.index_M])
        unspent_tokens -= int(expected_tokens)
        stage_tokens = self._stage_tokens(states, unspent_tokens)
        if stage_tokens is None:
            return clearing
        if self.has_explored(states, unspent_tokens):
            return nothing
        rng = np.random.default_rng([self.seed, int(states.last_round_N.max(initial=0)), len(running.index_M)])
        part = self._stage_of(clearing, stage_tokens, states, rng)
        return self._with_longer(part, batch, states, is_free_N, available_tokens, rng)


def few_running_share(queries: int) -> float:
    """Return of how many of the answers that are there the outcome may be open when a stage of a batch begins."""
    least, most = FEW_RUNNING_SHARES
    return min(max(most * queries / QUERIES_OF_THE_LARGER, least), most)


def with_running(answers: Observed, states: QueryStates, running: RunningGrants) -> Observed:
    """Return the answers of a run, those that are running as cut where they have come to; in the order of their queries."""
    tokens_M = states.answer_tokens_N[running.index_M] + running.progress_M
    some = np.flatnonzero(tokens_M > 0)
    query = running.index_M[some]
    others = answers.take(~np.isin(answers.query_M, query))
    every = Observed(
        np.concatenate([others.query_M, query]),
        np.concatenate([others.tokens_M, tokens_M[some]]),
        np.concatenate([others.is_ended_M, np.zeros(len(some), bool)]),
        np.concatenate([others.right_M, np.full(len(some), np.nan)]),
    )
    return every.take(np.argsort(every.query_M, kind="stable"))


def _tokens_N(running: RunningGrants, queries: int) -> NDArray[np.int64]:
    tokens_N = np.zeros(queries, np.int64)
    tokens_N[running.index_M] = running.tokens_M
    return tokens_N
