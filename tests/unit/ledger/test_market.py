"""The market driven directly: an actor is an object with coroutines, so no cluster is needed to crowd it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clear_ray.errors import BudgetError, ResumeError
from clear_ray.ledger.entries import Balance, Call, Settlement
from clear_ray.ledger.journal import read_journal
from clear_ray.ledger.ledger import REFUSED, WAIT
from clear_ray.ledger.market import MarketActor
from clear_ray.storage import open_folder

PATIENCE_SECONDS = 60  # only ever reached by a deadlock


def settled(index: int, attempt: int, spent_tokens: int, **changes: Any) -> Settlement:
    fields: dict[str, Any] = {"has_ended": True, "correct": None, "label": f"q{index}"}
    return Settlement(index=index, attempt=attempt, spent_tokens=spent_tokens, **fields | changes)


def operations(run_dir: Path) -> list[tuple[str, int, int, int]]:
    return [(r["op"], r["i"], r["a"], r["t"]) for r in read_journal(open_folder(str(run_dir))) if "op" in r]


async def soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE_SECONDS)


async def turns(count: int = 20) -> None:
    """Let everything that can go on do so; file writes run in threads and get a little time too."""
    for _ in range(count):
        await asyncio.sleep(0.001)


def die(market: MarketActor) -> None:
    """Let go of the journal, as the end of the market's process does."""
    market._journal.close()


def account(balance: Balance) -> tuple[int, int, int, int]:
    return balance.budget_tokens, balance.spent_tokens, balance.reserved_tokens, balance.wasted_tokens


async def test_a_reservation_is_on_disk_before_its_caller_hears_of_it(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 3)
    assert await soon(market.reserve(1, [(0, 40), (2, 60)])) == [1, 1]
    assert operations(tmp_path) == [("reserve", 0, 1, 40), ("reserve", 2, 1, 60)]
    await soon(market.settle([settled(0, 1, 15), settled(2, 1, 60)]))
    assert operations(tmp_path)[2:] == [("settle", 0, 1, 15), ("settle", 2, 1, 60)]
    balance = await market.balance()
    assert account(balance) == (100, 75, 0, 0)
    assert balance.available_tokens == 25


@pytest.mark.parametrize("seed", range(6))
async def test_a_crowd_never_overspends_and_always_moves_on(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    budget, callers = rng.randint(50, 400), 12
    market = MarketActor(str(tmp_path), budget, callers * 4)
    running = most = 0
    outcomes: list[int] = []

    async def caller(indices: range) -> None:
        nonlocal running, most
        waiting = [(index, rng.randint(1, 90)) for index in indices]
        while waiting:
            answers = await market.reserve(1, waiting)
            assert len(answers) == len(waiting)
            assert answers[0] != WAIT
            granted = [(ask, answer) for ask, answer in zip(waiting, answers, strict=True) if answer > 0]
            outcomes.extend(answer for answer in answers if answer != WAIT)
            waiting = [ask for ask, answer in zip(waiting, answers, strict=True) if answer == WAIT]
            running += sum(tokens for (_, tokens), _ in granted)
            most = max(most, running)
            for (index, tokens), attempt in granted:
                await asyncio.sleep(rng.choice((0, 0, 0.001)))
                spent = rng.choice((0, tokens, rng.randint(0, tokens)))
                await market.settle([settled(index, attempt, spent)])
                running -= tokens
                balance = await market.balance()
                assert balance.spent_tokens + balance.reserved_tokens <= budget

    await soon(asyncio.gather(*(caller(range(4 * k, 4 * k + 4)) for k in range(callers))))
    assert most <= budget
    assert len(outcomes) == callers * 4
    spent_N, wasted_N = await market.charges()
    assert spent_N.sum() == (await market.balance()).spent_tokens <= budget
    assert not wasted_N.any()
    assert (await market.balance()).reserved_tokens == 0


async def test_what_can_never_fit_is_refused_at_once_and_what_may_fit_waits(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 4)
    assert await soon(market.reserve(1, [(0, 101), (1, 80), (2, 30), (3, 5)])) == [REFUSED, 1, WAIT, WAIT]
    waiting = asyncio.ensure_future(market.reserve(1, [(2, 30), (3, 5)]))
    await turns()
    assert not waiting.done()
    await soon(market.settle([settled(1, 1, 71)]))  # 29 are left: now 30 can never fit
    assert await soon(waiting) == [REFUSED, 1]


async def test_the_line_is_first_come_first_served(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 8)
    (attempt,) = await soon(market.reserve(1, [(0, 100)]))
    served: list[int] = []

    async def caller(index: int, tokens: int) -> None:
        assert await market.reserve(1, [(index, tokens)]) == [1]
        served.append(index)

    callers = []
    for index, tokens in ((5, 60), (1, 10), (7, 20), (2, 10)):  # the small ones would fit sooner
        callers.append(asyncio.ensure_future(caller(index, tokens)))
        await turns(2)
    assert served == []
    await soon(market.settle([settled(0, attempt, 0)]))
    await soon(asyncio.gather(*callers))
    assert served == [5, 1, 7, 2]


async def test_a_small_request_does_not_overtake_the_head_of_the_line(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 3)
    await soon(market.reserve(1, [(0, 60)]))
    head = asyncio.ensure_future(market.reserve(1, [(1, 90)]))
    await turns()
    small = asyncio.ensure_future(market.reserve(1, [(2, 5)]))
    await turns()
    assert not head.done()
    assert not small.done()
    await soon(market.settle([settled(0, 1, 5)]))
    assert await soon(head) == [1]
    assert await soon(small) == [1]


async def test_a_caller_that_died_is_charged_in_full_when_its_replacement_asks(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 3)
    await soon(market.reserve(1, [(0, 30), (1, 20)]))
    assert await soon(market.reserve(1, [(0, 30), (1, 20)])) == [2, 2]
    assert account(await market.balance()) == (100, 50, 50, 50)
    await soon(market.settle([settled(0, 1, 3)]))  # a late word of the dead caller changes nothing
    await soon(market.settle([settled(0, 2, 3), settled(1, 2, 4)]))
    spent_N, wasted_N = await market.charges()
    assert spent_N.tolist() == [33, 24, 0]
    assert wasted_N.tolist() == [30, 20, 0]


async def test_what_a_caller_had_reserved_before_it_died_is_free_for_others_as_soon_as_it_asks_again(
    tmp_path: Path,
) -> None:
    market = MarketActor(str(tmp_path), 200, 5)
    await soon(market.reserve(1, [(0, 90)], Call("a", "first", 1)))
    await soon(market.reserve(1, [(1, 30)], Call("b", "only", 1)))
    in_line = asyncio.ensure_future(market.reserve(1, [(2, 95)], Call("a", "first", 2)))
    waiting = asyncio.ensure_future(market.reserve(1, [(3, 85)], Call("b", "only", 2)))
    await turns()
    # The new life begins with other queries than those that the old one had reserved.
    again = asyncio.ensure_future(market.reserve(1, [(4, 5)], Call("a", "second", 1)))
    assert await soon(in_line) == [REFUSED], "its caller is dead"
    await soon(market.settle([settled(1, 1, 5)]))
    assert await soon(waiting) == [1]
    assert await soon(again) == [1]
    assert account(await market.balance()) == (200, 95, 90, 90)
    assert await market.void_attempts() == [(0, 1)]
    # The old process lives on where Ray cannot see it.
    await soon(market.settle([settled(4, 1, 5)]))
    assert await soon(market.reserve(1, [(4, 5), (2, 5)], Call("a", "first", 3))) == [REFUSED, REFUSED]
    die(market)
    later = MarketActor(str(tmp_path), 200, 5)
    assert await soon(later.reserve(1, [(2, 5)], Call("a", "first", 4))) == [REFUSED]
    assert await soon(later.reserve(1, [(2, 5)], Call("a", "second", 2))) == [1]
    assert await later.void_attempts() == [(0, 1)]


async def test_a_block_that_failed_leaves_nothing_reserved_and_nothing_in_the_line(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 4)
    await soon(market.reserve(1, [(0, 60)], Call("a", "life", 1)))
    await soon(market.reserve(1, [(1, 30)], Call("a", "life", 2)))
    in_line = asyncio.ensure_future(market.reserve(1, [(2, 40)], Call("a", "life", 3)))
    await turns()
    await soon(market.give_up([0, 2], "life"))
    assert await soon(in_line) == [REFUSED]
    assert account(await market.balance()) == (100, 60, 30, 60)
    await soon(market.settle([settled(1, 1, 10)]))
    assert await soon(market.reserve(1, [(2, 30)], Call("a", "life", 4))) == [1]


async def test_an_answer_without_a_token_whose_row_was_lost_does_not_count_either(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 1)
    await soon(market.reserve(1, [(0, 30)]))
    await soon(market.settle([settled(0, 1, 0)]))
    assert await soon(market.reserve(1, [(0, 30)])) == [2]
    assert await market.void_attempts() == [(0, 1)]
    assert account(await market.balance()) == (100, 0, 30, 0)


async def test_a_request_that_a_dead_market_had_not_answered_gets_the_reservation_that_it_had_made(
    tmp_path: Path,
) -> None:
    call = Call("a", "first", 1)
    before = MarketActor(str(tmp_path), 100, 2)
    assert await soon(before.reserve(1, [(0, 40), (1, 70)], call)) == [1, WAIT]
    die(before)
    market = MarketActor(str(tmp_path), 100, 2)
    assert await soon(market.reserve(1, [(0, 40), (1, 70)], call)) == [1, WAIT]
    assert account(await market.balance()) == (100, 0, 40, 0)
    # A later request of the same life for the same query is not that one.
    assert await soon(market.reserve(1, [(0, 40)], Call("a", "first", 2))) == [2]
    assert account(await market.balance()) == (100, 40, 40, 40)
    die(market)
    # Its life is remembered, too.
    last = MarketActor(str(tmp_path), 100, 2)
    assert await soon(last.reserve(1, [(1, 20)], Call("a", "second", 1))) == [1]
    assert account(await last.balance()) == (100, 80, 20, 80)
    assert await last.void_attempts() == [(0, 1), (0, 2)]


async def test_settled_work_whose_row_was_lost_is_marked_wasted_when_it_is_asked_for_again(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 2)
    await soon(market.reserve(1, [(0, 30), (1, 30)]))
    await soon(market.settle([settled(0, 1, 12)]))
    assert await soon(market.reserve(1, [(0, 30), (1, 30)])) == [2, WAIT]
    await soon(market.settle([settled(0, 2, 12)]))
    assert account(await market.balance()) == (100, 54, 0, 42)


async def test_going_on_in_a_later_round_wastes_nothing(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 1)
    await market.open_round(1, {"price": 0.1})
    await soon(market.reserve(1, [(0, 30)]))
    await soon(market.settle([settled(0, 1, 30, has_ended=False)]))
    await market.open_round(2, {"price": 0.05})
    assert await soon(market.reserve(2, [(0, 30)])) == [2]
    await soon(market.settle([settled(0, 2, 10)]))
    assert account(await market.balance()) == (100, 40, 0, 0)


async def test_a_caller_that_died_in_the_line_leaves_no_reservation_to_its_replacement(tmp_path: Path) -> None:
    """Ray does not take back the call of a caller that died: it stands in the line beside its replacement's."""
    market = MarketActor(str(tmp_path), 100, 3)
    await soon(market.reserve(1, [(0, 90)]))
    dead = asyncio.ensure_future(market.reserve(1, [(1, 50), (2, 40)]))
    await turns()
    replacement = asyncio.ensure_future(market.reserve(1, [(1, 50), (2, 40)]))
    await turns()
    await soon(market.settle([settled(0, 1, 10)]))
    assert await soon(replacement) == [1, 1]
    assert await soon(dead) == [REFUSED, REFUSED]
    assert account(await market.balance()) == (100, 10, 90, 0)


async def test_the_head_of_the_line_goes_on_when_the_tokens_it_waits_for_are_forfeited(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 3)
    await soon(market.reserve(1, [(0, 90)]))
    head = asyncio.ensure_future(market.reserve(1, [(1, 50)]))
    await turns()
    await soon(market.forfeit([(0, 1)]))
    await soon(market.forfeit([(0, 1)]))
    assert await soon(head) == [REFUSED]
    assert account(await market.balance()) == (100, 90, 0, 90)


async def test_asking_for_nothing_holds_no_caller_up(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 10, 1)
    assert await soon(market.reserve(1, [])) == []
    assert await soon(market.reserve(1, [(0, 10)])) == [1]


async def test_a_settlement_above_its_reservation_is_refused(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 1)
    await soon(market.reserve(1, [(0, 10)]))
    with pytest.raises(BudgetError, match="10 tokens are reserved"):
        await soon(market.settle([settled(0, 1, 11)]))
    assert account(await market.balance()) == (100, 0, 10, 0)


@pytest.mark.parametrize("seed", range(4))
async def test_a_restarted_market_has_the_same_balances(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    market = MarketActor(str(tmp_path), 500, 6)
    for round_number in (1, 2, 3):
        await market.open_round(round_number, {"price": 0.5 / round_number})
        for index in rng.sample(range(6), 4):
            tokens = rng.randint(1, 40)
            (attempt,) = await soon(market.reserve(round_number, [(index, tokens)]))
            fate = rng.random()
            if attempt > 0 and fate < 0.6:
                await soon(market.settle([settled(index, attempt, rng.randint(0, tokens))]))
            elif attempt > 0 and fate < 0.8:
                await soon(market.forfeit([(index, attempt)]))
        die(market)
        restarted = MarketActor(str(tmp_path), 500, 6)
        assert account(await restarted.balance()) == account(await market.balance())
        for old, new in zip(await market.charges(), await restarted.charges(), strict=True):
            np.testing.assert_array_equal(old, new)
        market = restarted
    open_tokens = (await market.balance()).reserved_tokens
    before = await market.balance()
    assert await soon(market.close_open_reservations()) == open_tokens
    assert await soon(market.close_open_reservations()) == 0
    after = await market.balance()
    assert (after.spent_tokens, after.reserved_tokens) == (before.spent_tokens + open_tokens, 0)


async def test_lost_rows_are_recognised_across_a_restart(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 2)
    await market.open_round(3, {})
    await soon(market.reserve(3, [(0, 30), (1, 30)]))
    await soon(market.settle([settled(0, 1, 12)]))
    die(market)
    market = MarketActor(str(tmp_path), 100, 2)
    assert await soon(market.reserve(3, [(0, 30), (1, 20)])) == [2, 2]
    assert account(await market.balance()) == (100, 42, 50, 42)


async def test_marking_waste_twice_is_marking_it_once(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 2)
    await soon(market.reserve(1, [(0, 30), (1, 30)]))
    await soon(market.settle([settled(0, 1, 12), settled(1, 1, 5)]))
    for _ in range(2):
        await soon(market.mark_wasted({0: 12, 1: 2}))
        assert (await market.charges())[1].tolist() == [12, 2]
    with pytest.raises(BudgetError, match="more is wasted than was spent"):
        await soon(market.mark_wasted({0: 13}))


async def test_a_loss_that_was_marked_is_not_marked_again_when_the_query_is_run_again(tmp_path: Path) -> None:
    """What a resumed driver does: the answer was settled in round 1, its row never reached the disk."""
    market = MarketActor(str(tmp_path), 100, 1)
    await market.open_round(1, {})
    await soon(market.reserve(1, [(0, 30)]))
    await soon(market.settle([settled(0, 1, 12)]))
    die(market)
    market = MarketActor(str(tmp_path), 100, 1)
    await soon(market.mark_wasted({0: 12}))
    assert await soon(market.reserve(1, [(0, 30)])) == [2]
    assert account(await market.balance()) == (100, 12, 30, 12)


async def test_whatever_arrives_during_a_write_shares_the_next_one(tmp_path: Path) -> None:
    run_dir = f"memory://market-{tmp_path.name}"  # behind a URI each write is a file, so that they can be counted
    market = MarketActor(run_dir, 1_000, 64)
    await soon(asyncio.gather(*(market.reserve(1, [(index, 3)]) for index in range(64))))
    folder = open_folder(run_dir)
    assert len(list(read_journal(folder))) == 64
    assert len(folder.child("journal").files()) <= 3
    folder.filesystem.delete_dir(folder.path)


async def test_a_full_disk_loses_no_record(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 2)
    await soon(market.reserve(1, [(0, 30)]))
    size = os.path.getsize(tmp_path / "journal.jsonl")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            await soon(market.reserve(1, [(1, 20)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    await soon(market.settle([settled(0, 1, 7)]))  # there is room again: what was not written comes first
    assert operations(tmp_path) == [("reserve", 0, 1, 30), ("reserve", 1, 1, 20), ("settle", 0, 1, 7)]
    die(market)
    assert account(await MarketActor(str(tmp_path), 100, 2).balance()) == account(await market.balance())


async def test_a_journal_of_another_budget_is_refused(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 1)
    await soon(market.reserve(1, [(0, 90)]))
    die(market)
    with pytest.raises(BudgetError, match="80 tokens are available"):
        MarketActor(str(tmp_path), 80, 1)


async def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 100, 2)
    await soon(market.reserve(1, [(0, 10)]))
    await soon(market.reserve(1, [(1, 10)]))
    file = tmp_path / "journal.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"t":10', b'"t":19', 1))
    die(market)
    with pytest.raises(ResumeError, match="damaged"):
        MarketActor(str(tmp_path), 100, 2)


async def test_the_balance_tells_a_display_what_ended(tmp_path: Path) -> None:
    market = MarketActor(str(tmp_path), 1_000, 12)
    for index in range(12):
        (attempt,) = await soon(market.reserve(1, [(index, 10)]))
        correct = None if index == 0 else float(index % 2)
        await soon(market.settle([settled(index, attempt, 5, has_ended=index != 3, correct=correct)]))
    balance = await market.balance()
    assert (balance.ended, balance.scored, balance.correct) == (11, 11, 6.0)
    assert balance.recent == tuple(f"q{index}" for index in range(4, 12))
    for correct in (0.25, 1.0):  # its answer goes on
        (attempt,) = await soon(market.reserve(2, [(4, 10)]))
        await soon(market.settle([settled(4, attempt, 5, has_ended=correct == 1.0, correct=correct)]))
    balance = await market.balance()
    assert (balance.ended, balance.scored, balance.correct) == (11, 11, 7.0)


async def test_a_round_leaves_its_facts_in_the_journal(tmp_path: Path) -> None:
    await MarketActor(str(tmp_path), 10, 1).open_round(4, {"price": 0.125, "available": 10})
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line[9:]) for line in lines] == [{"round": 4, "price": 0.125, "available": 10}]
