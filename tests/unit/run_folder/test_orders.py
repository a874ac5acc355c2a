"""Orders of a running run: another budget, or its end, by files that stay."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clear_ray.batch.orders import heeding_orders
from clear_ray.cli import app
from clear_ray.config.run import RunConfig
from clear_ray.errors import ConfigError, ResumeError
from clear_ray.ledger.entries import Settlement
from clear_ray.ledger.journal import read_journal
from clear_ray.ledger.ledger import REFUSED
from clear_ray.ledger.market import MarketActor
from clear_ray.run_folder.manifest import MANIFEST, SUMMARY
from clear_ray.run_folder.orders import Orders, order_budget, order_stop, read_orders, unit_in
from clear_ray.run_folder.status import read_progress
from clear_ray.storage import Folder, open_folder
from tests.unit.report.samples import run_report

BEGAN_WITH = 1_000


def begun(path: Path, **config: Any) -> Folder:
    folder = open_folder(str(path))
    manifest = {"config": config, "input": {"rows": 4}, "budget_tokens": BEGAN_WITH}
    folder.write(MANIFEST, json.dumps(manifest).encode())
    return folder


@pytest.mark.parametrize("where", ["local", "memory"])
def test_budgets_add_up_in_the_order_in_which_they_were_given(tmp_path: Path, where: str) -> None:
    folder = begun(tmp_path)
    if where == "memory":
        folder = open_folder(f"memory://orders-{tmp_path.name}")
        folder.write(MANIFEST, (tmp_path / MANIFEST).read_bytes())
    assert read_orders(folder, BEGAN_WITH) == Orders(BEGAN_WITH)
    assert order_budget(folder, "+200k") == 201_000
    assert order_budget(folder, " - 1k tokens") == 200_000
    assert order_budget(folder, "5k") == 5_000
    assert order_budget(folder, "-6k") == 0
    assert order_budget(folder, "+7") == 7
    assert read_orders(folder, BEGAN_WITH) == Orders(7)
    order_stop(folder, "batch_cancelled")
    order_budget(folder, "2M tokens")
    assert read_orders(folder, BEGAN_WITH) == Orders(0, "batch_cancelled")
    assert read_orders(folder, BEGAN_WITH).ordered_tokens == 2_000_000


def test_an_order_comes_after_those_that_are_there_whatever_the_clock_says(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    of_another_clock = f"{time.time_ns() + 3_600 * 10**9:020d}-0badc10c.json"
    folder.child("orders").write(of_another_clock, json.dumps({"set": 9_000}).encode())
    assert order_budget(folder, "5k") == 5_000
    assert order_budget(folder, "+1k") == 6_000


def test_money_is_added_at_the_rate_of_the_run(tmp_path: Path) -> None:
    folder = begun(tmp_path, budget_rate="$2 per 1M tokens")
    assert order_budget(folder, "+$1") == BEGAN_WITH + 500_000
    assert order_budget(folder, "+1k") == BEGAN_WITH + 501_000, "tokens need no rate"
    with pytest.raises(ConfigError, match="budget cannot be read"):
        order_budget(folder, "+€1")


def test_a_run_with_prices_takes_orders_in_its_money(tmp_path: Path) -> None:
    prices = {"input": 1.0, "output": 2.0}
    config = RunConfig.parse({"run_dir": str(tmp_path), "budget": "$5", "prices": prices})
    folder = begun(tmp_path, **json.loads(config.model_dump_json()))
    assert order_budget(folder, "$2.50") == 2_500_000_000
    assert order_budget(folder, "-$1") == 1_500_000_000
    assert unit_in(folder) == "USD"
    with pytest.raises(ConfigError, match="budget cannot be read"):
        order_budget(folder, "+200k")
    shown = CliRunner().invoke(app, ["budget", folder.path, "+$0.25"])
    assert "$1.75" in shown.stdout


@pytest.mark.parametrize("budget", ["", "lots", "+", "++2", "0", "1.5 tokens", "+-2k"])
def test_what_is_no_budget_is_refused_and_leaves_nothing(tmp_path: Path, budget: str) -> None:
    folder = begun(tmp_path)
    with pytest.raises(ConfigError, match="budget cannot be read"):
        order_budget(folder, budget)
    assert read_orders(folder, BEGAN_WITH) == Orders(BEGAN_WITH)


def test_only_a_run_that_goes_on_takes_orders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run in this folder"):
        order_budget(open_folder(str(tmp_path / "none")), "+1")
    folder = begun(tmp_path)
    folder.write(SUMMARY, b"{}")
    for order in (lambda: order_budget(folder, "+1"), lambda: order_stop(folder, "batch_cancelled")):
        with pytest.raises(ResumeError, match="the run is done"):
            order()


def test_orders_given_at_once_are_all_heeded(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: order_budget(folder, "+10"), range(40)))
    assert read_orders(folder, BEGAN_WITH) == Orders(BEGAN_WITH + 400)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"add": "x"}', b"3"])
def test_a_damaged_order_is_named(tmp_path: Path, content: bytes) -> None:
    folder = begun(tmp_path)
    order_budget(folder, "+1")
    (path,) = folder.child("orders").files()
    Path(path).write_bytes(content)
    with pytest.raises(ResumeError, match=r"orders/.*damaged"):
        read_orders(folder, BEGAN_WITH)


class WaitedFor:
    """A market whose coroutines are run to their end, as a driver's client does."""

    def __init__(self, market: MarketActor, loop: asyncio.AbstractEventLoop) -> None:
        self._market, self._loop = market, loop
        self.told: list[int] = []

    def change_budget(self, budget_tokens: int) -> None:
        self.told.append(budget_tokens)
        asyncio.run_coroutine_threadsafe(self._market.change_budget(budget_tokens), self._loop).result(10)


@contextmanager
def market_in(folder: Folder) -> Iterator[MarketActor]:
    market = MarketActor(folder.path, BEGAN_WITH, 4)
    try:
        yield market
    finally:
        market._journal.close()


def spent(index: int, tokens: int) -> Settlement:
    return Settlement(index=index, attempt=1, spent_tokens=tokens, has_ended=True, correct=None, label="")


async def test_a_running_market_has_the_ordered_budget_and_a_new_one_finds_it(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    order_budget(folder, "+100")  # before the driver was there
    with market_in(folder) as market:
        client: Any = WaitedFor(market, asyncio.get_running_loop())
        heeding = heeding_orders(folder, BEGAN_WITH, client)
        await asyncio.to_thread(heeding.__enter__)
        assert (await market.balance()).available_tokens == 1_100
        assert await market.reserve(1, [(0, 400), (1, 300)]) == [1, 1]
        order_budget(folder, "500")
        while (await market.balance()).budget_tokens != 700:  # no lower than what is reserved
            await asyncio.sleep(0.05)
        assert await market.reserve(1, [(2, 701)]) == [REFUSED]
        await market.settle([spent(0, 150)])
        balance = await market.balance()
        assert (balance.budget_tokens, balance.available_tokens) == (500, 50)
        order_budget(folder, "+1k")
        while (await market.balance()).available_tokens != 1_050:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(heeding.__exit__, None, None, None)
        assert client.told == [1_100, 500, 1_500]
    with market_in(folder) as again:
        balance = await again.balance()
        assert (balance.budget_tokens, balance.reserved_tokens, balance.spent_tokens) == (1_500, 300, 150)
    kept = [record["budget"] for record in read_journal(folder) if "budget" in record]
    assert kept == [1_100, 700, 500, 1_500]
    assert read_progress(folder)["budget_tokens"] == 1_500


async def test_a_cut_that_waits_for_refunds_goes_on_after_a_restart(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with market_in(folder) as market:
        assert await market.reserve(1, [(0, 600), (1, 300)]) == [1, 1]
        await market.change_budget(0)
        assert (await market.balance()).available_tokens == 0
    with market_in(folder) as again:
        await again.settle([spent(0, 10), spent(1, 20)])
        balance = await again.balance()
        assert (balance.budget_tokens, balance.available_tokens) == (30, 0)


def test_watching_ends_with_the_run(tmp_path: Path) -> None:
    folder = begun(tmp_path)

    def finish() -> None:
        time.sleep(0.5)
        order_budget(folder, "+1")
        time.sleep(0.5)
        folder.write(SUMMARY, run_report().model_dump_json().encode())

    finishing = threading.Thread(target=finish)
    finishing.start()
    shown = CliRunner().invoke(app, ["watch", folder.path, "--json", "--every", "0.1"])
    finishing.join()
    assert shown.exit_code == 0, shown.output
    events = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [event["event"] for event in events] == ["progress", "summary"]
    assert events[0]["budget_tokens"] == BEGAN_WITH, "an order is heeded by the run"


def test_a_cancelled_run_is_told_so_by_its_command(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    shown = CliRunner().invoke(app, ["cancel", folder.path, "--json"])
    assert shown.exit_code == 0, shown.output
    assert read_orders(folder, BEGAN_WITH).stop == "batch_cancelled"
