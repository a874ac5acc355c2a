"""What earlier runs have left in a store, as a run reads it at its start and leaves its own; small batches need no Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.earlier_runs import EARLIER, Earlier, earlier_of, keep_lesson, make_ready, open_store
from clear_ray.batch.gain import gain_of
from clear_ray.batch.given_beliefs import GivenRows
from clear_ray.batch.learning import Lesson, lesson_of, with_earlier
from clear_ray.config.run import RunConfig
from clear_ray.engine.base import ModelCard
from clear_ray.errors import ConfigError, ResumeError
from clear_ray.estimation.curves import curves_from_incidence, token_grid
from clear_ray.estimation.factors import Observed, law
from clear_ray.estimation.gain import SampledAnswer
from clear_ray.estimation.head_store import HeadStore
from clear_ray.records import QUERY_SCHEMA
from clear_ray.report.plan import PlanReport
from clear_ray.rounds.batch import Batch
from clear_ray.run_folder.estimates import Estimates
from clear_ray.storage import Folder, open_folder
from tests.unit.report.samples import plan_report

MODEL = ModelCard("small", "f" * 64, 512, 0)
SETS = ("text", "ngrams")
QUERIES, CAP = 60, 128
GRID = token_grid(CAP)
TOKENS_N = np.full(QUERIES, 9)
IS_EASY_N = np.arange(QUERIES) % 2 == 0


def folder_at(path: Path, first: int) -> Folder:
    """Return a run folder with two kinds of query."""
    kinds = ("Multiply {} by 37 and add 12, step by step.", "What is the capital of country {}?")
    texts = [kinds[int(easy)].format(first + n) for n, easy in enumerate(IS_EASY_N)]
    rows: dict[str, Any] = {
        "index": range(QUERIES), "query_id": [f"q{n}" for n in range(QUERIES)], "prompt": texts,
        "is_conversation": [False] * QUERIES, "weight": [1.0] * QUERIES, "cost": [1.0] * QUERIES,
        "max_tokens": [CAP] * QUERIES,
    }  # fmt: skip
    (path / "queries").mkdir(parents=True)
    table = pa.table(
        {name: pa.array(rows.get(name, [None] * QUERIES), QUERY_SCHEMA.field(name).type) for name in QUERY_SCHEMA.names}
    )
    for part in (0, 1):
        half = table.slice(part * 30, 30)
        pq.write_table(half, path / "queries" / f"part-{part}.parquet")
    return open_folder(str(path))


def observed(*queries: int) -> Observed:
    """Return answers to some queries: those of one kind end soon and are right."""
    index = np.array(queries, np.int64) if queries else np.arange(QUERIES)
    tokens = np.where(IS_EASY_N[index], 8, 100)
    return Observed(index, tokens, np.ones(len(index), bool), IS_EASY_N[index].astype(float))


def store_at(tmp_path: Path) -> HeadStore:
    return open_store(str(tmp_path / "store"), MODEL, SETS)


def keep(tmp_path: Path, name: str, first: int, seen: Observed | None = None) -> str:
    folder = folder_at(tmp_path / name, first)
    told = {"run_id": name, "evidence_nats": 1.0, "seed": 0}
    return keep_lesson(folder, store_at(tmp_path), observed() if seen is None else seen, TOKENS_N, **told)  # type: ignore[arg-type]


def begin(folder: Folder, store: HeadStore) -> Earlier:
    return earlier_of(folder, store, TOKENS_N, tokens_K=GRID, label="verdict", seed=0)


def test_the_next_run_believes_what_the_last_one_saw_and_a_resumed_one_does_not_look_again(tmp_path: Path) -> None:
    assert keep(tmp_path, "a", 100) == ""
    folder, store = folder_at(tmp_path / "b", 103), store_at(tmp_path)
    earlier = begin(folder, store)
    assert (earlier.answers, earlier.passed_over, len(earlier.some)) == (QUERIES, (), QUERIES)
    assert earlier.given is not None
    right_N = earlier.given.right_NK[:, np.searchsorted(GRID, 16)]
    assert right_N[IS_EASY_N].min() > 0.6 > 0.3 > right_N[~IS_EASY_N].max()
    assert {(answer.taken, answer.right) for answer in earlier.some} == {(8.0, 1.0), (100.0, 0.0)}

    assert keep(tmp_path, "c", 107) == ""
    again = begin(folder, store)
    assert again.given is not None
    assert np.array_equal(again.given.right_NK, earlier.given.right_NK)
    assert again.answers == QUERIES
    assert json.loads(folder.read(f"{EARLIER}.json"))["runs"] == ["a"]
    assert begin(folder_at(tmp_path / "d", 111), store).answers == 2 * QUERIES


def test_what_a_killed_run_left_half_written_is_made_anew(tmp_path: Path) -> None:
    keep(tmp_path, "a", 100)
    folder, store = folder_at(tmp_path / "b", 103), store_at(tmp_path)
    whole = begin(folder, store)
    path = next(iter(folder.child(EARLIER).files(".parquet")))
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(ResumeError, match=r"earlier: the file is damaged.*Delete earlier and earlier\.json"):
        begin(folder, store)
    (tmp_path / "b" / f"{EARLIER}.json").unlink()
    again = begin(folder, store)
    assert again.given is not None
    assert whole.given is not None
    assert np.allclose(again.given.right_NK, whole.given.right_NK, atol=1e-5)


def test_what_earlier_runs_and_heads_say_is_read_of_the_queries_that_are_asked_for(tmp_path: Path) -> None:
    keep(tmp_path, "a", 100)
    folder, store = folder_at(tmp_path / "b", 103), store_at(tmp_path)
    whole = begin(folder, store)
    sample = np.array([3, 17, 40])
    some = earlier_of(folder, store, TOKENS_N, tokens_K=GRID, label="verdict", seed=0, sample=sample)
    assert whole.given is not None
    assert whole.rows is not None
    assert some.given is not None
    shuffled = np.random.default_rng(0).permutation(QUERIES)
    for index, found in ((sample, some.given), (shuffled, whole.rows.of(shuffled))):
        np.testing.assert_array_equal(found.right_NK, whole.given.right_NK[index])
        np.testing.assert_array_equal(found.survival_NK, whole.given.survival_NK[index])

    head = whole.given
    lists = {"success_K": head.right_NK, "survival_K": head.survival_NK}
    columns = {name: pa.array(table.astype(np.float32).tolist()) for name, table in lists.items()}
    (tmp_path / "b" / "estimates").mkdir()
    for part in np.array_split(np.arange(QUERIES), 3):
        rows = pa.table({"index": part} | {name: column.take(pa.array(part)) for name, column in columns.items()})
        pq.write_table(rows, tmp_path / "b" / "estimates" / f"{part[0]}.parquet")
    found = GivenRows(folder).of(shuffled)
    np.testing.assert_allclose(found.right_NK, head.right_NK[shuffled], atol=1e-6)
    np.testing.assert_allclose(found.wrong_NK, head.wrong_NK[shuffled], atol=1e-5)
    with pytest.raises(ResumeError, match="damaged"):
        GivenRows(folder).of(np.array([QUERIES + 5]))


def test_an_empty_store_gives_nothing_and_is_not_made_by_looking(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "a", 100)
    assert begin(folder, store_at(tmp_path)) == Earlier()
    assert not (tmp_path / "store").exists()
    assert not folder.exists(EARLIER)


def test_of_answers_to_some_queries_their_own_readings_are_kept(tmp_path: Path) -> None:
    keep(tmp_path, "a", 100, observed(1, 3, 40, 41, 40))
    (lesson,) = store_at(tmp_path).read().lessons
    assert lesson.observed.tokens_M.tolist() == [100, 100, 8, 100, 8]
    terms = lesson.readings.terms_ND.toarray()
    assert (terms[0] == terms[1]).all()  # digits are masked
    assert (terms[2] == terms[4]).all()
    assert (terms[0] != terms[2]).any()


def test_a_store_that_cannot_be_written_is_told_of_and_not_raised(tmp_path: Path) -> None:
    in_the_way = Path(store_at(tmp_path).entry.path).parent
    in_the_way.parent.mkdir()
    in_the_way.write_text("a file")
    assert "could not be kept" in keep(tmp_path, "a", 100)
    with pytest.raises(ConfigError, match=r"estimate\.store"):
        make_ready(str(in_the_way / "in"))
    make_ready(str(tmp_path / "new" / "store"))
    assert (tmp_path / "new" / "store").is_dir()


def test_nothing_is_kept_of_a_run_without_answers(tmp_path: Path) -> None:
    assert keep(tmp_path, "a", 100, observed().take(np.zeros(0, np.int64))) == ""
    assert not (tmp_path / "store").exists()


def config_of(tmp_path: Path, estimate: dict[str, Any], **settings: Any) -> RunConfig:
    engine = {"kind": "replay", "rollouts": "r.parquet"}
    plain = {"run_dir": str(tmp_path / "run"), "budget": QUERIES * 20, "engine": engine, "estimate": estimate}
    return RunConfig.parse(plain | settings)


@pytest.mark.parametrize(
    "estimate", [{"head": "demo"}, {"head": "prior"}, {"head": "demo", "frozen": False}, {"encoder": "x"}]
)
def test_a_store_beside_a_head_or_an_encoder_is_refused(tmp_path: Path, estimate: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="store"):
        config_of(tmp_path, estimate | {"store": "s"})


def estimates_of() -> Estimates:
    """Return what a probe finds where no head was fitted."""
    right_K, survival_K = law(GRID)
    rows = [np.tile(row, (QUERIES, 1)) for row in (right_K, survival_K)]
    one_N, ceiling_N, order_N = np.ones(QUERIES), np.full(QUERIES, CAP), np.arange(QUERIES, dtype=np.uint64)
    curves = curves_from_incidence(rows[0], survival_NK=rows[1], tokens_K=GRID)
    batch = Batch(curves, one_N, ceiling_N, order_N, one_N)
    none_N = np.zeros(QUERIES, np.int32)
    return Estimates(batch, np.arange(QUERIES), ("all",), none_N, TOKENS_N, ceiling_N, order_N, {})


def planned() -> PlanReport:
    return plan_report(queries=QUERIES, budget_tokens=QUERIES * 20, probe_tokens=0)


def test_a_plan_tells_the_gain_by_the_best_that_is_known(tmp_path: Path) -> None:
    keep(tmp_path, "a", 100)
    config = config_of(tmp_path, {"store": str(tmp_path / "store")})
    folder = folder_at(tmp_path / "b", 103)
    lesson = lesson_of(folder, config, MODEL)
    assert lesson is not None
    estimates, earlier = with_earlier(folder, config, estimates_of(), lesson)
    assert earlier.given is not None
    assert np.allclose(estimates.batch.curves.success_NK, earlier.given.right_NK, atol=1e-3)
    sampled = (SampledAnswer(8.0, True, 1.0), SampledAnswer(100.0, True, 0.0))
    by_store = gain_of(planned(), config, estimates, lesson, sampled, earlier, "prior")
    by_sample = gain_of(planned(), config, estimates, lesson, sampled, Earlier(), "prior")
    by_nothing = gain_of(planned(), config, estimates, lesson, (), Earlier(), "prior")
    by_head = gain_of(planned(), config, estimates, None, (), Earlier(), "competing_risks")
    assert by_store is not None
    assert by_sample is not None
    assert by_nothing is not None
    assert by_head is not None
    found = [(gain.source, gain.answers) for gain in (by_store, by_sample, by_nothing, by_head)]
    assert found == [("store", QUERIES), ("sample", 2), ("nothing", 0), ("head", 0)]
    for gain in (by_store, by_sample, by_nothing, by_head):
        assert gain.low <= gain.expected <= gain.high
    assert gain_of(planned(), config, estimates, Lesson("verdict", SETS, "too many"), (), Earlier(), "prior") is None
    assert gain_of(planned(), config, estimates, None, (), Earlier(), "prior") is None
    again = config_of(tmp_path, {}, allocation={"objective": "solved"}, scoring={"scorer": "exact"})
    assert gain_of(planned(), again, estimates, lesson, sampled, earlier, "prior") is None
