"""The law is one: the replay and the simulation of faults bring a batch to the same end, to the token, at any budget.

`tests/ray/test_drivers.py` adds runs on Ray, and resumed ones.
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.prior import PriorHead
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers
from clear_ray.rounds.offers import BatchOffers
from clear_ray.sweep.recording import read_recording
from tests.conftest import ROLLOUTS
from tests.unit.rounds.drivers import recorded_answers, replayed, simulated

QUERIES = 12
BUDGETS = (*range(1, 13), *np.unique(np.geomspace(16, 20_000, 12).astype(int)).tolist())


@pytest.fixture(scope="module")
def query_ids() -> list[str]:
    """Names of queries evenly drawn, of which some were never right and some were cut off."""
    names: list[str] = pq.read_table(ROLLOUTS / "queries.parquet", columns=["query_id"])["query_id"].to_pylist()
    return names[:: len(names) // QUERIES][:QUERIES]


@pytest.fixture(scope="module")
def batch(query_ids: list[str]) -> Batch:
    recording = read_recording(str(ROLLOUTS / "rollouts.parquet"), str(ROLLOUTS / "features.parquet"))
    place = np.array([recording.rollouts.query_ids.index(query_id) for query_id in query_ids])
    head = PriorHead(cap_tokens=recording.cap_tokens)
    curves = head.curves(recording.features, recording.rollouts.prompts, recording.rollouts.query_ids).take(place)
    rng = np.random.default_rng(0)
    return Batch(
        curves=curves,
        weight_N=rng.choice([0.0, 0.5, 1.0, 3.0], QUERIES),
        max_tokens_N=np.full(QUERIES, recording.cap_tokens),
        tie_break_N=rng.permutation(QUERIES).astype(np.uint64),
        cost_N=rng.choice([0.25, 1.0, 2.5], QUERIES),
    )


@pytest.mark.parametrize("service", [None, 4])
@pytest.mark.parametrize("max_tokens", [60, 400, 1_000])  # under, at and above that of the recording
def test_replay_and_simulation_end_the_same_at_every_budget(
    batch: Batch, query_ids: list[str], service: int | None, max_tokens: int
) -> None:
    answers = recorded_answers(query_ids)
    assert not answers.is_stopped_N.all()
    allocation = AllocationConfig(minimum_service_tokens=service, max_rounds=5)
    ceilings = np.full(QUERIES, max_tokens)
    offers = BatchOffers(Batch(batch.curves, batch.weight_N, ceilings, batch.tie_break_N, batch.cost_N))
    rounds = []
    for budget in BUDGETS:
        here, there = replayed(offers, answers, budget, allocation), simulated(offers, answers, budget, allocation)
        assert here == there, f"at a budget of {budget}"
        assert here.grants or (service and budget < 100), f"nothing was granted of {budget}"
        rounds.append(len(here.grants))
    assert max(rounds) > (1 if max_tokens == 60 else 3), "nothing was priced again"


def test_a_run_that_learns_ends_the_same_in_replay_and_simulation(batch: Batch, query_ids: list[str]) -> None:
    answers = recorded_answers(query_ids)
    allocation = AllocationConfig(max_rounds=LEARNING_ROUNDS)
    rng = np.random.default_rng(2)
    for budget in BUDGETS[::3]:
        offers = LearningOffers(
            x_NP=rng.normal(size=(QUERIES, 3)),
            tokens_K=batch.curves.tokens_K,
            weight_N=batch.weight_N,
            max_tokens_N=batch.max_tokens_N,
            tie_break_N=batch.tie_break_N,
            cost_N=batch.cost_N,
            budget_tokens=budget,
            label="ended",  # the simulation scores nothing
        )
        here, there = replayed(offers, answers, budget, allocation), simulated(offers, answers, budget, allocation)
        assert here == there, f"at a budget of {budget}"
        assert here.grants, f"nothing was granted of {budget}"
