"""Which budget would give a share of what a batch can give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clear_ray.batch.report import _endings, budget_curve, budget_for_share
from clear_ray.estimation.curves import curves_from_incidence
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.states import QueryStates
from clear_ray.run_folder.estimates import Estimates
from tests.unit.report.samples import run_report


def estimated(seed: int, *, copies: int = 1) -> Estimates:
    """Return the estimates of a batch of which a few random curves are an even sample, one query in so many."""
    rng, known = np.random.default_rng(seed), 6
    success = np.sort(rng.random((known, 5)), axis=1) * rng.random((known, 1))
    survival = (1 - success) * np.sort(rng.random((known, 5)), axis=1)[:, ::-1]
    batch = Batch(
        curves=curves_from_incidence(success, survival_NK=survival, tokens_K=np.array([2, 4, 8, 16, 32])),
        weight_N=np.ones(known),
        max_tokens_N=np.full(known, 32),
        tie_break_N=rng.permutation(known).astype(np.uint64),
        cost_N=np.ones(known),
    )
    queries = copies * known
    return Estimates(
        batch=batch,
        sample=copies * np.arange(known),
        task_names=("all",),
        task_N=np.zeros(queries, np.int32),
        prompt_tokens_N=np.ones(queries, np.int64),
        max_tokens_N=np.full(queries, 32),
        tie_break_N=np.arange(queries).astype(np.uint64),
        error_of_index={},
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_budget_for_a_share_gives_it_and_half_of_it_does_not(seed: int, share: float) -> None:
    estimates = estimated(seed)
    found = budget_for_share(estimates, share)
    assert found is not None

    def bought(budget_tokens: int) -> dict[int, float]:
        curve = budget_curve(estimates.batch, budget_tokens=budget_tokens, queries=estimates.queries)
        return {point.budget_tokens: point.utility for point in curve}

    assert found.most_utility == pytest.approx(max(bought(10_000).values()))
    assert found.expected_utility >= share * found.most_utility
    assert bought(found.budget_tokens)[found.budget_tokens] >= share * found.most_utility
    assert bought(found.budget_tokens)[found.budget_tokens // 2] < share * found.most_utility


def test_a_sample_is_scaled_to_the_batch() -> None:
    one, many = (budget_for_share(estimated(4, copies=copies), 0.5) for copies in (1, 7))
    assert one is not None
    assert many is not None
    assert many.budget_tokens == 7 * one.budget_tokens
    assert many.most_utility == pytest.approx(7 * one.most_utility)


def test_a_batch_that_is_worth_nothing_has_no_such_budget() -> None:
    estimates = estimated(4)
    worthless = replace(estimates.batch, weight_N=np.zeros(len(estimates.batch.weight_N)))
    assert budget_for_share(replace(estimates, batch=worthless), 0.5) is None


def test_a_row_that_is_no_query_has_failed_and_was_funded_by_no_price() -> None:
    states = QueryStates(np.ones(5), failed=[0])
    states.rounds_N[[1, 2]] = 1
    states.has_failed_N[2] = True  # by its engine
    states.chosen_has_stopped_N[1] = True
    spent_N = np.array([0, 9, 9, 9, 0])  # the fourth was lost, the last never had a turn
    found = _endings(states, spent_N)
    assert found == {
        "queries": 5,
        "completed": 1,
        "stopped": 1,
        "truncated": 0,
        "abandoned": 1,
        "failed": 3,
        "unasked": 1,
    }
    assert run_report(rounds=(), **found).funded == 3
