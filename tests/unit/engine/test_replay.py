"""ReplayEngine on the recorded rollouts, and on small recordings made here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.engine import Grant, ReplayEngine
from clear_ray.errors import EngineError, SchemaError
from tests.conftest import ROLLOUTS
from tests.unit.engine.conftest import replay_engine, run_grants


def write_rollouts(path: Path, rows: list[dict[str, object]]) -> Path:
    whole = [
        {
            "prompt": f"ask {row['query_id']}",
            "prompt_tokens": 3,
            "finish_reason": "stop",
            "max_tokens": 50,
            "model": "toy",
            "tok_entropy": [0.5 for _ in row["token_ids"]],  # type: ignore[attr-defined]
            "text": "".join(chr(97 + token % 26) for token in row["token_ids"]),  # type: ignore[attr-defined]
            **row,
        }
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(whole), path)
    return path


@pytest.fixture(scope="module")
def recorded() -> dict[tuple[str, int], dict[str, object]]:
    columns = ["query_id", "sample", "prompt", "prompt_tokens", "finish_reason", "text", "token_ids", "tok_entropy"]
    rows = pq.read_table(ROLLOUTS / "rollouts.parquet", columns=columns).to_pylist()
    return {(row["query_id"], row["sample"]): row for row in rows}


@pytest.fixture(scope="module")
def engine(recorded: object) -> ReplayEngine:
    return replay_engine(ROLLOUTS / "rollouts.parquet", ROLLOUTS / "features.parquet")


@pytest.mark.parametrize("cap", [1, 16, 96, 399, 400, 1000])
def test_a_grant_plays_min_of_cap_and_recording(engine: ReplayEngine, recorded, cap: int) -> None:
    grants = [Grant(query_id, "", cap, sample=sample) for query_id, sample in recorded]
    answers = run_grants(engine, grants)
    assert answers.keys() == recorded.keys()
    for key, answer in answers.items():
        row = recorded[key]
        assert answer.error == ""
        assert list(answer.token_ids) == row["token_ids"][:cap]
        ended = len(row["token_ids"]) <= cap
        assert answer.finish_reason == ("stop" if ended and row["finish_reason"] == "stop" else "length")
        assert (answer.text == row["text"]) if ended else row["text"].startswith(answer.text)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_grants_in_any_pieces_play_the_whole_recording(engine: ReplayEngine, recorded, data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(recorded)))
    played: tuple[int, ...] = ()
    for cap in data.draw(st.lists(st.integers(1, 200), min_size=1, max_size=8)):
        answer = run_grants(engine, [Grant(key[0], "", cap, sample=key[1], prefix_token_ids=played)])[key]
        assert answer.token_ids == tuple(recorded[key]["token_ids"][len(played) : len(played) + cap])
        played += answer.token_ids
        if answer.finish_reason == "stop":
            assert list(played) == recorded[key]["token_ids"]
            assert recorded[key]["finish_reason"] == "stop"
            break
    else:
        assert len(played) < len(recorded[key]["token_ids"]) or recorded[key]["finish_reason"] == "length"


def test_features_are_the_recorded_ones(engine: ReplayEngine, recorded) -> None:
    table = pq.read_table(ROLLOUTS / "features.parquet").slice(50, 20).to_pylist()
    query_ids = [row["query_id"] for row in table]
    features = engine.prefill(query_ids, ["" for _ in query_ids])
    assert features.hidden_last_ND.shape == features.hidden_mean_ND.shape == (20, engine.card.hidden_width)
    np.testing.assert_array_equal(features.hidden_last_ND, [row["hidden_last"] for row in table])
    np.testing.assert_array_equal(features.hidden_mean_ND, [row["hidden_mean"] for row in table])
    np.testing.assert_array_equal(features.prompt_tokens_N, [row["prompt_tokens"] for row in table])
    expected = [recorded[query_id, 0]["tok_entropy"][0] for query_id in query_ids]
    np.testing.assert_array_equal(features.entropy_N, np.float32(expected))


def test_recorded_prompts_are_counted_exactly(engine: ReplayEngine, recorded) -> None:
    rows = list(recorded.values())[::16]
    assert engine.prompt_tokens([row["prompt"] for row in rows]) == [row["prompt_tokens"] for row in rows]
    estimate = engine.prompt_tokens(["x" + rows[0]["prompt"]])[0]
    assert 0.5 * rows[0]["prompt_tokens"] < estimate < 2 * rows[0]["prompt_tokens"]


def test_samples_wrap_around_in_the_order_of_the_column(tmp_path: Path) -> None:
    path = write_rollouts(
        tmp_path / "r.parquet",
        [{"query_id": "q", "sample": sample, "token_ids": [sample] * 4} for sample in (7, 2, 5)],
    )
    grants = [Grant("q", "", 9, sample=sample) for sample in range(7)]
    answers = run_grants(replay_engine(path), grants)
    assert [answers["q", sample].token_ids[0] for sample in range(7)] == [2, 5, 7, 2, 5, 7, 2]


def test_a_recording_cut_at_its_cap_ends_short_of_its_grant(tmp_path: Path) -> None:
    row = {"query_id": "q", "sample": 0, "token_ids": list(range(50)), "finish_reason": "length"}
    engine = replay_engine(write_rollouts(tmp_path / "r.parquet", [row]))
    answer = run_grants(engine, [Grant("q", "", 80, prefix_token_ids=tuple(range(20)))])["q", 0]
    assert (len(answer.token_ids), answer.finish_reason, answer.error) == (30, "length", "")
    assert engine.card.context_tokens == 53


def test_what_cannot_be_played_is_that_querys_error_alone(tmp_path: Path) -> None:
    path = write_rollouts(tmp_path / "r.parquet", [{"query_id": "q", "sample": 0, "token_ids": [1, 2]}])
    engine = replay_engine(path)
    grants = [Grant("unknown", "", 5), Grant("q", "", 5), Grant("q", "", 5, sample=1, prefix_token_ids=(1, 2, 3))]
    answers = run_grants(engine, [*grants, Grant("q", "", 0, sample=2)])
    assert "no recording" in answers["unknown", 0].error
    assert answers["q", 0].token_ids == (1, 2)
    assert "prefix" in answers["q", 1].error
    assert "at least 1" in answers["q", 2].error
    with pytest.raises(SchemaError, match="unknown"):
        engine.prefill(["q", "unknown"], ["", ""])


def test_without_features_the_hidden_width_is_zero(tmp_path: Path) -> None:
    path = write_rollouts(tmp_path / "r.parquet", [{"query_id": "q", "sample": 0, "token_ids": [1, 2]}])
    engine = replay_engine(path)
    assert engine.card.hidden_width == 0
    features = engine.prefill(["q", "q"], ["", ""])
    assert features.hidden_last_ND.shape == (2, 0)
    assert features.entropy_N.tolist() == [0.5, 0.5]


def test_the_fingerprint_is_that_of_the_recorded_model(tmp_path: Path) -> None:
    rows = [{"query_id": "q", "sample": 0, "token_ids": [1]}]
    cards = [
        replay_engine(write_rollouts(tmp_path / f"{i}.parquet", [{**rows[0], "model": model}])).card
        for i, model in enumerate(["a", "a", "b"])
    ]
    assert cards[0].fingerprint == cards[1].fingerprint != cards[2].fingerprint
    assert len(cards[0].fingerprint) == 64


@pytest.mark.parametrize("missing", ["token_ids", "finish_reason", "model"])
def test_a_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    path = write_rollouts(tmp_path / "r.parquet", [{"query_id": "q", "sample": 0, "token_ids": [1]}])
    pq.write_table(pq.read_table(path).drop_columns([missing]), path)
    with pytest.raises(SchemaError, match=missing):
        replay_engine(path)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_text("no parquet")
    with pytest.raises(SchemaError, match=r"r\.parquet"):
        replay_engine(tmp_path / "r.parquet")
    with pytest.raises(SchemaError, match="absent"):
        replay_engine(tmp_path / "absent.parquet")


def test_in_real_time_short_recordings_end_first_and_slots_are_shared(tmp_path: Path) -> None:
    lengths = {"long": 60, "short": 5, "middle": 25, "late": 5}
    rows = [{"query_id": name, "sample": 0, "token_ids": [1] * length} for name, length in lengths.items()]
    engine = replay_engine(write_rollouts(tmp_path / "r.parquet", rows), tokens_per_second=200, max_batch=3)

    async def order() -> list[str]:
        ended: list[str] = []

        async def one_call(names: list[str]) -> None:
            async for answer in engine.generate([Grant(name, "", 100) for name in names]):
                assert len(answer.token_ids) == lengths[answer.query_id]
                ended.append(answer.query_id)

        await asyncio.gather(one_call(["long", "middle"]), one_call(["short", "late"]))
        return ended

    # `late` has to wait for the slot that `short` leaves, and still ends before the others.
    assert asyncio.run(order()) == ["short", "late", "middle", "long"]


def test_cancelled_queries_end_early_with_what_they_spent(tmp_path: Path) -> None:
    rows = [{"query_id": name, "sample": 0, "token_ids": list(range(400))} for name in ("gone", "kept")]
    engine = replay_engine(write_rollouts(tmp_path / "r.parquet", rows), tokens_per_second=1000)

    async def run() -> dict[str, object]:
        asyncio.get_running_loop().call_later(0.05, engine.cancel, ["gone", "never asked"])
        return {a.query_id: a async for a in engine.generate([Grant("gone", "", 400), Grant("kept", "", 400)])}

    answers = asyncio.run(run())
    assert answers["gone"].finish_reason == "cancelled"
    assert 0 < len(answers["gone"].token_ids) < 400
    assert answers["gone"].token_ids == tuple(range(len(answers["gone"].token_ids)))
    assert (answers["kept"].finish_reason, len(answers["kept"].token_ids)) == ("stop", 400)


def test_queries_not_yet_begun_can_be_cancelled(tmp_path: Path) -> None:
    rows = [{"query_id": str(i), "sample": 0, "token_ids": [1, 2]} for i in range(3)]
    engine = replay_engine(write_rollouts(tmp_path / "r.parquet", rows))

    async def run() -> list[tuple[str, str, int]]:
        seen = []
        async for answer in engine.generate([Grant(str(i), "", 9) for i in range(3)]):
            engine.cancel(["2"])
            seen.append((answer.query_id, answer.finish_reason, len(answer.token_ids)))
        return seen

    assert asyncio.run(run()) == [("0", "stop", 2), ("1", "stop", 2), ("2", "cancelled", 0)]


def test_a_closed_engine_refuses(tmp_path: Path) -> None:
    path = write_rollouts(tmp_path / "r.parquet", [{"query_id": "q", "sample": 0, "token_ids": [1]}])
    engine = replay_engine(path)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        run_grants(engine, [Grant("q", "", 1)])
    with pytest.raises(EngineError, match="closed"):
        engine.prefill(["q"], [""])


def test_a_copy_plays_the_recording_it_is_a_copy_of(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"query_id": "a", "sample": 0, "token_ids": [1, 2, 3]},
        {"query_id": "a#1", "sample": 0, "token_ids": [9]},
    ]
    rollouts = write_rollouts(tmp_path / "r.parquet", rows)
    hidden = {"query_id": ["a", "a#1"], "hidden_last": [[1.0], [2.0]], "hidden_mean": [[3.0], [4.0]]}
    pq.write_table(pa.table(hidden), tmp_path / "f.parquet")
    engine = replay_engine(rollouts, tmp_path / "f.parquet")
    ids = ["a", "a#1", "a#2", "b#1", "#1"]
    answers = run_grants(engine, [Grant(query_id, "", 50) for query_id in ids])
    assert [answers[query_id, 0].token_ids for query_id in ids[:3]] == [(1, 2, 3), (9,), (1, 2, 3)]
    assert all("no recording" in answers[query_id, 0].error for query_id in ids[3:])
    assert engine.prefill(ids[:3], [""] * 3).hidden_last_ND[:, 0].tolist() == [1.0, 2.0, 1.0]
    for unknown in ids[3:]:
        with pytest.raises(SchemaError):
            engine.prefill([unknown], [""])
