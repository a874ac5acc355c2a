from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clear_ray.errors import ConfigError
from clear_ray.estimation.encoder import EncodedHead, encoded_features, encoder_folder
from clear_ray.estimation.fit import fit_head
from clear_ray.estimation.head import load_head, save_head
from clear_ray.estimation.observations import features_from_table, rollouts_from_table
from tests.unit.estimation.encoders import small_encoder

Tables = tuple[pa.Table, pa.Table]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_encoder(tmp_path_factory.mktemp("encoder"))


def test_states_do_not_depend_on_padding_or_batch(encoder: str, tables: Tables) -> None:
    rollouts = rollouts_from_table(tables[0])
    features = features_from_table(tables[1], query_ids=rollouts.query_ids)
    whole = encoded_features(features, rollouts.prompts, encoder=encoder)
    assert whole.hidden_last_ND.shape == whole.hidden_mean_ND.shape == (60, 16)
    assert np.array_equal(whole.prompt_tokens_N, features.prompt_tokens_N)
    alone = encoded_features(features, ["What is 3 + 21?"], encoder=encoder)
    beside = encoded_features(features, ["What is 3 + 21?", "What is 1 + 2 + 3 + 4 + 5 + 6?"], encoder=encoder)
    assert np.allclose(alone.hidden_mean_ND[0], beside.hidden_mean_ND[0], atol=1e-5)
    assert not np.allclose(beside.hidden_mean_ND[0], beside.hidden_mean_ND[1], atol=1e-3)


def test_a_head_on_an_encoder_is_stored_with_it(encoder: str, tables: Tables, tmp_path: Path) -> None:
    head = fit_head(*tables, kind="shifted_erlang", encoder=encoder, diagnostic_folds=0)
    save_head(head, tmp_path / "head")
    again = load_head(tmp_path / "head")
    assert isinstance(again, EncodedHead)
    again.check_model("any")
    rollouts = rollouts_from_table(tables[0])
    # The model's own hidden states are not read: none are given.
    features = features_from_table(tables[1], query_ids=rollouts.query_ids, rollouts=tables[0])
    one, other = (found.curves(features, rollouts.prompts, rollouts.query_ids) for found in (head, again))
    assert np.array_equal(one.success_NK, other.success_NK)


def test_another_encoder_is_refused(encoder: str, tables: Tables, tmp_path: Path) -> None:
    head = fit_head(*tables, kind="regressed_threshold", encoder=encoder, diagnostic_folds=0)
    assert isinstance(head, EncodedHead)
    copy = tmp_path / "encoder"
    copy.mkdir()
    for path in Path(encoder).iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    moved = EncodedHead.restore(head.card, head.arrays(), head.settings() | {"encoder": str(copy)})
    moved.check_model("any")
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    with pytest.raises(ConfigError, match="not the one that the head was fitted with"):
        moved.check_model("any")
    with pytest.raises(ConfigError, match="no encoder in this folder"):
        fit_head(*tables, encoder=str(tmp_path))


def test_an_encoder_is_named_by_its_folder_or_by_a_package_that_carries_it(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encoder_folder(encoder) == encoder
    carried = tmp_path / "some_small_encoder" / "model"
    shutil.copytree(encoder, carried)
    (tmp_path / "some_small_encoder" / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert encoder_folder("some-small-encoder") == str(carried)
    for name in ("no-such-encoder-here", str(tmp_path), "numpy"):
        with pytest.raises(ConfigError, match="no encoder"):
            encoder_folder(name)
