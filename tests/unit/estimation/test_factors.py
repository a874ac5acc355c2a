"""The factorised head: what cut answers teach, what it is when nothing was seen, and how it is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clear_ray.engine.base import Features
from clear_ray.errors import ConfigError
from clear_ray.estimation.curves import curves_from_incidence, token_grid
from clear_ray.estimation.factorised import fit_coordinates, head_of
from clear_ray.estimation.factors import Factors, Observed, fit_factors, law, log_likelihood_M
from clear_ray.estimation.feature_sets import FEATURE_SETS, FeatureMap, fit_feature_map
from clear_ray.estimation.fit import fit_head
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.head import HeadCard, load_head, save_head
from clear_ray.estimation.learning import learn
from clear_ray.estimation.observations import features_from_table, rollouts_from_table

TOKENS_K = token_grid(200)


def drawn(answers: int, *, seed: int, ceiling: int = 200) -> tuple[NDArray[np.float64], Observed]:
    """Answers of two kinds of query: short and often right, long and seldom right; cut at a ceiling."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, answers)
    length = 5 + rng.gamma(3.0, np.where(kind == 0, 6.0, 40.0)).astype(np.int64)
    is_ended = length <= ceiling
    right = np.where(is_ended, rng.random(answers) < np.where(kind == 0, 0.9, 0.1), np.nan)
    return np.eye(2)[kind], Observed(np.arange(answers), np.minimum(length, ceiling), is_ended, right)


@given(st.integers(0, 30), st.integers(0, 1_000), st.integers(5, 250))
@settings(max_examples=12, deadline=None)
def test_whatever_was_seen_curves_are_chances_that_never_fall(answers: int, seed: int, ceiling: int) -> None:
    x_NP, observed = drawn(answers, seed=seed, ceiling=ceiling)
    found = fit_factors(x_NP, observed, tokens_K=TOKENS_K).incidence(np.eye(2), tokens_K=TOKENS_K)
    assert np.allclose(found.right_NK + found.wrong_NK + found.survival_NK, 1.0)
    for table in (found.right_NK, found.wrong_NK, -found.survival_NK):
        assert (np.diff(table, axis=1) >= -1e-12).all()
        assert (np.abs(table) <= 1.0 + 1e-12).all()


def test_nothing_seen_is_the_uninformed_law() -> None:
    x_NP, observed = drawn(0, seed=0)
    found = fit_factors(x_NP, observed, tokens_K=TOKENS_K).incidence(np.eye(2), tokens_K=TOKENS_K)
    right_K, survival_K = law(TOKENS_K)
    assert np.allclose(found.survival_NK, survival_K, atol=1e-6)
    assert np.allclose(found.right_NK, right_K, atol=2e-3)


def test_cut_answers_teach_survival_and_do_not_bias_it() -> None:
    """Of long answers cut at 40 tokens, the chance to run that long is learned; and it is that of answers seen whole."""
    x_NP, whole = drawn(1_000, seed=1)
    _, cut = drawn(1_000, seed=1, ceiling=40)
    at_40 = int(np.searchsorted(TOKENS_K, 40, side="right")) - 1
    seen, limited = (
        fit_factors(x_NP, observed, tokens_K=TOKENS_K).incidence(np.eye(2), tokens_K=TOKENS_K)
        for observed in (whole, cut)
    )
    assert np.allclose(seen.survival_NK[:, : at_40 + 1], limited.survival_NK[:, : at_40 + 1], atol=0.03)
    assert np.allclose(seen.right_NK[:, : at_40 + 1], limited.right_NK[:, : at_40 + 1], atol=0.03)
    # Counted as ended where they were cut, the long ones would look short.
    ended = Observed(cut.query_M, cut.tokens_M, np.ones(len(cut), bool), np.nan_to_num(cut.right_M))
    naive = fit_factors(x_NP, ended, tokens_K=TOKENS_K).incidence(np.eye(2), tokens_K=TOKENS_K)
    assert naive.survival_NK[1, at_40 + 1] < limited.survival_NK[1, at_40 + 1] - 0.2


def test_the_factors_find_what_the_answers_say() -> None:
    x_NP, observed = drawn(400, seed=2)
    found = fit_factors(x_NP, observed, tokens_K=TOKENS_K).incidence(np.eye(2), tokens_K=TOKENS_K)
    assert found.right_NK[0, -1] > 0.75
    assert found.right_NK[1, -1] < 0.25
    assert found.survival_NK[1, 20] > found.survival_NK[0, 20] + 0.3


def test_the_same_answers_give_the_same_factors_to_the_bit() -> None:
    x_NP, observed = drawn(60, seed=3)
    one, other = (fit_factors(x_NP, observed, tokens_K=TOKENS_K).arrays() for _ in range(2))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    back = Factors.restore(one).incidence(x_NP, tokens_K=TOKENS_K)
    assert np.array_equal(
        back.right_NK, fit_factors(x_NP, observed, tokens_K=TOKENS_K).incidence(x_NP, tokens_K=TOKENS_K).right_NK
    )


def test_without_a_scorer_every_ended_answer_counts() -> None:
    x_NP, observed = drawn(200, seed=4)
    found = fit_factors(x_NP, observed, tokens_K=TOKENS_K, label="ended").incidence(np.eye(2), tokens_K=TOKENS_K)
    assert np.allclose(found.right_NK, 1.0 - found.survival_NK)


def test_the_likelihood_is_that_of_what_was_seen() -> None:
    tokens_K = np.array([10, 20, 40])
    rows = [[0.2, 0.3, 0.4]] * 4, [[0.1, 0.1, 0.2]] * 4, [[0.7, 0.6, 0.4]] * 4
    incidence = Incidence(*(np.array(row) for row in rows))
    observed = Observed(
        np.arange(4),
        np.array([15, 8, 25, 30]),
        np.array([True, True, False, True]),
        np.array([1.0, 0.0, np.nan, np.nan]),
    )
    found = log_likelihood_M(incidence, observed, tokens_K=tokens_K)
    assert np.allclose(found, np.log([0.1, 0.1, 0.6, 0.2]))


def test_a_stored_factorised_head_predicts_the_same(tables: tuple[pa.Table, pa.Table], tmp_path: Path) -> None:
    head = fit_head(*tables, kind="factorised", diagnostic_folds=3)
    assert head.card.diagnostics["log_likelihood"] > head.card.diagnostics["log_likelihood_pooled"]
    save_head(head, tmp_path / "head")
    again = load_head(tmp_path / "head")
    rollouts = rollouts_from_table(tables[0])
    known = features_from_table(tables[1], query_ids=rollouts.query_ids, rollouts=tables[0]), rollouts.prompts
    one, other = (which.curves(*known, rollouts.query_ids) for which in (head, again))
    assert np.array_equal(one.success_NK, other.success_NK)
    assert np.array_equal(one.spend_NK, other.spend_NK)


def test_what_a_run_has_learned_is_kept_as_a_head(tmp_path: Path) -> None:
    """The head says of every query what the run believed of it, trusted as far as there."""
    prompts = [f"Add {n} and {n + 1}." if n % 2 else f"Which animal has ({n}) legs, if any?" for n in range(60)]
    coordinates = fit_coordinates(bare(60), prompts, sets=("text", "ngrams"))
    x_NP = coordinates(bare(60), prompts)
    rng = np.random.default_rng(0)
    kind, length = np.arange(60) % 2, 5 + rng.integers(0, 30, 60)
    for is_told in (True, False):
        right = (kind if is_told else rng.permutation(kind)).astype(float)
        observed = Observed(np.arange(60), length, np.ones(60, bool), right)
        belief = learn(x_NP, observed, tokens_K=TOKENS_K)
        assert (belief.evidence.shares()[0] > 0.9) == is_told
        card = HeadCard("factorised", "", "", "", (0,), tuple(TOKENS_K.tolist()))
        save_head(head_of(belief, coordinates, card=card), tmp_path / str(is_told))
        curves = load_head(tmp_path / str(is_told)).curves(bare(60), prompts, [""] * 60)
        believed = belief.incidence(x_NP, tokens_K=TOKENS_K)
        assert np.allclose(curves.survival_NK, believed.survival_NK, atol=1e-3)
        assert np.allclose(curves.success_NK, believed.right_NK, atol=1e-3)


def bare(prompts: int) -> Features:
    none_ND, unknown_N = np.zeros((prompts, 0), np.float32), np.full(prompts, np.nan, np.float32)
    return Features(np.arange(5, 5 + prompts), unknown_N, none_ND, none_ND)


@pytest.mark.parametrize("sets", [("text",), ("ngrams",), ("length",), ("task",), ("text", "ngrams", "length", "task")])
def test_each_feature_set_is_stored_and_tells_kinds_apart(sets: tuple[str, ...]) -> None:
    prompts = [f"Add {n} and {n + 1}." if n % 2 else f"Which animal has ({n}) legs, if any?" for n in range(40)]
    tasks = ["sums" if n % 2 else "zoo" for n in range(40)]
    fitted = fit_feature_map(bare(40), prompts, sets=sets)
    z_NF = fitted(bare(40), prompts, tasks)
    again = FeatureMap.restore(fitted.sets, fitted.arrays())
    assert np.array_equal(again(bare(40), prompts, tasks), z_NF)
    assert np.isfinite(z_NF).all()
    if "length" not in sets or len(sets) > 1:
        same = np.linalg.norm(z_NF[1] - z_NF[3])
        assert same < np.linalg.norm(z_NF[1] - z_NF[2])


def test_ngrams_do_not_see_which_digits_a_question_holds() -> None:
    prompts = ["How much is 12 plus 7?", "How much is 98 plus 41?", "Name a river.", "Name a lake."]
    z_NF = fit_feature_map(bare(4), prompts, sets=("ngrams",))(bare(4), prompts)
    assert np.allclose(z_NF[0], z_NF[1])
    assert not np.allclose(z_NF[0], z_NF[2])


def test_feature_sets_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ConfigError, match="no such feature set"):
        fit_feature_map(bare(2), ["a", "b"], sets=("smell",))
    with pytest.raises(ConfigError, match="no feature set"):
        fit_feature_map(bare(2), ["a", "b"], sets=())
    with pytest.raises(ConfigError, match="there are none"):
        fit_feature_map(bare(2), ["a", "b"], sets=("task",))(bare(2), ["a", "b"])
    assert set(FEATURE_SETS) == {"hidden", "text", "ngrams", "length", "task", "logprobs"}


def test_curves_of_factors_are_curves() -> None:
    x_NP, observed = drawn(50, seed=5)
    found = fit_factors(x_NP, observed, tokens_K=TOKENS_K).incidence(x_NP, tokens_K=TOKENS_K)
    curves = curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=TOKENS_K)
    assert len(curves) == 50
    assert (np.diff(curves.spend_NK, axis=1) >= 0).all()
