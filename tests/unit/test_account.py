"""Which budget would give a share of what a batch can give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clear_ray.account import budget_curve, budget_for_share
from clear_ray.run_folder import Estimates
from tests.unit.simulation import world


def estimated(number: int, *, copies: int = 1) -> Estimates:
    """Return the estimates of a batch of which a world's is an even sample, one query in so many."""
    batch = world(number).batch
    known = len(batch.weight_N)
    queries = copies * known
    return Estimates(
        batch=batch,
        sample=copies * np.arange(known),
        task_names=("all",),
        task_N=np.zeros(queries, np.int32),
        prompt_tokens_N=np.ones(queries, np.int64),
        tie_break_N=np.arange(queries).astype(np.uint64),
        error_of_index={},
    )


@pytest.mark.parametrize("number", [2, 4, 6, 8])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_budget_for_a_share_gives_it_and_half_of_it_does_not(number: int, share: float) -> None:
    estimates = estimated(number)
    found = budget_for_share(estimates, share)
    assert found is not None

    def bought(budget_tokens: int) -> dict[int, float]:
        curve = budget_curve(estimates.batch, budget_tokens, queries=estimates.queries)
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
