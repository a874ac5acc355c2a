"""What came of asking again: queries solved by which attempt, what a solved one took, and what one more would have bought."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clear_ray.report.summary import AttemptsReport
from clear_ray.rounds.attempt_menu import Menu, menu_of
from clear_ray.rounds.attempt_offers import attempt_states
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.group_menu import group_menu
from clear_ray.rounds.history import SOLVED_SCORE
from clear_ray.rounds.states import QueryStates
from clear_ray.rounds.vote_menu import habits_of, vote_menu


def attempts_report(
    batches: Sequence[Batch], states: QueryStates, *, objective: str | None = None
) -> AttemptsReport | None:
    """Return the report of the attempts of a run; None if it asked every query once.

    Args:
        batches: The whole batch, by what is believed in the end of each engine.
        states: Where every query stands after the last round.
        objective: What the answers of the run were for, if not what its rule says: one whose label is agreement wants one
            answer to each query, and compares some.
    """
    if states.rule.is_single:
        return None
    if states.rule.objective == "vote":
        return _votes_report(batches, states, objective or "vote")
    is_solved_N, is_group = states.chosen_score_N >= SOLVED_SCORE, states.rule.objective == "groups"
    solved, most = int(is_solved_N.sum()), int(states.rule.most_of(np.arange(len(is_solved_N))).max())
    is_done_N = states.is_mixed_N if is_group else is_solved_N
    one_more = _one_more(batches, states, is_open_N=~is_done_N & ~states.has_failed_N)
    return AttemptsReport(
        objective=states.rule.objective,
        most=most,
        attempts=int(states.attempt_N.sum()),
        solved_by_attempt=solved_by_attempt(states),
        tokens_per_solved=float(states.written_tokens_N.sum()) / solved if solved else None,
        one_more_solves=one_more[0],
        one_more_tokens=one_more[1],
        mixed=int(states.is_mixed_N.sum()) if is_group else None,
    )


def solved_by_attempt(states: QueryStates) -> tuple[int, ...]:
    """Return how many queries were solved by their first attempt, by their second ...; nothing where votes are counted."""
    if states.rule.objective == "vote":
        return ()
    is_solved_N = states.chosen_score_N >= SOLVED_SCORE
    most = int(states.rule.most_of(np.arange(len(is_solved_N))).max())
    by_number = np.bincount(states.chosen_attempt_N[is_solved_N], minlength=most + 1)[1:]
    return tuple(int(queries) for queries in by_number)


def _votes_report(batches: Sequence[Batch], states: QueryStates, objective: str) -> AttemptsReport:
    index = np.flatnonzero(~states.has_failed_N & (_most_tokens_N(batches) > 0))
    votes_M = states.ballots.votes_of(index)
    one_more = (0.0, 0.0)
    if len(index) and objective == "vote":

        def of(batch: Batch) -> Menu:
            part, standing = batch.take(index), attempt_states(batch, states, index).only_one_more()
            most_tokens_M, habits = batch.max_tokens_N[index], habits_of(part, votes_M)
            return vote_menu(part, standing, votes_M, most_tokens_N=most_tokens_M, habits=habits)

        one_more = _best_of([of(batch) for batch in batches])
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


def _one_more(batches: Sequence[Batch], states: QueryStates, *, is_open_N: NDArray[np.bool_]) -> tuple[float, float]:
    """Return what one further attempt at every unsolved query, or unmixed group, is expected to bring and to spend."""
    index = np.flatnonzero(is_open_N & (_most_tokens_N(batches) > 0))
    if not len(index):
        return 0.0, 0.0
    plans_of = group_menu if states.rule.objective == "groups" else menu_of
    return _best_of(
        [
            plans_of(
                batch.take(index),
                attempt_states(batch, states, index).only_one_more(),
                most_tokens_N=batch.max_tokens_N[index],
            )
            for batch in batches
        ]
    )


def _most_tokens_N(batches: Sequence[Batch]) -> NDArray[np.int64]:
    return np.asarray(np.max([batch.max_tokens_N for batch in batches], axis=0), np.int64)


def _best_of(menus: Sequence[Menu]) -> tuple[float, float]:
    """Return what the plans, of any engine, that bring most for their tokens are expected to bring and to spend together."""
    success, spend = (np.concatenate([getattr(menu, name) for menu in menus]) for name in ("success_JN", "spend_JN"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(spend > 0, success / spend, 0.0)
    best, rows = ratio.argmax(axis=0), np.arange(ratio.shape[1])
    return float(success[best, rows].sum()), float(spend[best, rows].sum())
