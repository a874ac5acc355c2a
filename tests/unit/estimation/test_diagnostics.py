from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from clear_ray.estimation.curves import curves_from_incidence, token_grid
from clear_ray.estimation.diagnostics import diagnose, observed_spend, observed_success
from clear_ray.estimation.fit import fit_head
from clear_ray.estimation.observations import count, features_from_table, rollouts_from_table
from tests.unit.estimation.conftest import drawn_tables


def test_counts_conserve_rollouts(tables: tuple[pa.Table, pa.Table]) -> None:
    rollouts = rollouts_from_table(tables[0])
    for cap_tokens in (40, 120, 300):
        counts = count(rollouts, tokens_K=token_grid(cap_tokens))
        ended = counts.right_NK + counts.wrong_NK
        assert (ended <= counts.at_risk_NK).all()
        assert (np.diff(counts.at_risk_NK, axis=1) <= -ended[:, :-1]).all()
        assert ended.sum() == (rollouts.is_ended_R & (rollouts.tokens_R <= cap_tokens)).sum()
        assert counts.right_NK.sum() == (rollouts.is_right_R & (rollouts.tokens_R <= cap_tokens)).sum()


def test_a_cut_rollout_is_not_observed_in_the_cell_where_it_was_cut() -> None:
    table = pa.table({
        "query_id": ["a", "a", "a"], "output_tokens": [7, 8, 4], "finish_reason": ["length", "stop", "stop"],
        "correct": [True, True, False], "prompt": ["p"] * 3,
    })  # fmt: skip
    counts = count(rollouts_from_table(table), tokens_K=np.array([4, 8, 12]))
    assert counts.at_risk_NK.tolist() == [[3.0, 1.0, 0.0]]
    assert counts.right_NK.tolist() == [[0.0, 1.0, 0.0]]
    assert counts.wrong_NK.tolist() == [[1.0, 0.0, 0.0]]


def test_observed_curves_follow_the_definition(tables: tuple[pa.Table, pa.Table]) -> None:
    rollouts, rows = rollouts_from_table(tables[0]), tables[0].to_pylist()
    tokens_K = token_grid(120)
    mine = [row for row in rows if row["query_id"] == "q3"]
    for k, tokens in enumerate(tokens_K):
        right = np.mean([r["correct"] and r["finish_reason"] == "stop" and r["output_tokens"] <= tokens for r in mine])
        spend = np.mean([min(r["output_tokens"], tokens) for r in mine])
        assert observed_success(rollouts, tokens_K=tokens_K)[3, k] == pytest.approx(right)
        assert observed_spend(rollouts, tokens_K=tokens_K)[3, k] == pytest.approx(spend)


def test_the_truth_scores_better_than_the_pooled_curve() -> None:
    rollouts_table, features_table = drawn_tables(120, rollouts=8, seed=2)
    rollouts = rollouts_from_table(rollouts_table)
    features = features_from_table(features_table, query_ids=rollouts.query_ids, rollouts=rollouts_table)
    tokens_K = token_grid(120)
    # Twenty thousand draws stand for each query's true law.
    rng, hidden = np.random.default_rng(0), features.hidden_last_ND
    draws_NS = 5 + rng.gamma(2.0, 12.0, size=(120, 20_000)) * np.exp(0.6 * hidden[:, 1:2])
    survival = np.stack([(draws_NS.astype(int) > t).mean(axis=1) for t in tokens_K], axis=1)
    solvability_N = 1 / (1 + np.exp(-2 * hidden[:, 0]))
    truth = curves_from_incidence(solvability_N[:, None] * (1 - survival), survival_NK=survival, tokens_K=tokens_K)
    tasks = ["likely" if h > 0 else "unlikely" for h in hidden[:, 0]]
    diagnosis = diagnose(truth, rollouts, fold_N=np.arange(120) % 4, tasks=tasks)
    assert diagnosis.task_prior is not None
    assert diagnosis.head.log_likelihood > diagnosis.task_prior.log_likelihood > diagnosis.pooled.log_likelihood
    assert diagnosis.head.brier < diagnosis.task_prior.brier < diagnosis.pooled.brier
    assert diagnosis.head.solvability_rank > 0.7
    assert diagnosis.pooled.solvability_rank < 0.3
    filled = diagnosis.head.weight_Q > 0.02
    assert np.allclose(diagnosis.head.predicted_Q[filled], diagnosis.head.observed_Q[filled], atol=0.1)
    assert diagnosis.head.weight_Q.sum() == pytest.approx(1.0)


def test_a_fitted_head_beats_the_pooled_curve_where_there_is_something_to_know() -> None:
    figures = fit_head(*drawn_tables(120, rollouts=6, seed=4), seed=1).card.diagnostics
    assert figures["log_likelihood"] > figures["log_likelihood_pooled"]
    assert figures["brier"] < figures["brier_pooled"]
    assert figures["solvability_rank"] > 0.4
