"""Files and batches between HTTP and the store, and the webhook that hears of their ends; no cluster is needed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import openai
import pytest

from clear_ray.config.engine import ReplayConfig
from clear_ray.errors import ConfigError
from clear_ray.serve.batches.places import Places, absolute_batches
from clear_ray.serve.batches.runs import asked_settings, check_names, weight_of
from clear_ray.serve.batches.service import BatchService
from clear_ray.serve.batches.settings import BatchSettings
from clear_ray.serve.batches.store import Store
from clear_ray.serve.batches.webhook import tell_webhook
from clear_ray.serve.errors import ApiError
from clear_ray.serve.settings import ServeConfig
from tests.unit.serve.batches.test_upload import TYPE, form, pieces

OWN = {"engine": ReplayConfig(rollouts="x")}
ASKED = {"input_file_id": "file-none", "endpoint": "/v1/chat/completions", "completion_window": "24h"}


@pytest.fixture
def service(tmp_path: Path) -> BatchService:
    return BatchService(BatchSettings(folder=str(tmp_path), max_file_bytes=1_000), [OWN])


async def upload(service: BatchService, content: bytes, owner: str = "") -> dict[str, Any]:
    return await service.upload(owner, pieces(form(content), 64), TYPE)


async def test_a_file_is_there_until_it_is_deleted(service: BatchService, tmp_path: Path) -> None:
    body = await upload(service, b"abc" * 100)
    assert (body["bytes"], body["purpose"], body["filename"]) == (300, "batch", "b.jsonl")
    assert body["expires_at"] == body["created_at"] + 30 * 24 * 3600
    content = await service.content(await service.file("", body["id"]))
    assert b"".join([piece async for piece in content]) == b"abc" * 100
    assert (await service.delete_file("", body["id"]))["deleted"]
    assert not list((tmp_path / "files").iterdir())
    for ask in (service.file, service.delete_file):
        with pytest.raises(ApiError) as caught:
            await ask("", body["id"])
        assert caught.value.status == 404


async def test_content_that_is_gone_from_its_disk_is_not_found(service: BatchService, tmp_path: Path) -> None:
    body = await upload(service, b"abc")
    (tmp_path / "files" / body["id"]).unlink()
    with pytest.raises(ApiError) as caught:
        await service.content(await service.file("", body["id"]))
    assert caught.value.status == 404


async def test_keys_do_not_meet(service: BatchService) -> None:
    body = await upload(service, b"abc", owner="a")
    batch = await service.create("a", ASKED, None)
    for ask, name in ((service.file, body["id"]), (service.batch, batch["id"]), (service.cancel, batch["id"])):
        with pytest.raises(ApiError) as caught:
            await ask("b", name)
        assert caught.value.status == 404
    assert (await service.list_files("b", {}))["data"] == (await service.list_batches("b", {}))["data"] == []


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({**ASKED, "endpoint": None}, "endpoint"),
        ({**ASKED, "input_file_id": 3}, "input_file_id"),
        ({**ASKED, "input_file_id": ""}, "input_file_id"),
        ({**ASKED, "nonsense": 1}, "nonsense"),
        ({**ASKED, "metadata": []}, "metadata"),
        ({**ASKED, "metadata": {"k": 1}}, "metadata.k"),
        ({**ASKED, "metadata": {"budget": "$5"}}, "metadata.budget"),
        ({**ASKED, "metadata": {"budget": "-5"}}, "metadata.budget"),
        ({**ASKED, "metadata": {"Budget": "2M"}}, "metadata.Budget"),
        ({**ASKED, "metadata": {"budget": "2M", "token-budget": "2M"}}, "metadata.token-budget"),
        ({**ASKED, "metadata": {"votesBy": "exact"}}, "metadata.votesBy"),
        ({**ASKED, "idempotency_key": 5}, "idempotency_key"),
        ([], None),
        ("text", None),
    ],
)
async def test_what_is_no_batch_is_refused(service: BatchService, given: Any, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        await service.create("", given, None)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert (await service.list_batches("", {}))["data"] == []


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"limit": "-1"}, {"after": "batch_x"}]
)
async def test_what_is_no_page_is_refused(service: BatchService, query: dict[str, str]) -> None:
    with pytest.raises(ApiError) as caught:
        await service.list_batches("", query)
    assert caught.value.status == (404 if "after" in query else 400)


async def test_one_key_sent_many_times_at_once_makes_one_batch(service: BatchService) -> None:
    made = await asyncio.gather(*(service.create("", ASKED, "key") for _ in range(20)))
    assert len({body["id"] for body in made}) == 1
    assert len((await service.list_batches("", {}))["data"]) == 1


async def test_a_batch_that_does_not_run_has_no_budget_to_change(service: BatchService) -> None:
    body = await service.create("", ASKED, None)
    for budget in ("+1k", 7, 7.0):
        with pytest.raises(ApiError) as caught:
            await service.change_budget("", body["id"], {"budget": budget})
        assert caught.value.status == 409
    for budget in (7.5, True, -7, None):
        with pytest.raises(ApiError) as caught:
            await service.change_budget("", body["id"], {"budget": budget})
        assert caught.value.status == 400


async def test_a_file_may_be_deleted_as_soon_as_a_batch_is_made_of_it(service: BatchService, tmp_path: Path) -> None:
    body = await upload(service, b"abc")
    first, second = [await service.create("", ASKED | {"input_file_id": body["id"]}, None) for _ in range(2)]
    await service.delete_file("", body["id"])
    for batch in (first, second):
        assert (tmp_path / "batches" / batch["id"] / "input.jsonl").read_bytes() == b"abc"
    other = await upload(service, b"abc", owner="b")  # of another key
    batch = await service.create("", ASKED | {"input_file_id": other["id"]}, None)
    assert not (tmp_path / "batches" / batch["id"]).exists()


def test_an_input_outlives_the_file_it_was_made_of(tmp_path: Path) -> None:
    settings = absolute_batches(BatchSettings(folder=str(tmp_path / "served")))
    assert settings is not None
    places = Places(settings)
    (tmp_path / "upload").write_bytes(b"one")
    kept = places.keep_input("batch_1", str(tmp_path / "upload"))
    (tmp_path / "upload").unlink()
    assert places.keep_input("batch_1", str(tmp_path / "upload")).read_bytes() == kept.read_bytes() == b"one"


class Hook(BaseHTTPRequestHandler):
    """Takes nothing at first."""

    told: ClassVar[list[tuple[dict[str, str], bytes]]] = []
    tries: ClassVar[int] = 0

    def do_POST(self) -> None:
        Hook.tries += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if Hook.tries > 2:
            Hook.told.append((dict(self.headers), body))
        self.send_response(500 if Hook.tries <= 2 else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook"
    server.shutdown()
    server.server_close()


async def test_a_webhook_hears_of_every_end_once_and_can_check_who_says_so(
    service: BatchService, tmp_path: Path, hook: str
) -> None:
    secret, store = "whsec_" + "c2VjcmV0" * 4, Store(tmp_path)
    made = [(await service.create("", ASKED, None))["id"] for _ in range(2)]
    tell_webhook(store, hook, secret)
    assert Hook.tries == 0, "none has ended"
    for name, status in zip(made, ("completed", "cancelled"), strict=True):
        store.change(name, within=("validating",), status=status)
    for _ in range(3):
        tell_webhook(store, hook, secret)
        await asyncio.sleep(1.05)
    assert Hook.tries == 4
    client = openai.OpenAI(api_key="none", base_url="http://none")
    events = [client.webhooks.unwrap(body, headers, secret=secret) for headers, body in Hook.told]
    assert {(event.type, event.data.id) for event in events} == {
        ("batch.completed", made[0]),
        ("batch.cancelled", made[1]),
    }  # type: ignore[union-attr]
    assert len(Hook.told) == 2
    headers, body = Hook.told[0]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace(b"batch_", b"batch-"), headers, secret=secret)
    assert json.loads(body)["object"] == "event"


@pytest.mark.parametrize(
    ("run", "metadata", "expected"),
    [
        ({}, {}, {"allocation": {}}),
        ({"seed": 3}, {"budget": "2M tokens", "mine": "x"}, {"seed": 3, "budget": "2M tokens", "allocation": {}}),
        (
            {"budget_rate": "$2 per 1M tokens", "allocation": {"policy": "uniform"}},
            {"budget": "$1"},
            {"budget": "$1", "budget_rate": "$2 per 1M tokens", "allocation": {"policy": "uniform"}},
        ),
        ({"budget_rate": "$2 per 1M tokens"}, {"budget": "7k"}, {"budget": "7k", "allocation": {}}),
        (
            {"allocation": {"max_rounds": 2}},
            {"policy": "uniform"},
            {"allocation": {"max_rounds": 2, "policy": "uniform"}},
        ),
    ],
)
def test_metadata_goes_before_the_servers_settings(
    run: dict[str, Any], metadata: dict[str, str], expected: dict[str, Any]
) -> None:
    assert asked_settings(BatchSettings(folder="x", run=run), metadata, own=OWN) == expected


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(
            (name, "budget")
            for name in ("Budget", "token_budget", "budget_tokens", "max_budget", "maxBudget", "budget-usd")
        ),
        *((name, "budget") for name in ("BUDGET", "budgets", "total budget")),
        ("Policy", "policy"),
        ("votesBy", "votes_by"),
        ("objectives", "objective"),
        *((name, None) for name in ("budget", "budget_code", "team_budget_2026", "note", "attempt", "weighted")),
    ],
)
def test_a_name_that_would_have_no_effect_is_refused_and_a_note_is_not(name: str, meant: str | None) -> None:
    if meant is None:
        check_names({name: "1"})
        return
    with pytest.raises(ApiError, match=f"written `{meant}`") as caught:
        check_names({name: "1"})
    assert caught.value.param == f"metadata.{name}"


@pytest.mark.parametrize(
    ("text", "is_good"), [("2", True), ("0.001", True), ("0", False), ("nan", False), ("x", False)]
)
def test_a_weight_is_a_share(text: str, is_good: bool) -> None:
    if is_good:
        assert weight_of({"weight": text}) == float(text)
        return
    with pytest.raises(ApiError):
        weight_of({"weight": text})


@pytest.mark.parametrize("given", [[], {"budgets": "1"}, {"budget": 5.5}, {"unanswered": "yes"}])
async def test_a_batch_that_ran_alone_is_asked_again_or_exported(service: BatchService, given: Any) -> None:
    body = await service.create("", ASKED, None)
    with pytest.raises(ApiError) as caught:
        await service.retry("", body["id"], given)
    assert caught.value.status == 400
    for ask in (service.retry("", body["id"], {}), service.export("", body["id"], {})):
        with pytest.raises(ApiError) as caught:
            await ask
        assert (caught.value.status, caught.value.code) == (409, "batch_not_ended")
    with pytest.raises(ApiError) as caught:
        await service.export("", body["id"], {"format": "xlsx"})
    assert caught.value.status == 400


def test_a_server_that_counts_money_wants_a_budget_in_it() -> None:
    settings = BatchSettings(folder="x", run={"prices": {"input": 1.0, "output": 2.0}})
    assert asked_settings(settings, {"budget": "$5"}, own=OWN)["budget"] == "$5"
    for metadata in ({}, {"budget": "2M tokens"}, {"budget": "€5 and more"}):
        with pytest.raises(ApiError) as caught:
            asked_settings(settings, metadata, own=OWN)
        assert caught.value.param == "metadata.budget"
    with_budget = BatchSettings(folder="x", run={**settings.run, "budget": "$3"})
    assert asked_settings(with_budget, {}, own=OWN)["budget"] == "$3"


def test_an_operators_budget_in_money_keeps_its_rate() -> None:
    run = {"budget": "$3", "budget_rate": "$2 per 1M tokens"}
    assert asked_settings(BatchSettings(folder="x", run=run), {}, own=OWN) == {**run, "allocation": {}}


def test_a_secret_that_is_refused_is_not_shown() -> None:
    engine = {"kind": "replay", "rollouts": "x"}
    with pytest.raises(ConfigError) as caught:
        ServeConfig.parse({"engine": engine, "batches": {"folder": "x", "webhook_secret": "hunter2"}})
    assert "webhook_secret" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["run_dir", "input", "engine", "estimate", "scaling"])
def test_what_the_server_sets_is_no_setting_of_its_runs(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} of a batch's run is set by the server"):
        BatchSettings(folder="x", run={name: {}})
    with pytest.raises(ConfigError, match="max_rounds"):
        ServeConfig.parse({"batches": {"folder": "x", "run": {"allocation": {"max_rounds": "many"}}}})


SOLVED = {"scoring": {"scorer": "number"}, "allocation": {"objective": "solved", "attempts": 4}}


def test_settings_of_runs_are_checked_against_the_servers_own_engine() -> None:
    by_name = {"budget": "$5", "prices": {"mine": {"input": 1.0, "output": 2.0}}}
    model = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "mine", "temperature": 0.8}
    for run in (SOLVED, by_name):
        config = ServeConfig.parse({"engine": model, "batches": {"folder": "x", "run": run}})
        assert config.batches is not None
        assert asked_settings(config.batches, {}, own=config.run_of(config.model_name))["allocation"] == run.get(
            "allocation", {}
        )
    with pytest.raises(ConfigError, match="temperature 0 gives the same answer"):
        ServeConfig.parse({"engine": model | {"temperature": 0}, "batches": {"folder": "x", "run": SOLVED}})
    with pytest.raises(ConfigError, match="none for the model other"):
        ServeConfig.parse({"engine": model | {"model": "other"}, "batches": {"folder": "x", "run": by_name}})


def test_metadata_may_ask_again_and_all_of_it_is_checked_together() -> None:
    scored = BatchSettings(folder="x", run={"scoring": {"scorer": "number"}})
    asked = {"objective": "solved", "attempts": "4"}
    found = asked_settings(scored, asked, own=OWN)
    assert found["allocation"] == {"objective": "solved", "attempts": 4}
    once = asked_settings(BatchSettings(folder="x", run=SOLVED), {"policy": "uniform", "attempts": "1"}, own=OWN)
    assert once["allocation"] == {"objective": "solved", "attempts": 1, "policy": "uniform"}
    voted = asked_settings(BatchSettings(folder="x"), {"objective": "vote", "votes_by": "number"}, own=OWN)
    assert voted["allocation"] == {"objective": "vote", "votes_by": "number"}
    for metadata, param, said in (
        (asked | {"attempts": "many"}, "attempts", "whole number"),
        ({"attempts": "4"}, "attempts", "need an objective"),
        (asked | {"votes_by": "number"}, "votes_by", "objective is not vote"),
        ({"objective": "vote", "votes_by": "length"}, "votes_by", "number"),
    ):
        with pytest.raises(ApiError, match=said) as caught:
            asked_settings(scored, metadata, own=OWN)
        assert caught.value.param == f"metadata.{param}"
    with pytest.raises(ApiError, match=r"needs scoring\.scorer"):
        asked_settings(BatchSettings(folder="x"), asked, own=OWN)
