"""Whole runs on a local cluster, with recorded rollouts of a real model."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from clear_ray.batch import size_limits
from clear_ray.batch.plan import plan
from clear_ray.batch.run import RunResult, run
from clear_ray.cluster.engines import worker_name
from clear_ray.cluster.joining import quiet_data
from clear_ray.config.run import RunConfig
from clear_ray.errors import ClearRayError, ConfigError, EngineError, ResumeError
from clear_ray.estimation.resolve import resolve_head
from clear_ray.ledger.entries import Entry
from clear_ray.ledger.journal import read_journal
from clear_ray.ledger.ledger import Ledger
from clear_ray.rounds.offers import BatchOffers
from clear_ray.run_folder.estimates import read_estimates
from clear_ray.storage import open_folder, writing_errors
from clear_ray.sweep.recording import read_recording
from clear_ray.sweep.replayed import Answers, replay_run


def completions_of(result: RunResult) -> list[dict[str, Any]]:
    folder = open_folder(result.run_dir).child("completions")
    rows: list[dict[str, Any]] = pq.read_table(folder.path, filesystem=folder.filesystem).to_pylist()
    return sorted(rows, key=lambda row: row["index"])


def replayed_ledger(result: RunResult) -> Ledger:
    """Return the ledger as the journal alone tells it; `apply` refuses any entry that would break an invariant."""
    cost_N = [row["cost"] for row in completions_of(result)]
    ledger = Ledger(result.report.budget_tokens, result.report.queries, cost_N=cost_N)
    for record in read_journal(open_folder(result.run_dir)):
        if "op" in record:
            ledger.apply(Entry(record["op"], record["i"], record["a"], record["t"]))
    ledger.check()
    return ledger


def check_account(result: RunResult) -> None:
    """Check rows, budget and ledger of a finished run against each other."""
    report, rows = result.report, completions_of(result)
    assert [row["index"] for row in rows] == list(range(report.queries))
    assert len({row["query_id"] for row in rows}) == report.queries
    statuses = Counter(row["status"] for row in rows)
    assert statuses["completed"] == report.completed
    assert statuses["abandoned"] == report.abandoned
    assert statuses["failed"] == report.failed
    assert report.completed + report.abandoned + report.failed == report.queries
    assert sum(row["spent_tokens"] for row in rows) == report.generated_tokens
    taken = sum(round(1_000 * row["cost"]) * row["spent_tokens"] for row in rows)
    assert -(-taken // 1_000) == report.spent_tokens <= report.budget_tokens
    ledger = replayed_ledger(result)
    assert ledger.reserved_tokens == 0
    assert (ledger.spent_tokens, ledger.wasted_tokens) == (report.spent_tokens, report.wasted_tokens)
    assert [row["spent_tokens"] for row in rows] == ledger.spent_tokens_N.tolist()
    for row in rows:
        assert row["reason"].endswith(".")
        assert (row["text"] is None) == (row["rounds"] == 0)


def test_a_run_answers_every_query_once_and_keeps_its_budget(replay_settings: dict[str, Any]) -> None:
    broken = replay_settings["engine"] | {"features": "nowhere.parquet"}
    with pytest.raises(ClearRayError, match="nowhere"):
        run(None, RunConfig.parse(replay_settings | {"engine": broken}))
    # The same folder, with the mistake mended: nothing was begun in it.
    result = run(None, RunConfig.parse(replay_settings))
    check_account(result)
    report = result.report
    assert report.completed > 0
    assert report.abandoned == 0, "an estimate that knows nothing gives no query up"
    assert report.wasted_tokens == 0
    assert report.correct == sum(row["correct"] for row in completions_of(result))
    assert report.rounds[0].expected_utility <= report.rounds[0].dual_bound + 1e-9
    assert (Path(result.run_dir) / "report.html").stat().st_size > 10_000

    again = run(None, RunConfig.parse(replay_settings))
    assert again.report == report, "a finished run is only read"
    with pytest.raises(ResumeError, match="budget"):
        run(None, RunConfig.parse(replay_settings | {"budget": 77}))


def test_what_comes_back_is_priced_again_and_truncated_queries_go_on(replay_settings: dict[str, Any]) -> None:
    settings = replay_settings | {"budget": 96 * 199, "allocation": {"max_tokens": 400, "max_rounds": 4}}
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    assert len(result.report.rounds) > 1
    assert any(stage.continued for stage in result.report.rounds), result.report.rounds
    recorded = {
        (row["query_id"], row["sample"]): row
        for row in pq.read_table(
            replay_settings["engine"]["rollouts"], columns=["query_id", "sample", "text"]
        ).to_pylist()
    }
    stopped = [row for row in completions_of(result) if row["finish_reason"] == "stop"]
    assert any(row["rounds"] > 1 for row in stopped)
    for row in stopped:
        assert row["text"] == recorded[(row["query_id"], 0)]["text"], "a continued answer is the uninterrupted one"


def test_a_batch_can_be_handled_where_its_rows_are(
    replay_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocation = replay_settings["allocation"] | {"max_rounds": 2}
    whole = run(None, RunConfig.parse(replay_settings | {"allocation": allocation}))
    settings = replay_settings | {"allocation": allocation | {"sketched": True}, "run_dir": str(tmp_path / "sketched")}
    monkeypatch.setattr(size_limits, "SPREAD_ABOVE_QUERIES", 198)
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    first, expected = result.report.rounds[0], whole.report.rounds[0]
    assert first.granted_tokens <= result.report.budget_tokens
    assert first.expected_utility == pytest.approx(expected.expected_utility, rel=0.01)
    assert first.shadow_price == pytest.approx(expected.shadow_price, rel=0.1)
    assert first.expected_tokens == pytest.approx(expected.expected_tokens, rel=0.05)
    prices = [[row["reservation_price"] for row in completions_of(ended)] for ended in (result, whole)]
    assert prices[0] == pytest.approx(prices[1], rel=1e-6)


def test_tokens_may_differ_in_cost(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    queries = pq.read_table(replay_settings["input"]["path"])
    cost = pa.array([0.25 if index % 2 else 2.5 for index in range(len(queries))])
    pq.write_table(queries.append_column("dear", cost), tmp_path / "queries.parquet")
    columns = {**replay_settings["input"].get("columns", {}), "cost": "dear"}
    given = {"path": str(tmp_path / "queries.parquet"), "columns": columns}
    settings = replay_settings | {"input": given, "allocation": replay_settings["allocation"] | {"max_rounds": 2}}
    planned = plan(None, RunConfig.parse(settings))
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    assert result.report.generated_tokens > result.report.spent_tokens, "cheap tokens buy more"
    assert planned.worst_tokens <= result.report.budget_tokens
    assert planned.shadow_price == result.report.rounds[0].shadow_price
    granted = {
        cost: sum(row["max_tokens"] for row in completions_of(result) if row["cost"] == cost) for cost in (0.25, 2.5)
    }
    assert granted[0.25] > granted[2.5]


def test_a_minimum_service_answers_what_is_not_worth_the_price(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    queries = pq.read_table(replay_settings["input"]["path"])
    is_worthless = np.arange(len(queries)) % 2 == 0
    pq.write_table(queries.append_column("weight", pa.array(1.0 - is_worthless)), tmp_path / "queries.parquet")
    allocation = replay_settings["allocation"] | {"minimum_service_tokens": 6}
    settings = replay_settings | {
        "input": {"path": str(tmp_path / "queries.parquet")},
        "budget": 16 * len(queries),
        "allocation": allocation,
    }
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    report, rows = result.report, completions_of(result)
    assert report.abandoned == 0
    assert report.served == is_worthless.sum()
    assert report.funded == (~is_worthless).sum()
    assert [stage.is_service for stage in report.rounds] == [False] * (len(report.rounds) - 1) + [True]
    for row, is_served in zip(rows, is_worthless, strict=True):
        assert ("minimum service" in row["reason"]) == is_served
        assert row["max_tokens"] == 6 if is_served else row["max_tokens"] >= 6

    recording = read_recording(settings["engine"]["rollouts"], settings["engine"]["features"])
    place = [recording.rollouts.query_ids.index(row["query_id"]) for row in rows]
    head = resolve_head(None, cap_tokens=400)
    batch = read_estimates(open_folder(result.run_dir), np.array(head.card.tokens_K), seed=0).batch
    outcomes = recording.length_NS, recording.is_stopped_NS, recording.is_right_NS
    replayed = replay_run(
        BatchOffers(batch),
        Answers(*(columns[place, 0] for columns in outcomes)),
        budget_tokens=report.budget_tokens,
        allocation=RunConfig.parse(settings).allocation,
    )
    assert [row["spent_tokens"] for row in rows] == replayed.spent_tokens_N.tolist(), "as in one process"

    again = run(None, RunConfig.parse(settings))
    assert again.report == report
    refused = settings | {"run_dir": str(tmp_path / "refused"), "budget": 5 * len(queries)}
    with pytest.raises(ConfigError, match=r"199 queries takes 1,194 tokens of a budget of 995"):
        run(None, RunConfig.parse(refused))
    assert not [path for path in (tmp_path / "refused").rglob("*") if path.is_file()]


def test_a_killed_engine_is_replaced_and_its_reservations_are_charged(replay_settings: dict[str, Any]) -> None:
    settings = replay_settings | {"budget": 60 * 199}
    settings["engine"] = settings["engine"] | {"tokens_per_second": 200.0, "max_batch": 8}
    killed = threading.Event()

    def kill_once() -> None:
        deadline = time.monotonic() + 120
        journal = Path(settings["run_dir"]) / "journal.jsonl"
        while time.monotonic() < deadline and not killed.is_set():
            if journal.exists() and b'"reserve"' in journal.read_bytes():
                begins = worker_name(settings["run_dir"], "", 0)
                (name,) = (name for name in ray.util.list_named_actors() if name.startswith(begins))
                ray.kill(ray.get_actor(name), no_restart=False)
                killed.set()
            time.sleep(0.05)

    killer = threading.Thread(target=kill_once)
    killer.start()
    result = run(None, RunConfig.parse(settings))
    killer.join()
    assert killed.is_set()
    check_account(result)
    assert result.report.wasted_tokens > 0, "what was running when the engine died is charged in full"
    assert result.report.failed == 0
    assert result.report.wasted_tokens <= 0.25 * result.report.budget_tokens, "only what was running is lost"


def test_openai_batches_come_back_in_their_own_format(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    import json

    queries = pq.read_table(replay_settings["input"]["path"]).to_pylist()[:20]
    batch = tmp_path / "batch.jsonl"
    batch.write_text(
        "\n".join(
            json.dumps(
                {
                    "custom_id": query["query_id"],
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": {
                        "model": "m",
                        "messages": [{"role": "user", "content": query["prompt"]}],
                        "max_tokens": 60,
                    },
                }
            )
            for query in queries
        )
    )
    settings = replay_settings | {"input": {"path": str(batch)}, "budget": 300, "scoring": {}}
    result = run(None, RunConfig.parse(settings))
    check_account(result)
    folder = Path(result.run_dir)
    answered = [json.loads(line) for line in (folder / "output.jsonl").read_text().splitlines()]
    refused = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
    assert len(answered) == result.report.completed
    assert len(refused) == result.report.abandoned + result.report.failed
    assert {line["custom_id"] for line in answered + refused} == {query["query_id"] for query in queries}
    assert (
        sum(line["response"]["body"]["usage"]["completion_tokens"] for line in answered) == result.report.spent_tokens
    )


def test_a_dataset_can_be_passed_in_place_of_an_input(replay_settings: dict[str, Any]) -> None:
    queries = ray.data.read_parquet(replay_settings["input"]["path"]).limit(12)
    with pytest.raises(ConfigError, match="queries were passed"):
        run(queries, RunConfig.parse(replay_settings))
    result = run(queries, RunConfig.parse(replay_settings | {"input": {}, "budget": 200}))
    check_account(result)
    assert result.completions().count() == 12
    # `clear-ray resume` has no Dataset: what was taken in is on disk.
    settings = RunConfig.parse(replay_settings | {"input": {}, "budget": 200})
    assert run(None, settings).report == result.report
    Path(result.run_dir, "summary.json").unlink()
    again = run(queries, settings)
    assert again.report.spent_tokens == result.report.spent_tokens


def test_a_plan_prices_the_batch_and_leaves_nothing_behind(replay_settings: dict[str, Any]) -> None:
    planned = plan(None, RunConfig.parse(replay_settings), share=0.5)
    assert planned.funded + planned.abandoned == planned.queries == 199
    assert 0 < planned.low_tokens <= planned.expected_tokens <= planned.worst_tokens <= planned.budget_tokens
    assert planned.shadow_price > 0
    utilities = [point.utility for point in planned.budget_curve]
    assert utilities == sorted(utilities)
    half = planned.for_share
    assert half is not None
    assert 0.5 * half.most_utility <= half.expected_utility < 0.51 * half.most_utility
    dearer = [point.utility for point in planned.budget_curve if point.budget_tokens >= half.budget_tokens]
    cheaper = [point.utility for point in planned.budget_curve if point.budget_tokens < half.budget_tokens]
    assert max(cheaper, default=0.0) <= 0.51 * half.most_utility
    assert min(dearer) >= 0.49 * half.most_utility
    assert not list(Path(replay_settings["run_dir"]).parent.iterdir())


@pytest.mark.parametrize("share", [0.0, 1.0, 50.0, float("nan")])
def test_a_share_that_is_none_is_refused_before_anything_is_read(replay_settings: dict[str, Any], share: float) -> None:
    with pytest.raises(ConfigError, match="a share lies between 0 and 1"):
        plan(None, RunConfig.parse(replay_settings), share=share)


def test_a_prompt_that_the_engine_cannot_read_fails_alone(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    queries = pq.read_table(replay_settings["input"]["path"]).slice(0, 20).to_pylist()
    queries[7]["query_id"] = "never recorded"
    path = tmp_path / "queries.parquet"
    pq.write_table(pa.Table.from_pylist(queries), path)
    result = run(None, RunConfig.parse(replay_settings | {"input": {"path": str(path)}, "budget": 20 * 32}))
    check_account(result)
    (failed,) = [row for row in completions_of(result) if row["status"] == "failed"]
    assert (failed["query_id"], failed["spent_tokens"]) == ("never recorded", 0)
    assert "cannot be read" in failed["error"]


def test_an_error_of_ours_comes_back_from_a_stage_as_it_was_raised() -> None:
    class Broken:
        async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
            if len(batch):
                raise EngineError("it broke", "here", "what", "Mend it.")
            yield batch

    with quiet_data():
        rows = ray.data.from_arrow(pa.table({"a": [1]}))  # a dataset goes by the settings it was made under
        stage = rows.map_batches(Broken, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=1))
        with pytest.raises(EngineError) as raised, writing_errors("run"):
            stage.materialize()
    assert str(raised.value) == "here: it broke (got what). Mend it."


def test_a_damaged_journal_is_named(replay_settings: dict[str, Any]) -> None:
    folder = Path(replay_settings["run_dir"])
    run(None, RunConfig.parse(replay_settings))
    (folder / "summary.json").unlink()
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join([lines[0], b"00000000 {}\n", *lines[1:]]))
    with pytest.raises(
        ResumeError, match=r"a record of the journal is damaged.*journal.jsonl:2|journal.jsonl:2.*damaged"
    ):
        run(None, RunConfig.parse(replay_settings))
