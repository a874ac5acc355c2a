"""The queue before the price, on the real event loop and a clock that the tests turn."""

from __future__ import annotations

import asyncio

import numpy as np

from clear_ray.serve.law import Ask, Curve
from clear_ray.serve.sale_queue import Sale, SaleQueue
from clear_ray.serve.settings import PriceSettings
from tests.unit.serve.test_price import curve

GRID_K = np.array([10, 20, 40], np.int64)
SURE = Curve(GRID_K, np.array([0.0, 0.9, 0.9], np.float32), np.array([1.0, 0.0, 0.0], np.float32))
LONG = Curve(GRID_K * 10, np.array([0.0, 0.9, 0.9], np.float32), np.array([1.0, 0.0, 0.0], np.float32))
HOPELESS = Curve(GRID_K, np.zeros(3, np.float32), np.ones(3, np.float32))
HOPELESS_ASK = Ask(HOPELESS, 40)


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def queue_of(clock: Clock, **changes: object) -> SaleQueue:
    base: dict[str, object] = {"budget_tokens_per_second": 10, "carry_over_tokens": 40, "clearing_seconds": 1.0}
    return SaleQueue(PriceSettings.model_validate(base | {"window_seconds": 5.0} | changes), clock=clock)


async def bought(queue: SaleQueue, clock: Clock, *buyers: asyncio.Task[Sale]) -> list[Sale]:
    """Let seconds pass until everyone has bought."""
    for _ in range(120):
        clock.now += 1.0
        queue.serve_queue()
        await started(*buyers)
        if all(buyer.done() for buyer in buyers):
            break
    return [buyer.result() for buyer in buyers]


async def started(*coroutines: asyncio.Task[Sale]) -> None:
    del coroutines
    for _ in range(3):
        await asyncio.sleep(0)


async def test_waiting_queries_are_served_in_the_order_they_came() -> None:
    clock = Clock()
    queue = queue_of(clock)
    first = asyncio.create_task(queue.buy(Ask(SURE, 40)))  # price 0: it wants its whole ceiling
    await started(first)
    small = asyncio.create_task(queue.buy(Ask(SURE, 10)))
    await started(small)
    assert queue.waiting == 2
    clock.now += 1.0  # ten tokens: enough for the small one, but it is not its turn
    queue.serve_queue()
    await started(small)
    assert not small.done()
    sales = await bought(queue, clock, first, small)
    assert all(sale.outcome == "granted" and sale.hold for sale in sales)
    assert 0.0 < sales[0].waited_seconds <= sales[1].waited_seconds


async def test_the_deadline_ends_the_wait() -> None:
    queue = queue_of(Clock(), deadline_seconds=0.02)
    sale = await queue.buy(Ask(SURE, 40))
    assert (sale.outcome, sale.reason, sale.hold) == ("refused", "deadline", None)
    assert sale.retry_after_seconds >= 1
    assert queue.waiting == 0


async def test_a_full_queue_refuses() -> None:
    queue = queue_of(Clock(), max_waiting=0)
    assert (await queue.buy(Ask(SURE, 40))).reason == "queue_full"


async def test_the_queue_has_as_many_places_as_it_says() -> None:
    queue = queue_of(Clock(), max_waiting=2)
    waiting = [asyncio.create_task(queue.buy(Ask(SURE, 40))) for _ in range(2)]
    await started(*waiting)
    assert queue.waiting == 2
    refused = await queue.buy(Ask(SURE, 40))
    assert (refused.reason, refused.hold) == ("queue_full", None)
    assert refused.retry_after_seconds >= 1
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    third = asyncio.create_task(queue.buy(Ask(SURE, 40)))
    await started(third)
    assert queue.waiting == 2
    for buyer in (waiting[1], third):
        buyer.cancel()


async def test_a_query_that_can_pay_the_price_hardly_waits_for_tokens() -> None:
    """Eight queries a second want three times the budget and never give up: most wait for a price, few for tokens."""
    budget, carry_over = 400, 8_000
    clock, rng = Clock(), np.random.default_rng(0)
    law = {"budget_tokens_per_second": budget, "carry_over_tokens": carry_over, "deadline_seconds": 10_000}
    queue = SaleQueue(PriceSettings.model_validate(law | {"max_waiting": 10_000}), clock=clock)
    begun, buyers, stock = clock.now, list[asyncio.Task[Sale]](), list[int]()
    while clock.now < begun + 100:
        clock.now += rng.exponential(1 / 8)
        queue.serve_queue()
        buyers.append(asyncio.create_task(queue.buy(Ask(curve(rng), 400, int(rng.integers(1 << 62))))))
        await started()
        stock.append(queue.account().available_tokens)
    sales = [buyer.result() for buyer in buyers if buyer.done()]
    for buyer in buyers:
        buyer.cancel()
    await asyncio.gather(*buyers, return_exceptions=True)
    waited = np.array([sale.waited_seconds for sale in sales[len(sales) // 3 :]])
    assert np.median(waited) == 0.0
    assert np.quantile(waited, 0.9) < 2.0  # one clearing
    assert np.mean(stock[len(stock) // 3 :]) > carry_over / 8  # what is promised at once never empties the account
    assert sum(sale.tokens for sale in sales) > 0.8 * budget * 100


async def test_a_query_that_leaves_the_queue_is_sold_nothing() -> None:
    clock = Clock()
    queue = queue_of(clock)
    waiting = asyncio.create_task(queue.buy(Ask(SURE, 40)))
    await started(waiting)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    clock.now += 30.0
    assert queue.waiting == 0
    assert queue.account().reserved_tokens == 0


async def scarce(policy: str) -> tuple[SaleQueue, Clock]:
    """Return a sale queue whose price is above what a hopeless query would pay, with tokens at hand."""
    clock = Clock()
    queue = queue_of(clock, without_surplus=policy, direct_answer_tokens=3, carry_over_tokens=4_000)
    buyers = [asyncio.create_task(queue.buy(Ask(SURE, 40, number))) for number in range(60)]
    for _ in range(4):
        await started(*buyers)
        clock.now += 1.0
        queue.account()
    for buyer in buyers:
        buyer.cancel()
    await asyncio.gather(*buyers, return_exceptions=True)
    assert queue.account().price > 0
    return queue, clock


async def test_a_query_without_surplus_gets_what_is_configured() -> None:
    queue, _ = await scarce("reject")
    assert (await queue.buy(Ask(HOPELESS, 40))).reason == "no_surplus"
    queue, _ = await scarce("answer")
    sale = await queue.buy(Ask(HOPELESS, 40))
    assert (sale.outcome, sale.tokens) == ("direct", 3)
    assert (await queue.buy(Ask(HOPELESS, 2))).tokens == 2
    queue, clock = await scarce("queue")
    waiting = asyncio.create_task(queue.buy(Ask(HOPELESS, 40)))
    await started(waiting)
    assert queue.waiting == 1
    (sale,) = await bought(queue, clock, waiting)  # no other query comes, so the price falls to 0
    assert sale.outcome == "granted"
    assert sale.price == 0.0


async def test_new_settings_serve_waiting_queries() -> None:
    clock = Clock()
    queue = queue_of(clock, budget_tokens_per_second=1)
    waiting = asyncio.create_task(queue.buy(Ask(SURE, 40)))
    await started(waiting)
    queue.change(PriceSettings(budget_tokens_per_second=1_000, carry_over_tokens=40, clearing_seconds=1.0))
    clock.now += 0.5
    queue.change(PriceSettings(budget_tokens_per_second=1_000, carry_over_tokens=40, clearing_seconds=1.0))
    assert (await asyncio.wait_for(waiting, 5)).outcome == "granted"


async def test_those_sent_away_at_once_are_told_to_come_back_one_after_another() -> None:
    """Twelve are refused in the same moment; a burst that is told one second meets again in that second."""
    clock = Clock()
    queue = queue_of(clock, without_surplus="reject")
    asks = [Ask(SURE, 40, tie_break=7 * number) for number in range(12)]
    told = [(await queue.buy(ask)).retry_after_seconds for ask in asks]
    assert told == sorted(told)
    assert len(set(told)) >= 10
    assert told[0] >= 1
    # Each comes when the tokens of those before it have come in: 12 grants of 40 tokens at 10 a second, and a fourth more.
    assert 12 * 4 - 1 <= told[-1] <= 60
    clock.now += 200.0  # all have had their turn
    queue.account()
    assert (await queue.buy(HOPELESS_ASK)).retry_after_seconds <= 4


async def test_equal_refusals_differ_by_jitter() -> None:
    told = set()
    for tie_break in range(0, 997, 50):
        queue = queue_of(Clock(), without_surplus="reject", carry_over_tokens=400)
        told.add((await queue.buy(Ask(LONG, 400, tie_break=tie_break))).retry_after_seconds)
    assert len(told) > 3


async def test_a_queue_that_stops_keeps_the_places_in_it() -> None:
    clock = Clock()
    queue = queue_of(clock)
    waiting = asyncio.create_task(queue.buy(Ask(SURE, 20)))
    await started(waiting)
    queue.stop_selling()
    late = await queue.buy(Ask(SURE, 20))
    assert (late.outcome, late.reason, late.hold) == ("refused", "stopping", None)
    assert late.retry_after_seconds >= 1
    (sale,) = await bought(queue, clock, waiting)
    assert sale.outcome == "granted"


async def test_one_that_comes_again_takes_its_old_place() -> None:
    clock = Clock()
    queue = queue_of(clock, deadline_seconds=0.01, max_waiting=1)
    first = await queue.buy(Ask(SURE, 40, ticket="first"))
    assert first.reason == "deadline"
    clock.now += 1.0
    queue = patient(queue)
    later = asyncio.create_task(queue.buy(Ask(SURE, 40, ticket="later")))
    await started(later)
    # Though the queue is full, and another came meanwhile.
    assert (await queue.buy(Ask(SURE, 40, ticket="other"))).reason == "queue_full"
    again = asyncio.create_task(queue.buy(Ask(SURE, 40, ticket="first")))
    await started(again)
    order = list[str]()
    for name, buyer in (("later", later), ("first", again)):
        buyer.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
    await bought(queue, clock, later, again)
    assert order == ["first", "later"]


def patient(queue: SaleQueue) -> SaleQueue:
    """Let a queue keep those that wait from now on."""
    base: dict[str, object] = {"budget_tokens_per_second": 10, "carry_over_tokens": 40, "clearing_seconds": 1.0}
    queue.change(PriceSettings.model_validate(base | {"window_seconds": 5.0, "max_waiting": 1}))
    return queue
