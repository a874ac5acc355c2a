"""What came of asking again: queries solved by which attempt, what a solved one took, and what one more would have bought."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clear_ray.report.summary import AttemptsReport
from clear_ray.rounds.attempt_menu import Menu, menu_of
from clear_ray.rounds.attempt_offers import standing_of
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.history import SOLVED_SCORE
from clear_ray.rounds.states import QueryStates
from clear_ray.rounds.vote_menu import habits_of, vote_menu


def attempts_report(batch: Batch, states: QueryStates, *, objective: str | None = None) -> AttemptsReport | None:
    """Return the report of the attempts of a run; None if it asked every query once.

    Args:
        batch: The whole batch, by what is believed of it in the end.
        states: Where every query stands after the last round.
        objective: What the answers of the run were for, if not what its rule says: one whose label is agreement wants one
            answer to each query, and compares some.
    """
    if states.rule.is_single:
        return None
    if states.rule.objective == "vote":
        return _votes_report(batch, states, objective or "vote")
    is_solved_N = states.chosen_score_N >= SOLVED_SCORE
    solved, most = int(is_solved_N.sum()), int(states.rule.most_of(np.arange(len(is_solved_N))).max())
    one_more = _one_more(batch, states, is_unsolved_N=~is_solved_N & ~states.has_failed_N)
    return AttemptsReport(
        objective=states.rule.objective,
        most=most,
        attempts=int(states.attempt_N.sum()),
        solved_by_attempt=solved_by_attempt(states),
        tokens_per_solved=float(states.written_tokens_N.sum()) / solved if solved else None,
        one_more_solves=one_more[0],
        one_more_tokens=one_more[1],
    )


def solved_by_attempt(states: QueryStates) -> tuple[int, ...]:
    """Return how many queries were solved by their first attempt, by their second ...; nothing where votes are counted."""
    if states.rule.objective == "vote":
        return ()
    is_solved_N = states.chosen_score_N >= SOLVED_SCORE
    most = int(states.rule.most_of(np.arange(len(is_solved_N))).max())
    by_number = np.bincount(states.chosen_attempt_N[is_solved_N], minlength=most + 1)[1:]
    return tuple(int(queries) for queries in by_number)


def _votes_report(batch: Batch, states: QueryStates, objective: str) -> AttemptsReport:
    index = np.flatnonzero(~states.has_failed_N & (batch.max_tokens_N > 0))
    votes_M = states.ballots.votes_of(index)
    one_more = (0.0, 0.0)
    if len(index) and objective == "vote":
        standing, habits = standing_of(batch, states, index).only_one_more(), habits_of(batch.take(index), votes_M)
        most_tokens_M = batch.max_tokens_N[index]
        menu = vote_menu(batch.take(index), standing, votes_M, most_tokens_N=most_tokens_M, habits=habits)
        one_more = _best_of(menu)
    return AttemptsReport(
        objective=objective,
        most=int(states.rule.most_of(np.arange(len(states.attempt_N))).max()),
        attempts=int(states.attempt_N.sum()),
        solved_by_attempt=(),
        tokens_per_solved=None,
        agreed=sum(max(votes, default=0) > 1 for votes in votes_M),
        one_more_solves=one_more[0],
        one_more_tokens=one_more[1],
    )


def _one_more(batch: Batch, states: QueryStates, *, is_unsolved_N: NDArray[np.bool_]) -> tuple[float, float]:
    """Return what one further attempt at every unsolved query is expected to solve and to spend, at its best ceiling."""
    index = np.flatnonzero(is_unsolved_N & (batch.max_tokens_N > 0))
    if not len(index):
        return 0.0, 0.0
    standing = standing_of(batch, states, index).only_one_more()
    menu = menu_of(batch.take(index), standing, most_tokens_N=batch.max_tokens_N[index])
    return _best_of(menu)


def _best_of(menu: Menu) -> tuple[float, float]:
    """Return what the plans that bring most for their tokens are expected to bring and to spend together."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(menu.spend_JN > 0, menu.success_JN / menu.spend_JN, 0.0)
    best, rows = ratio.argmax(axis=0), np.arange(ratio.shape[1])
    return float(menu.success_JN[best, rows].sum()), float(menu.spend_JN[best, rows].sum())
