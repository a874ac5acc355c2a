"""Groups of rollouts: what they are worth, what a budget buys, and the account that a trainer keeps with them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.allocation.rollout_groups import RolloutGroups
from clear_ray.allocation.rollouts import Objective, allocate_rollouts
from clear_ray.errors import BudgetError, UtilityError

RNG = np.random.default_rng


def mixed(p: float, size: int) -> float:
    return 1.0 - p**size - (1.0 - p) ** size if size else 0.0


def test_a_prompt_that_is_always_right_or_never_gets_no_rollout() -> None:
    bought = allocate_rollouts([0.0, 0.5, 1.0], 100.0 * np.ones(3), budget_tokens=10_000, rollouts=(2, 16))
    assert bought.rollouts_N[0] == bought.rollouts_N[2] == 0
    assert bought.rollouts_N[1] == 16


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60))
def test_no_sizes_within_the_budget_beat_the_bound_and_the_gap_is_at_most_a_step(seed: int, budget: int) -> None:
    rng = RNG(seed)
    p_N, tokens_N = rng.random(3), rng.integers(1, 9, 3).astype(float)
    bought = allocate_rollouts(p_N, tokens_N, budget_tokens=budget, rollouts=(2, 5))
    assert bought.spend_tokens <= budget
    assert set(bought.rollouts_N.tolist()) <= {0, 2, 3, 4, 5}
    sizes = itertools.product([0, 2, 3, 4, 5], repeat=3)
    best = max(
        sum(mixed(p, n) for p, n in zip(p_N, size, strict=True))
        for size in sizes
        if float(np.dot(size, tokens_N)) <= budget
    )
    assert best <= bought.dual_bound + 1e-9
    assert bought.worth <= best + 1e-9
    assert bought.gap <= bought.shadow_price * 5 * tokens_N.max() + 1e-9


@pytest.mark.parametrize("objective", ["mixed", "variance", "solved"])
def test_the_worth_of_further_rollouts_is_what_sampling_them_brings(objective: Objective) -> None:
    """Against sampled futures: p from the posterior, then rollouts of it."""
    right, wrong, strength, belief, further = 0, 3, 4.0, 0.4, 6
    bought = allocate_rollouts(
        [belief],
        [1.0],
        budget_tokens=further,
        objective=objective,
        rollouts=(1, 9),
        strength=strength,
        right_N=[right],
        wrong_N=[wrong],
    )
    rng = RNG(0)
    p_S = rng.beta(belief * strength + right, (1 - belief) * strength + wrong, 200_000)
    more_S = rng.binomial(further, p_S) + right
    share_S = more_S / (right + wrong + further)
    found = {
        "mixed": ((more_S > 0) & (more_S < right + wrong + further)).mean(),
        "solved": (more_S > 0).mean(),
        "variance": (share_S * (1 - share_S)).mean(),
    }[objective]
    assert bought.rollouts_N.tolist() == [further]
    assert bought.worth == pytest.approx(found, abs=0.004)


def test_dear_prompts_get_fewer_rollouts_and_tokens_are_what_is_priced() -> None:
    bought = allocate_rollouts([0.3, 0.3], [10.0, 1_000.0], budget_tokens=3_000)
    assert bought.rollouts_N[0] > bought.rollouts_N[1]
    scaled = allocate_rollouts([0.3, 0.3], [100.0, 10_000.0], budget_tokens=30_000)
    assert scaled.rollouts_N.tolist() == bought.rollouts_N.tolist()


def test_a_group_of_exact_size_comes_whole_or_not_at_all() -> None:
    p_N = RNG(1).random(200)
    bought = allocate_rollouts(p_N, np.full(200, 50.0), budget_tokens=200 * 50 * 3, rollouts=8)
    assert set(bought.rollouts_N.tolist()) == {0, 8}
    worth = np.array([mixed(p, 8) for p in p_N])
    assert worth[bought.rollouts_N > 0].min() >= worth[bought.rollouts_N == 0].max() - 1e-12


def test_what_is_settled_gets_nothing_more() -> None:
    done = allocate_rollouts([0.5, 0.5], [1.0, 1.0], budget_tokens=100, strength=2.0, right_N=[1, 0], wrong_N=[1, 2])
    assert done.rollouts_N[0] == 0
    assert done.rollouts_N[1] > 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"objective": "best"}, "mixed, variance or solved"),
        ({"rollouts": (4, 2)}, "not above the most"),
        ({"rollouts": 0}, "at least one rollout"),
        ({"strength": 0.0}, "strength"),
        ({"right_N": [1, 2, 3]}, "right_N"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(changed: dict[str, object], words: str) -> None:
    settings_of = {"budget_tokens": 10, "rollouts": (2, 4)} | changed
    with pytest.raises(UtilityError, match=words):
        allocate_rollouts([0.5, 0.5], [1.0, 1.0], **settings_of)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4_000), st.sampled_from(["mixed", "variance", "solved"]))
def test_a_trainer_that_asks_and_tells_never_spends_more_than_the_budget(
    seed: int, budget: int, objective: Objective
) -> None:
    rng = RNG(seed)
    p_N, ceiling_N = rng.random(12), rng.integers(5, 60, 12)
    groups = RolloutGroups(
        ceiling_N / 2, budget_tokens=budget, ceiling_N=ceiling_N, objective=objective, rollouts=(2, 8)
    )
    while len(asked := groups.ask(10)):
        assert groups.spent_tokens + groups.promised_tokens <= budget
        assert asked.rollouts_M.sum() <= 10
        prompt_R = rng.permutation(np.repeat(asked.prompt_M, asked.rollouts_M))
        for part in np.array_split(prompt_R, 2):
            groups.tell(part, rng.random(len(part)) < p_N[part], rng.integers(1, ceiling_N[part] + 1))
    assert (groups.right_N + groups.wrong_N).max(initial=0) <= 8
    assert not ((groups.right_N + groups.wrong_N) == 1).any()
    assert groups.spent_tokens <= budget


def test_what_comes_back_of_a_ceiling_is_for_sale_again() -> None:
    groups = RolloutGroups([50.0], budget_tokens=200, ceiling_N=[100], rollouts=(2, 64))
    asked = groups.ask(100)
    assert (asked.rollouts_M.tolist(), groups.promised_tokens) == ([2], 200)
    assert len(groups.ask(100)) == 0
    groups.tell([0, 0], [False, False], [10, 10])
    assert len(groups.ask(100)) == 1


def test_a_rollout_that_was_not_asked_for_or_is_too_long_changes_nothing() -> None:
    groups = RolloutGroups([50.0, 50.0], budget_tokens=400, ceiling_N=[50, 50], rollouts=2)
    groups.ask(2)
    for told in (([1], [True], [5]), ([0], [True], [51]), ([0, 0, 0], [True] * 3, [1] * 3), ([7], [True], [1])):
        with pytest.raises(BudgetError):
            groups.tell(*told)
    assert groups.spent_tokens == 0


def test_a_restored_account_goes_on_as_the_first_one() -> None:
    def play(groups: RolloutGroups, waves: int) -> RolloutGroups:
        for _ in range(waves):
            asked = groups.ask(8)
            prompt_R = np.repeat(asked.prompt_M, asked.rollouts_M)
            groups.tell(prompt_R, prompt_R % 2 == 0, np.full(len(prompt_R), 7))
        return groups

    def fresh() -> RolloutGroups:
        return RolloutGroups(np.full(9, 10.0), budget_tokens=1_000, rollouts=(2, 6))

    whole = play(fresh(), 5)
    resumed = play(fresh().restored(play(fresh(), 3).state()), 2)
    assert resumed.state() == whole.state()


def test_beliefs_that_turn_out_wrong_are_set_aside() -> None:
    """A head that has everything backwards must not keep the budget from the prompts that are worth it."""
    rng = RNG(3)
    p_N = np.repeat([0.0, 0.5], 40)
    groups = RolloutGroups(
        np.full(80, 10.0), budget_tokens=8_000, solvability_N=np.repeat([0.5, 0.01], 40), rollouts=(2, 32)
    )
    while len(asked := groups.ask(40)):
        prompt_R = np.repeat(asked.prompt_M, asked.rollouts_M)
        groups.tell(prompt_R, rng.random(len(prompt_R)) < p_N[prompt_R], np.full(len(prompt_R), 10))
    assert ((groups.right_N > 0) & (groups.wrong_N > 0)).sum() >= 36
