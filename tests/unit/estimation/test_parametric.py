from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from clear_ray.estimation.erlang_law import cumulative, fit_scaled, fit_shared, log_likelihood_R
from clear_ray.estimation.fit import fit_head
from clear_ray.estimation.head import Head, load_head, save_head
from clear_ray.estimation.observations import features_from_table, rollouts_from_table
from clear_ray.estimation.regression import fit_regression
from tests.unit.estimation.conftest import drawn_tables

Tables = tuple[pa.Table, pa.Table]
KINDS = ("regressed_threshold", "shifted_erlang")


@pytest.fixture(scope="module", params=KINDS)
def head(request: pytest.FixtureRequest, tables: Tables) -> Head:
    return fit_head(*tables, kind=request.param, seed=3, diagnostic_folds=0)


def curves_of(head: Head, tables: Tables) -> object:
    rollouts = rollouts_from_table(tables[0])
    features = features_from_table(tables[1], query_ids=rollouts.query_ids, rollouts=tables[0])
    return head.curves(features, rollouts.prompts, rollouts.query_ids)


def test_a_stored_head_predicts_the_same(head: Head, tables: Tables, tmp_path: Path) -> None:
    save_head(head, tmp_path)
    again = load_head(tmp_path)
    assert type(again) is type(head)
    assert again.card == head.card
    one, other = curves_of(head, tables), curves_of(again, tables)
    for name in ("success_NK", "spend_NK", "survival_NK", "threshold_tokens_N", "solvability_N", "beta_N"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_solvability_is_told_apart_by_one_head_and_shared_by_the_other() -> None:
    train, fresh = drawn_tables(120, rollouts=6, seed=4), drawn_tables(200, rollouts=2, seed=9)
    hidden = np.stack([np.asarray(row) for row in fresh[1]["hidden_last"].to_pylist()])
    for kind in KINDS:
        curves = curves_of(fit_head(*train, kind=kind, diagnostic_folds=0), fresh)
        length = curves.threshold_tokens_N + 2 / curves.beta_N  # type: ignore[attr-defined]
        assert np.corrcoef(length, hidden[:, 1])[0, 1] > 0.6
        solvability = curves.solvability_N  # type: ignore[attr-defined]
        if kind == "regressed_threshold":
            assert np.ptp(solvability) == 0
        else:
            assert np.corrcoef(solvability, hidden[:, 0])[0, 1] > 0.6


def test_heads_stand_queries_that_were_never_right() -> None:
    rollouts, features = drawn_tables(30)
    never = rollouts.set_column(rollouts.column_names.index("correct"), "correct", pa.array([False] * len(rollouts)))
    for kind in KINDS:
        curves = curves_of(fit_head(never, features, kind=kind, diagnostic_folds=0), (never, features))
        assert np.isfinite(curves.success_NK).all()  # type: ignore[attr-defined]
        assert curves.success_NK.max() < 0.01  # type: ignore[attr-defined]


@settings(deadline=None)
@given(st.floats(0, 200), st.floats(1e-3, 2.0), st.floats(0, 800))
def test_the_cumulative_law_is_the_integral_of_its_density(threshold: float, beta: float, tokens: float) -> None:
    def density(at: float) -> float:
        return beta**2 * (at - threshold) * np.exp(-beta * (at - threshold))

    # Beyond 40 / beta nothing is left that double precision could see.
    end = min(max(tokens, threshold), threshold + 40 / beta)
    expected = quad(density, threshold, end)[0]
    found = cumulative(np.asarray(tokens), threshold=np.asarray(threshold), beta=np.asarray(beta))
    assert found == pytest.approx(expected, abs=1e-6)


def test_maximum_likelihood_finds_the_law_that_lengths_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(80, 160, size=4_000)
    is_ended = np.ones(4_000, bool)
    distance, beta = fit_shared(predicted - 40 + rng.gamma(2.0, 1 / 0.05, 4_000), is_ended, predicted)
    assert distance == pytest.approx(40, rel=0.25)
    assert beta == pytest.approx(0.05, rel=0.25)
    share, rate = fit_scaled(predicted * (0.5 + rng.gamma(2.0, 1 / 4.0, 4_000)), is_ended, predicted)
    assert share == pytest.approx(0.5, abs=0.1)
    assert rate == pytest.approx(4.0, rel=0.25)


def test_a_cut_length_says_only_that_the_answer_was_longer() -> None:
    tokens, cut = np.array([50.0, 50.0]), np.array([True, False])
    early = log_likelihood_R(tokens, cut, threshold_R=np.asarray(0.0), beta=np.asarray(0.2))
    late = log_likelihood_R(tokens, cut, threshold_R=np.asarray(200.0), beta=np.asarray(0.2))
    assert late[0] < early[0] + 1e-9 or late[1] > early[1]
    assert late[1] == pytest.approx(0.0)
    assert early[1] < -1.0


@settings(deadline=None)
@given(st.integers(0, 1_000))
def test_held_out_predictions_do_not_see_their_own_value(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, value, weight = rng.normal(size=(24, 3)), rng.normal(size=24), rng.integers(0, 4, 24).astype(float)
    weight[:8] = 1.0
    held = fit_regression(x, value, weight, seed=1)[1]
    unknown = np.flatnonzero(weight == 0)
    changed = value.copy()
    changed[unknown] += 100.0
    line, again = fit_regression(x, changed, weight, seed=1)
    assert np.array_equal(held, again), "a value of weight 0 was read"
    assert np.allclose(again[unknown], line(x[unknown]))


def test_a_line_is_found_where_there_is_one_and_the_mean_where_there_is_none() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(300, 4))
    line, held = fit_regression(x, 2.0 + x @ [1.0, -1.0, 0.0, 0.5], np.ones(300), seed=0)
    assert np.allclose(line.weight_P, [1.0, -1.0, 0.0, 0.5], atol=0.02)
    assert np.abs(held - (2.0 + x @ [1.0, -1.0, 0.0, 0.5])).max() < 0.1
    nothing, _ = fit_regression(x, rng.normal(size=300) + 2.0, np.ones(300), seed=0)
    assert np.abs(nothing.weight_P).max() < 0.1
    assert nothing.level[0] == pytest.approx(2.0, abs=0.2)
