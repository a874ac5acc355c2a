"""Has a running batch heed its orders: a thread on the driver that looks for them and tells the market."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from clear_ray.ledger.client import MarketClient
from clear_ray.run_folder.orders import read_orders
from clear_ray.storage import Folder

_LOOK_SECONDS, _LOOK_SECONDS_FAR = 0.5, 5.0


@contextmanager
def heeding_orders(folder: Folder, budget_tokens: int, market: MarketClient) -> Iterator[None]:
    """Tell the market of every budget that is ordered, those of before first.

    Args:
        folder: The run folder.
        budget_tokens: The budget that the run began with.
        market: Its market.
    """
    told = budget_tokens

    def look() -> None:
        nonlocal told
        wanted = read_orders(folder, budget_tokens).budget_tokens
        if wanted != told:
            market.change_budget(wanted)
            told = wanted

    def keep_looking() -> None:
        while not is_over.wait(_LOOK_SECONDS if folder.is_local else _LOOK_SECONDS_FAR):
            with suppress(Exception):  # the run itself meets whatever is wrong
                look()

    look()
    is_over = threading.Event()
    thread = threading.Thread(target=keep_looking, daemon=True, name="clear_ray orders")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
