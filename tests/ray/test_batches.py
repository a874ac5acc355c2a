"""Files and batches on real Ray Serve, with OpenAI's own client before it."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest
import ray
from openai.types import Batch
from ray import serve
from ray.util import list_named_actors

from clear_ray.ledger.journal import read_journal
from clear_ray.serve.app import application
from clear_ray.storage import open_folder
from tests.conftest import ROLLOUTS
from tests.ray.batching import (
    batch_settings,
    content,
    create,
    ended,
    recorded_ids,
    request,
    upload,
)
from tests.ray.serving import KEY, ask, client_of, free_port


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    free = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": free})
    yield free
    serve.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batches")


@pytest.fixture(scope="module")
def client(port: int, folder: Path) -> openai.OpenAI:
    run = {"dispatch": {"rows_per_file": 16}, "allocation": {"max_rounds": 3}, "budget_rate": "$2 per 1M tokens"}
    serve.run(application(batch_settings(folder, batches={"run": run})), name="batches", route_prefix="/batches")
    return client_of(port, "/batches")


FEW, MANY = 40, 60
BAD_MESSAGES = [{"rolez": "user", "contentz": "?"}]


@pytest.fixture(scope="module")
def made(client: openai.OpenAI) -> dict[str, Any]:
    """Batches that run side by side: with tokens enough, with few, of a good row beside a bad one, and of bad ones alone."""
    ids = recorded_ids()
    rows = {
        "ample": [request(name) for name in ids[:FEW]],
        "scarce": [request(name, weight=0.001 if number % 2 else 1.0) for number, name in enumerate(ids[:MANY])],
        "good and bad": [request(ids[0]), request("bad", body={"messages": BAD_MESSAGES})],
        "bad": [request("nobody-asked-this"), request("nor-this")],
        "in money": [request(name) for name in ids[:3]],
        "voted": [request(name) for name in ids[:8]],
    }
    metadata = {"ample": {"budget": "1M tokens", "of": "the tests"}, "scarce": {"budget": "300 tokens"}}
    metadata |= {"in money": {"budget": "$5", "weight": "2.5"}}
    metadata |= {"voted": {"objective": "vote", "votes_by": "number", "attempts": "3", "budget": "100k"}}
    files = {name: upload(client, some) for name, some in rows.items()}
    assert {client.files.wait_for_processing(file.id, poll_interval=0.1).status for file in files.values()} == {
        "processed"
    }
    return {name: create(client, file.id, metadata=metadata.get(name)) for name, file in files.items()}


def test_a_batch_comes_back_in_input_order_with_its_counts(client: openai.OpenAI, made: dict[str, Any]) -> None:
    assert made["ample"].status == "validating"
    batch = ended(client, made["ample"].id)
    assert batch.status == "completed", batch
    assert batch.request_counts.model_dump() == {"total": FEW, "completed": FEW, "failed": 0}
    assert batch.error_file_id is None
    assert batch.model == "replay"
    assert batch.metadata == {"budget": "1M tokens", "of": "the tests"}
    rows = content(client, batch.output_file_id)
    assert [row["custom_id"] for row in rows] == recorded_ids()[:FEW]
    assert {row["response"]["status_code"] for row in rows} == {200}
    assert {row["response"]["body"]["model"] for row in rows} == {"replay"}
    spent = sum(row["response"]["body"]["usage"]["completion_tokens"] for row in rows)
    assert batch.usage.output_tokens == spent
    assert batch.usage.total_tokens == batch.usage.input_tokens + spent
    times = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    assert list(times) == sorted(times)
    assert batch.expires_at == batch.created_at + 24 * 3600
    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.bytes) == ("batch_output", len(client.files.content(output.id).content))


def test_a_scarce_budget_gives_abandoned_rows_with_their_prices(client: openai.OpenAI, made: dict[str, Any]) -> None:
    batch = ended(client, made["scarce"].id)
    assert batch.status == "completed"
    done, errors = rows_of(client, batch, recorded_ids()[:MANY])
    assert (len(done), len(errors)) == (batch.request_counts.completed, batch.request_counts.failed)
    assert done
    assert errors
    assert batch.usage.output_tokens <= 300
    abandoned = [row["error"] for row in errors if row["error"]["code"] == "abandoned_by_price"]
    assert abandoned
    assert all(row["response"] is None for row in errors)
    assert all(0 <= error["reservation_price"] <= error["price"] for error in abandoned)


def test_one_good_and_one_bad_row(client: openai.OpenAI, made: dict[str, Any]) -> None:
    """The bad row fails alone; both files can be read and deleted."""
    batch = ended(client, made["good and bad"].id)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}
    (error,) = content(client, batch.error_file_id)
    assert (error["custom_id"], error["error"], error["response"]["status_code"]) == ("bad", None, 400)
    assert error["response"]["body"]["error"]["type"] == "invalid_request_error"
    for name in (batch.output_file_id, batch.error_file_id):
        assert client.files.delete(name).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.content(name)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


@pytest.mark.slow
def test_a_budget_may_be_money_and_a_batch_may_weigh_more(client: openai.OpenAI, made: dict[str, Any]) -> None:
    batch = ended(client, made["in money"].id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 3), batch
    assert batch.model_extra["clear_ray"]["budget_tokens"] == 2_500_000


def test_metadata_has_answers_voted_on(client: openai.OpenAI, folder: Path, made: dict[str, Any]) -> None:
    batch = ended(client, made["voted"].id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 8), batch
    run = folder / "runs" / batch.id
    allocation = json.loads((run / "manifest.json").read_text())["config"]["allocation"]
    assert {name: allocation[name] for name in ("objective", "votes_by", "attempts")} == {
        "objective": "vote",
        "votes_by": "number",
        "attempts": 3,
    }
    rounds = pq.read_table(run / "rounds").to_pylist()
    assert len(rounds) > 8  # some were asked again
    assert any(row["vote"] is not None for row in rounds)


@pytest.mark.slow
def test_what_was_abandoned_is_asked_again_and_everything_exported(client: openai.OpenAI, made: dict[str, Any]) -> None:
    first = ended(client, made["scarce"].id)
    for body in ({}, {"budget": "lots"}):  # it spent all that it had
        with pytest.raises(openai.BadRequestError):
            again(client, first.id, body)
    assert ended(client, again(client, first.id, {"budget": "1k"}).id).errors.data[0].code == "nothing_to_retry"
    batch = ended(client, again(client, first.id, {"budget": "1M", "unanswered": True}).id)
    left = [row["custom_id"] for row in content(client, first.error_file_id)]
    assert [row["custom_id"] for row in content(client, batch.output_file_id)] == left
    assert batch.request_counts.model_dump() == {"total": len(left), "completed": len(left), "failed": 0}
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{client.base_url}batches/{first.id}/export?format=csv"
    asked = urllib.request.Request(url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(asked, timeout=60) as exported:  # noqa: S310
        rows = list(csv.DictReader(io.TextIOWrapper(exported, "utf-8", newline="")))
    assert [row["query_id"] for row in rows] == recorded_ids()[:MANY]
    assert sum(row["status"] == "abandoned" for row in rows) == len(left)


def again(client: openai.OpenAI, batch_id: str, body: dict[str, Any]) -> Batch:
    """Have what a batch left asked again."""
    return client.post(f"/batches/{batch_id}/retry", body=body, cast_to=Batch)


def test_all_rows_failed_is_completed_without_an_output(client: openai.OpenAI, made: dict[str, Any]) -> None:
    batch = ended(client, made["bad"].id)
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert len(content(client, batch.error_file_id)) == 2
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 0, "failed": 2}


BAD_FILES: dict[str, tuple[list[Any], list[tuple[str, int | None, str | None]]]] = {
    "json": ([request("a"), "{no json"], [("invalid_json_line", 2, None)]),
    "no object": (["[1, 2]"], [("invalid_request", 1, None)]),
    "fields": (
        [request("a", **{name: None}) for name in ("custom_id", "method", "url", "body")],
        [("missing_required_parameter", k, name) for k, name in enumerate(("custom_id", "method", "url", "body"), 1)],
    ),
    "body": (
        [request("a", body={"model": None}), request("b", body={"messages": None})],
        [("missing_required_parameter", 1, "body.model"), ("missing_required_parameter", 2, "body.messages")],
    ),
    "types": (
        [request("a", custom_id=7), request("b", url=["u"]), request("c", method={}), {**request("d"), "body": "text"}],
        [("invalid_request", k, name) for k, name in enumerate(("custom_id", "url", "method", "body"), 1)],
    ),
    "stream": ([request("a", body={"stream": True})], [("streaming_unsupported", 1, "body.stream")]),
    "url": ([request("a", url="/v1/embeddings")], [("invalid_url", 1, "url")]),
    "other url": ([request("a"), request("b", url="/v1/completions")], [("invalid_url", 2, "url")]),
    "method": ([request("a", method="GET")], [("invalid_method", 1, "method")]),
    "model": ([request("a", body={"model": "gpt-none"})], [("model_not_found", 1, "body.model")]),
    "twice": ([request("a"), "", request("a")], [("duplicate_custom_id", 3, "custom_id")]),
    "empty": ([], [("empty_file", None, "input_file_id")]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_fails_the_batch_with_line_and_code(client: openai.OpenAI, kind: str) -> None:
    rows, expected = BAD_FILES[kind]
    batch = ended(client, create(client, upload(client, rows).id).id)
    assert (batch.status, batch.failed_at is not None) == ("failed", True)
    found = [(error.code, error.line, error.param) for error in batch.errors.data]
    assert found == expected
    assert batch.errors.object == "list"
    assert all(error.message for error in batch.errors.data)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


def test_an_unknown_file_and_one_of_another_purpose_fail_the_batch(client: openai.OpenAI) -> None:
    other = client.files.create(file=io.BytesIO(b"{}"), purpose="user_data")
    for file_id in ("file-that-is-nowhere", other.id):
        batch = ended(client, create(client, file_id).id)
        assert batch.status == "failed"
        assert [(error.code, error.param) for error in batch.errors.data] == [("invalid_request", "input_file_id")]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/nothing"}, "endpoint"),
        ({"endpoint": ""}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"completion_window": "24"}, "completion_window"),
        ({"metadata": {"budget": "a lot"}}, "metadata.budget"),
        ({"metadata": {"policy": "greedy"}}, "metadata.policy"),
        ({"metadata": {"attempts": "many"}}, "metadata.attempts"),
        ({"metadata": {"weight": "-1"}}, "metadata.weight"),
        ({"metadata": {str(k): "v" for k in range(17)}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds"),
    ],
)
def test_what_a_batch_cannot_have_is_refused_at_once(client: openai.OpenAI, changes: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, "file-x", **changes)
    assert caught.value.param == param


def test_what_is_not_there_is_not_found(client: openai.OpenAI) -> None:
    for look in (
        lambda: client.batches.retrieve("batch_none"),
        lambda: client.batches.cancel("batch_none"),
        lambda: client.files.retrieve("file-none"),
        lambda: client.files.delete("file-none"),
        lambda: client.files.content("file-none"),
    ):
        with pytest.raises(openai.NotFoundError):
            look()


def test_a_finished_batch_cannot_be_cancelled(client: openai.OpenAI) -> None:
    batch = ended(client, create(client, "file-none").id)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_an_idempotency_key_makes_one_batch(client: openai.OpenAI) -> None:
    for how in (
        lambda key: {"extra_headers": {"Idempotency-Key": key}},
        lambda key: {"extra_body": {"idempotency_key": key}},
    ):
        key = f"key-{id(how)}"
        first = create(client, "file-none", metadata={"a": "b"}, **how(key))
        again = create(client, "file-none", metadata={"a": "b"}, **how(key))
        assert first.id == again.id
        with pytest.raises(openai.ConflictError):
            create(client, "file-none", metadata={"a": "c"}, **how(key))
        assert create(client, "file-none", metadata={"a": "b"}, **how(f"{key}!")).id != first.id


def test_every_batch_of_250_is_listed_once(client: openai.OpenAI) -> None:
    made = [create(client, "file-none", metadata={"n": str(k)}).id for k in range(250)]
    for limit in (7, 20, 100):
        listed = []
        for batch in client.batches.list(limit=limit):
            listed.append(batch.id)
            if batch.id == made[0]:
                break
        assert listed == made[::-1]
    page = client.batches.list(limit=100)
    assert (page.has_more, len(page.data)) == (True, 100)
    with pytest.raises(openai.BadRequestError):
        client.batches.list(limit=101)


def test_files_are_listed_by_age_and_purpose(client: openai.OpenAI) -> None:
    made = [client.files.create(file=io.BytesIO(b"x"), purpose="vision").id for _ in range(5)]
    assert [file.id for file in client.files.list(purpose="vision", order="asc", limit=2)] == made
    assert [file.id for file in client.files.list(purpose="vision")] == made[::-1]
    first = client.files.list(purpose="vision", limit=2)
    assert (first.has_more, [file.id for file in first.data]) == (True, made[:-3:-1])


def test_a_file_comes_back_as_it_was(client: openai.OpenAI) -> None:
    whole = bytes(range(256)) * 5_000 + b"\r\n--not the boundary--\r\n"
    file = client.files.create(
        file=("täst.bin", io.BytesIO(whole)),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (file.bytes, file.filename) == (len(whole), "täst.bin")
    assert file.expires_at == file.created_at + 3600
    assert client.files.content(file.id).content == whole
    for wrong in ({"purpose": "nothing"}, {"expires_after": {"anchor": "created_at", "seconds": 3599}}):
        with pytest.raises(openai.BadRequestError):
            client.files.create(**{"file": io.BytesIO(b"x"), "purpose": "batch"} | wrong)  # type: ignore[call-overload]


@pytest.fixture
def slow(port: int, tmp_path: Path) -> Iterator[openai.OpenAI]:
    """A client of a server whose engine takes its time."""
    engine = {"tokens_per_second": 60.0, "max_batch": 8}
    serve.run(application(batch_settings(tmp_path, engine=engine)), name="slow", route_prefix="/slow")
    yield client_of(port, "/slow")
    serve.delete("slow")


def answering(client: openai.OpenAI, batch_id: str) -> Any:
    """Return a batch once it has paid for some answers."""
    deadline = time.monotonic() + 150
    while not (batch := client.batches.retrieve(batch_id)).model_extra.get("clear_ray", {}).get("spent_tokens"):
        assert batch.status in ("validating", "in_progress"), batch
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return batch


def rows_of(client: openai.OpenAI, batch: Any, ids: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what a batch wrote, of which every query has one row in one of the files, in the order of the input."""
    done, errors = content(client, batch.output_file_id), content(client, batch.error_file_id)
    place = {name: number for number, name in enumerate(ids)}
    places = [[place[row["custom_id"]] for row in rows] for rows in (done, errors)]
    assert sorted(places[0] + places[1]) == list(range(len(ids)))
    assert [sorted(each) for each in places] == places
    return done, errors


@pytest.mark.slow
def test_a_cancelled_batch_keeps_what_was_answered(slow: openai.OpenAI) -> None:
    ids = recorded_ids()
    made = create(slow, upload(slow, [request(name) for name in ids]).id)
    answering(slow, made.id)
    assert slow.batches.cancel(made.id).status == "cancelling"
    assert slow.batches.cancel(made.id).status in ("cancelling", "cancelled")
    batch = ended(slow, made.id)
    assert (batch.status, batch.cancelled_at is not None) == ("cancelled", True)
    done, errors = rows_of(slow, batch, ids)
    assert done
    assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}
    assert {row["error"]["message"] for row in errors} == {"The batch was cancelled before its turn came."}
    assert batch.usage.output_tokens == sum(row["response"]["body"]["usage"]["completion_tokens"] for row in done)


@pytest.mark.slow
def test_a_budget_is_raised_and_cut_on_the_way(slow: openai.OpenAI) -> None:
    ids = recorded_ids()
    made = create(slow, upload(slow, [request(name) for name in ids]).id, metadata={"budget": "2k"})
    answering(slow, made.id)
    for budget, tokens in (("+3k", 5_000), ("-1k tokens", 4_000)):
        answer = slow.post(f"/batches/{made.id}/budget", body={"budget": budget}, cast_to=dict[str, Any])
        assert answer["budget_tokens"] == tokens
    with pytest.raises(openai.BadRequestError):
        slow.post(f"/batches/{made.id}/budget", body={"budget": "more"}, cast_to=dict[str, Any])
    batch = ended(slow, made.id)
    rows_of(slow, batch, ids)
    account = batch.model_extra["clear_ray"]
    assert account["budget_tokens"] == 4_000
    assert 2_000 < batch.usage.output_tokens <= 4_000
    with pytest.raises(openai.ConflictError):
        slow.post(f"/batches/{made.id}/budget", body={"budget": "+1k"}, cast_to=dict[str, Any])


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "batches", "engine", "price", "ingress"])
def test_what_dies_while_a_batch_is_answered_loses_no_row(slow: openai.OpenAI, tmp_path: Path, victim: str) -> None:
    ids = recorded_ids()[:60]
    made = create(slow, upload(slow, [request(name) for name in ids]).id)
    answering(slow, made.id)
    kill(f"clear_ray batch {made.id}" if victim == "driver" else f"slow#{victim}#", is_for_good=victim == "driver")
    batch = ended(slow, made.id)
    assert batch.status == "completed", batch
    done, errors = rows_of(slow, batch, ids)
    assert len(done) == len(ids), errors
    assert_charged_once(tmp_path / "runs" / made.id, batch.usage.output_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["budget", "cancel"])
def test_an_order_outlives_the_driver_that_was_to_heed_it(slow: openai.OpenAI, tmp_path: Path, order: str) -> None:
    ids = recorded_ids()
    made = create(slow, upload(slow, [request(name) for name in ids]).id, metadata={"budget": "2k"})
    answering(slow, made.id)
    slow.post(f"/batches/{made.id}/{order}", body={"budget": "+1k"}, cast_to=dict[str, Any])
    kill(f"clear_ray batch {made.id}", is_for_good=True)
    batch = ended(slow, made.id)
    assert batch.status == ("completed" if order == "budget" else "cancelled"), batch
    done, errors = rows_of(slow, batch, ids)
    assert done
    assert errors or order == "budget", "what is paid for may be enough for all"
    spent = batch.usage.output_tokens  # what is cancelled has no budget but that
    assert (batch.model_extra or {})["clear_ray"]["budget_tokens"] == (3_000 if order == "budget" else spent)
    assert_charged_once(tmp_path / "runs" / made.id, spent)


def kill(title: str, *, is_for_good: bool) -> None:
    (actor,) = [actor for actor in list_named_actors(all_namespaces=True) if title in actor["name"]]
    ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]), no_restart=is_for_good)


def assert_charged_once(run_dir: Path, output_tokens: int) -> None:
    """Look into the journal: what answers hold was charged once, and beside it only what was lost."""
    report = json.loads((run_dir / "summary.json").read_text())
    records = [record for record in read_journal(open_folder(str(run_dir))) if "op" in record]
    closed = [(record["i"], record["a"]) for record in records if record["op"] in ("settle", "forfeit")]
    assert len(set(closed)) == len(closed)
    assert report["spent_tokens"] == output_tokens
    rounds = pq.read_table(run_dir / "rounds").to_pylist()
    void = {(record["i"], record["a"]) for record in records if record["op"] in ("forfeit", "waste")}
    kept = [row for row in rounds if (row["index"], row["attempt"]) not in void]
    assert sum(row["attempt_tokens"] for row in kept) + report["wasted_tokens"] == report["spent_tokens"]


@pytest.mark.slow
def test_interactive_queries_find_a_place_while_a_batch_runs(slow: openai.OpenAI) -> None:
    rows = pq.read_table(ROLLOUTS / "rollouts.parquet").to_pylist()
    row = next(row for row in rows if row["sample"] == 0 and 20 < row["output_tokens"] < 60)
    made = create(slow, upload(slow, [request(name) for name in recorded_ids()]).id)
    answering(slow, made.id)
    before = slow.batches.retrieve(made.id).request_counts.completed
    answer = ask(slow, row)
    assert answer.choices[0].message.content == row["text"]
    batch = slow.batches.retrieve(made.id)
    assert batch.status == "in_progress"
    # Behind the batch it would have waited for all of it; so few of its longer answers end while this one is written.
    assert batch.request_counts.completed - before <= 32
    slow.batches.cancel(made.id)
    assert ended(slow, made.id).status == "cancelled"


@pytest.mark.slow
def test_the_node_client_as_it_is(client: openai.OpenAI, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("there is no Node on this machine")
    subprocess.run([npm, "install", "--silent", "openai@6.49.0"], cwd=tmp_path, check=True, timeout=240)
    script = shutil.copy(Path(__file__).parents[1] / "data/clients/files_and_batches.mjs", tmp_path)
    ids = recorded_ids()[:10]
    command = [node, str(script), str(client.base_url), client.api_key, json.dumps(ids)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found == {
        "status": "completed",
        "counts": {"total": 10, "completed": 10, "failed": 0},
        "cancelled": 409,
        "missing": 404,
        "deleted": True,
        "rows": ids,
        "listed": True,
    }
