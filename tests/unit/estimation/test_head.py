from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clear_ray.engine.base import Features
from clear_ray.errors import ConfigError, SchemaError
from clear_ray.estimation.competing_risks import doubt
from clear_ray.estimation.cross_fitted import CrossFittedHead
from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.fit import fit_head
from clear_ray.estimation.hazards import Incidence
from clear_ray.estimation.head import _KINDS, Head, head_class, load_head, save_head
from clear_ray.estimation.landmarks import Landmarks, fit_landmarks
from clear_ray.estimation.observations import features_from_table, rollouts_from_table, take_features
from clear_ray.estimation.prior import PriorHead
from clear_ray.estimation.resolve import resolve_head
from clear_ray.stages.features import state_column
from tests.unit.estimation.conftest import drawn_tables

Tables = tuple[pa.Table, pa.Table]


def inputs(tables: Tables) -> tuple[Features, tuple[str, ...], tuple[str, ...]]:
    rollouts = rollouts_from_table(tables[0])
    features = features_from_table(tables[1], query_ids=rollouts.query_ids, rollouts=tables[0])
    return features, rollouts.prompts, rollouts.query_ids


@pytest.fixture(scope="module")
def fitted(tables: Tables) -> Head:
    return fit_head(*tables, model_name="drawn", model_fingerprint="a" * 64, seed=3, created_by="test")


@pytest.fixture(scope="module")
def cross_fitted(tables: Tables) -> Head:
    folds = {f"q{n}": n % 3 for n in range(50)}
    return fit_head(*tables, folds=folds, model_name="drawn", model_fingerprint="a" * 64)


@pytest.mark.parametrize("kind", ["prior", "fitted", "cross_fitted"])
def test_a_stored_head_predicts_the_same(
    kind: str, tables: Tables, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    head = PriorHead(cap_tokens=200) if kind == "prior" else request.getfixturevalue(kind)
    save_head(head, tmp_path / "head")
    again = load_head(tmp_path / "head")
    assert isinstance(again, Head)
    assert again.card == head.card
    one, other = (h.curves(*inputs(tables)) for h in (head, again))
    assert np.array_equal(one.success_NK, other.success_NK)
    assert np.array_equal(one.spend_NK, other.spend_NK)
    assert sorted(p.name for p in (tmp_path / "head").iterdir()) == ["head.json", "head.safetensors"]


@pytest.mark.parametrize("kind", sorted(_KINDS))
def test_every_kind_is_a_whole_head(kind: str) -> None:
    found = head_class(kind)
    assert issubclass(found, Head)
    assert not inspect.isabstract(found)


def test_a_kind_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown kind of head.*got oracle.*competing_risks"):
        head_class("oracle")


def test_a_head_is_refused_for_another_model(fitted: Head) -> None:
    fitted.check_model("a" * 64)
    with pytest.raises(ConfigError, match=r"fitted for drawn.*clear-ray calibrate"):
        fitted.check_model("b" * 64)
    PriorHead().check_model("b" * 64)


def test_a_head_knows_how_many_layers_its_features_come_from(tables: Tables, tmp_path: Path) -> None:
    save_head(fit_head(*tables, probe_layers=7, diagnostic_folds=0), tmp_path)
    assert load_head(tmp_path).card.probe_layers == 7
    for layers in (None, 7):
        assert resolve_head(str(tmp_path), cap_tokens=100, layers=layers).card.probe_layers == 7
    with pytest.raises(ConfigError, match=r"estimate.layers: the head was fitted on 7 layers.*got 8"):
        resolve_head(str(tmp_path), cap_tokens=100, layers=8)
    save_head(fit_head(*tables, diagnostic_folds=0), tmp_path)
    with pytest.raises(ConfigError, match="fitted on all layers"):
        resolve_head(str(tmp_path), cap_tokens=100, layers=7)
    prior = resolve_head(None, cap_tokens=100, layers=7)
    assert type(prior).restore(prior.card, prior.arrays(), prior.settings()).card.probe_layers == 7


def test_a_head_stored_before_it_knew_was_fitted_on_all_layers(fitted: Head, tmp_path: Path) -> None:
    save_head(fitted, tmp_path)
    document = json.loads((tmp_path / "head.json").read_text())
    del document["card"]["probe_layers"]
    (tmp_path / "head.json").write_text(json.dumps(document))
    assert load_head(tmp_path).card.probe_layers is None


def test_a_head_refuses_features_of_another_width(fitted: Head, tables: Tables) -> None:
    features, prompts, query_ids = inputs(tables)
    narrow = Features(
        features.prompt_tokens_N, features.entropy_N, features.hidden_last_ND[:, :3], features.hidden_mean_ND
    )
    with pytest.raises(ConfigError, match="width 3"):
        fitted.curves(narrow, prompts, query_ids)


def test_a_head_can_be_fitted_where_the_engine_shows_no_states(fitted: Head, tables: Tables, tmp_path: Path) -> None:
    none = state_column(np.zeros((tables[1].num_rows, 0), np.float32))
    bare = tables[1].set_column(2, "hidden_last", none).set_column(3, "hidden_mean", none)
    save_head(fit_head(tables[0], bare, model_name="drawn", model_fingerprint="a" * 64), tmp_path / "head")
    curves = load_head(tmp_path / "head").curves(*inputs((tables[0], bare)))
    assert np.isfinite(curves.success_NK).all()
    with pytest.raises(ConfigError, match=r"width 0, the head was fitted on 6.*calibrate"):
        fitted.curves(*inputs((tables[0], bare)))


def test_the_head_finds_what_the_hidden_states_say(fitted: Head) -> None:
    fresh = drawn_tables(60, rollouts=16, seed=9)  # more would hold larger numbers than any trained on: strangers
    curves = fitted.curves(*inputs(fresh))
    hidden = np.stack([np.asarray(row) for row in fresh[1]["hidden_last"].to_pylist()])
    assert np.corrcoef(curves.solvability_N, hidden[:, 0])[0, 1] > 0.7
    assert np.corrcoef(curves.spend_NK[:, -1], hidden[:, 1])[0, 1] > 0.7


def test_order_and_batch_do_not_matter(fitted: Head, tables: Tables) -> None:
    features, prompts, query_ids = inputs(tables)
    whole = fitted.curves(features, prompts, query_ids)
    order = np.random.default_rng(0).permutation(len(query_ids))[:17]
    part = fitted.curves(take_features(features, order), [prompts[i] for i in order], [query_ids[i] for i in order])
    assert np.allclose(part.success_NK, whole.take(order).success_NK, atol=1e-6)


def test_no_query_is_predicted_by_a_head_that_saw_it(tables: Tables) -> None:
    """Changing a query's own rollouts must not change its cross-fitted curve."""
    rollouts, features = tables
    folds = {f"q{n}": n % 3 for n in range(60)}
    flipped = [
        not c if q == "q4" else c
        for q, c in zip(*(rollouts[n].to_pylist() for n in ("query_id", "correct")), strict=True)
    ]
    changed = rollouts.set_column(rollouts.column_names.index("correct"), "correct", pa.array(flipped))
    one, other = (fit_head(t, features, folds=folds).curves(*inputs(tables)) for t in (rollouts, changed))
    assert np.array_equal(one.success_NK[4], other.success_NK[4])
    assert not np.array_equal(one.success_NK[5], other.success_NK[5])


def test_unknown_queries_get_the_head_on_all_data(cross_fitted: Head, tables: Tables) -> None:
    features, prompts, _ = inputs(tables)
    assert isinstance(cross_fitted, CrossFittedHead)
    curves = cross_fitted.curves(features, prompts, [f"new{n}" for n in range(len(prompts))])
    whole = cross_fitted.curves(features, prompts, ["q55"] * len(prompts))
    assert np.array_equal(curves.success_NK, whole.success_NK)


def test_no_information_gives_the_pooled_curve() -> None:
    rollouts, features = drawn_tables(80, seed=1)
    noise = np.random.default_rng(5).permutation(features.num_rows)
    hidden = [features["hidden_last"].to_pylist()[i] for i in noise]
    unrelated = features.set_column(2, "hidden_last", pa.array(hidden)).set_column(
        3, "hidden_mean", pa.array([[0.0] * 6] * 80)
    )
    known, unknown = (fit_head(rollouts, f, seed=0).curves(*inputs((rollouts, f))) for f in (features, unrelated))
    assert np.std(unknown.solvability_N) < 0.15 * np.std(known.solvability_N)


def test_bad_folders_are_refused(tmp_path: Path, fitted: Head) -> None:
    with pytest.raises(ConfigError, match="no head can be read"):
        load_head(tmp_path)
    save_head(fitted, tmp_path)
    document = json.loads((tmp_path / "head.json").read_text())
    for change, message in (
        ({"format": 99}, "not of format"),
        ({"card": {**document["card"], "kind": "crystal_ball"}}, "unknown kind"),
        ({"card": {**document["card"], "colour": 1}}, "unknown field"),
    ):
        (tmp_path / "head.json").write_text(json.dumps({**document, **change}))
        with pytest.raises(ConfigError, match=message):
            load_head(tmp_path)


def test_bad_rollouts_are_refused(tables: Tables) -> None:
    rollouts, features = tables
    with pytest.raises(SchemaError, match="column correct is missing"):
        fit_head(rollouts.drop_columns(["correct"]), features)
    with pytest.raises(SchemaError, match="no features"):
        fit_head(rollouts, features.slice(1))
    with pytest.raises(ConfigError, match="at least 10 queries"):
        fit_head(rollouts.slice(0, 20), features)
    with pytest.raises(ConfigError, match="no such kind"):
        fit_head(rollouts, features, kind="prior")
    with pytest.raises(SchemaError, match="no rollouts"):
        fit_head(rollouts.slice(0, 0), features)


def test_the_prior_stays_near_uniform() -> None:
    features = Features(
        prompt_tokens_N=np.array([1, 100, 100, 100_000]),
        entropy_N=np.array([0.0, 0.5, np.nan, 12.0], np.float32),
        hidden_last_ND=np.zeros((4, 0), np.float32),
        hidden_mean_ND=np.zeros((4, 0), np.float32),
    )
    curves = PriorHead(cap_tokens=400).curves(features, ["a"] * 4, list("abcd"))
    assert curves.solvability_N.min() > 0.1
    slope_NK = np.diff(curves.success_NK, axis=1) / np.diff(curves.spend_NK, axis=1)
    assert (np.diff(slope_NK, axis=1) < 1e-6).all(), "success must be concave in spend"
    assert np.array_equal(curves.success_NK[1], curves.success_NK[2])


def test_queries_unlike_all_that_was_trained_on_get_the_uninformed_law() -> None:
    rng = np.random.default_rng(3)
    known_NF = rng.normal(size=(60, 4)) * 0.1
    landmarks = fit_landmarks(known_NF, seed=0)
    strangers_NF = known_NF[:5] + 50.0
    assert (landmarks.familiarity(known_NF) == 1.0).all()
    assert (landmarks.familiarity(strangers_NF) == 0.0).all()
    assert np.allclose(landmarks(strangers_NF), 0.0), "far from all, a fit has nothing to say"

    tokens_K = token_grid(200)
    hopeless = Incidence(*(np.tile(curve, (5, 1)) for curve in (0 * tokens_K, 1 - 0.9**tokens_K, 0.9**tokens_K)))
    doubted = doubt(hopeless, landmarks.familiarity(strangers_NF), tokens_K=tokens_K)
    assert np.allclose(doubted.right_NK + doubted.wrong_NK + doubted.survival_NK, 1.0)
    assert (np.diff(doubted.right_NK[0]) / np.diff(tokens_K))[0] > 0.005, "a kind never seen is not given up"
    assert np.allclose(doubt(hopeless, np.ones(5), tokens_K=tokens_K).right_NK, hopeless.right_NK)


def test_landmarks_of_earlier_heads_take_every_query_for_known() -> None:
    fitted = fit_landmarks(np.random.default_rng(0).normal(size=(20, 3)), seed=0)
    earlier = Landmarks.restore({name: array for name, array in fitted.arrays().items() if name != "reach"})
    assert (earlier.familiarity(np.full((2, 3), 1e3)) == 1.0).all()
    np.testing.assert_array_equal(earlier(np.zeros((1, 3))), fitted(np.zeros((1, 3))))
