"""A server with several engines on real Ray Serve: a batch bought of all at one price, of one alone, and queries beside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pyarrow.parquet as pq
import pytest
from ray import serve

from clear_ray.ledger.entries import entry_of
from clear_ray.ledger.journal import read_journal
from clear_ray.ledger.ledger import Ledger
from clear_ray.serve.app import application
from clear_ray.storage import open_folder
from tests.conftest import ROLLOUTS
from tests.ray.batching import content, create, ended, recorded_ids, request, upload
from tests.ray.serving import ask, client_of, free_port, settings
from tests.ray.test_batches import answering, kill
from tests.ray.test_several_engines import LARGE, OUTPUT_PARTS, READ_PARTS, SMALL, attempts_of, best_of_eight

__all__ = ["best_of_eight"]  # a fixture
pytestmark = pytest.mark.slow
MANY = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("menu")


@pytest.fixture(scope="module")
def client(folder: Path, best_of_eight: str) -> Iterator[openai.OpenAI]:
    engine = {"kind": "replay", "max_batch": 16, "tokens_per_second": 400.0}
    engines = {
        "small": {**engine, "rollouts": str(ROLLOUTS / "rollouts.parquet"), "prices": SMALL},
        "large": {**engine, "rollouts": best_of_eight, "prices": LARGE},
    }
    run = {"dispatch": {"rows_per_file": 8}}
    config = settings(engines=engines, model_name="any", batches={"folder": str(folder), "run": run})
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(config), name="menu", route_prefix="/menu")
    yield client_of(port, "/menu")
    serve.delete("menu")
    serve.shutdown()


def batch_of(client: openai.OpenAI, model: str, budget: str, ids: list[str]) -> Any:
    rows = [request(name, body={"model": model}) for name in ids]
    return create(client, upload(client, rows).id, metadata={"budget": budget})


def billed(run_dir: Path, names: dict[str, str], *, wasted_tokens: int = 0) -> tuple[int, Counter[str]]:
    """Return what a run was charged, thousandths, after comparing journal and rows, and how often each engine answered.

    Args:
        run_dir: Its folder.
        names: Folders of the estimates, by the names of the engines.
        wasted_tokens: What it was charged for work that was lost.
    """
    prompts = {}
    for name, folder in names.items():
        table = pq.read_table(run_dir / folder, columns=["index", "prompt_tokens"])
        prompts[name] = dict(zip(table["index"].to_pylist(), table["prompt_tokens"].to_pylist(), strict=True))
    rows, taken = attempts_of(str(run_dir)), 0
    for row in rows:
        name = row["engine"] or next(iter(names))
        read = prompts[name][row["index"]] + row["answer_tokens"] - row["attempt_tokens"]
        taken += READ_PARTS[name] * read + OUTPUT_PARTS[name] * row["attempt_tokens"]
    manifest = json.loads((run_dir / "manifest.json").read_text())
    ledger = Ledger(manifest["budget_tokens"], manifest["input"]["rows"], cost_N=max(OUTPUT_PARTS.values()) / 1_000)
    for record in read_journal(open_folder(str(run_dir))):
        if "op" in record:
            ledger.apply(entry_of(record))
    ledger.check()
    assert ledger.reserved_tokens == 0
    assert ledger.spent_tokens <= manifest["budget_tokens"]
    spent = int(ledger.spent_parts_N.sum())
    assert spent == taken if wasted_tokens == 0 else spent > taken
    return spent, Counter(row["engine"] or "" for row in rows)


def test_a_batch_is_bought_of_all_engines_and_one_of_a_single_one(client: openai.OpenAI, folder: Path) -> None:
    ids = recorded_ids()[:MANY]
    assert [model.id for model in client.models.list()] == ["small", "large", "any"]
    made = {"any": batch_of(client, "any", "$0.01", ids), "large": batch_of(client, "large", "$0.002", ids[:20])}
    row = {"question": "?", "query_id": ids[0]}
    assert {ask(client, row, model=model).model for model in ("small", "large")} == {"small", "large"}
    with pytest.raises(openai.NotFoundError, match="small, large"):
        ask(client, row, model="any")
    both = ended(client, made["any"].id)
    assert (both.status, both.model) == ("completed", "any"), both
    rows = content(client, both.output_file_id)
    answered = Counter(row["response"]["body"]["model"] for row in rows)
    assert set(answered) == {"small", "large"}, "each engine gave some of the answers"
    assert len(rows) + len(content(client, both.error_file_id)) == MANY
    spent, calls = billed(folder / "runs" / both.id, {"small": "estimates", "large": "estimates-1"})
    assert set(calls) == {"small", "large"}
    account = both.model_extra["clear_ray"]
    assert (account["unit"], account["budget_tokens"]) == ("USD", 10_000_000)
    assert account["spent_tokens"] == -(-spent // 1_000)
    alone = ended(client, made["large"].id)
    assert (alone.status, alone.model) == ("completed", "large"), alone
    assert {row["response"]["body"]["model"] for row in content(client, alone.output_file_id)} == {"large"}
    billed(folder / "runs" / alone.id, {"large": "estimates"})


def test_what_names_two_models_or_no_money_is_refused(client: openai.OpenAI) -> None:
    ids = recorded_ids()[:2]
    mixed = upload(
        client, [request(name, body={"model": model}) for name, model in zip(ids, ("small", "any"), strict=True)]
    )
    batch = ended(client, create(client, mixed.id, metadata={"budget": "$1"}).id)
    assert [(error.code, error.line) for error in batch.errors.data] == [("mismatched_model", 2)]
    with pytest.raises(openai.BadRequestError, match="name a budget, such as"):
        create(client, mixed.id)
    with pytest.raises(openai.BadRequestError, match="budget"):
        create(client, mixed.id, metadata={"budget": "2M tokens"})


@pytest.mark.parametrize("victim", ["driver", "engine-1"])
def test_what_dies_while_a_batch_is_bought_of_all_engines_loses_no_row(
    client: openai.OpenAI, folder: Path, victim: str
) -> None:
    ids = recorded_ids()
    made = batch_of(client, "any", "$1", ids)
    answering(client, made.id)
    kill(f"clear_ray batch {made.id}" if victim == "driver" else f"menu#{victim}#", is_for_good=victim == "driver")
    batch = ended(client, made.id)
    assert batch.status == "completed", batch
    assert len(content(client, batch.output_file_id)) == len(ids)
    wasted = batch.model_extra["clear_ray"]["wasted_tokens"]
    billed(folder / "runs" / batch.id, {"small": "estimates", "large": "estimates-1"}, wasted_tokens=wasted)
