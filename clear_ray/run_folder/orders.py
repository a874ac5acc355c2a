"""What operators order of a run while it goes on: another budget, or its end.

An order is a file of its own in the run folder, `orders/NUMBER-NAME.json`, there before anything acts on it. So it is heeded
whatever dies, several can be given at once, and a run that is gone on with heeds those that were given before.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from clear_ray.config.run import RunConfig
from clear_ray.config.units import MOST_BUDGET_TOKENS, budget_in, unit_of_budget
from clear_ray.errors import ConfigError, ResumeError
from clear_ray.run_folder.manifest import SUMMARY, read_manifest
from clear_ray.run_folder.parquet import damaged
from clear_ray.storage import Folder

ORDERS = "orders"
Reason = Literal["batch_cancelled", "batch_expired"]
_NUMBER = re.compile(r"(\d{20})-\w+\.json\Z")
_SIGN = re.compile(r"\s*([+-])\s*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Orders:
    """What all orders of a run come to.

    Attributes:
        budget_tokens: What the run may generate in all, or spend in the unit of its budget; nothing more once it is to stop.
        stop: Why nothing more is to be granted; empty if it is.
        ordered_tokens: What the orders of budgets alone come to.
    """

    budget_tokens: int
    stop: Reason | Literal[""] = ""
    ordered_tokens: int = field(default=0, compare=False)


def order_budget(folder: Folder, budget: str) -> int:
    """Order another budget of a run.

    Args:
        folder: The run folder.
        budget: What it is to be, or with a sign what is to be added or taken away: `2M tokens`, `+200k`, `-$1`.

    Returns:
        The budget after all orders so far, in what the run counts. Below what is spent and promised no budget is cut.

    Raises:
        ConfigError: The budget cannot be read, or there is no run.
        ResumeError: The run is done.
    """
    manifest = _running(folder)
    sign, settings = _SIGN.fullmatch(budget), manifest["config"]
    prices = RunConfig.model_validate(settings).model_prices if settings.get("prices") else None
    try:
        tokens = budget_in(sign[2] if sign else budget, rate=settings.get("budget_rate"), prices=prices)
    except ValueError as error:
        remedy = "Write an amount such as 2M tokens, +200k or -50k."
        raise ConfigError(f"the budget cannot be read: {error}", "budget", budget, remedy) from None
    _write(folder, {"add": tokens if sign[1] == "+" else -tokens} if sign else {"set": tokens})
    return read_orders(folder, int(manifest["budget_tokens"])).budget_tokens


def order_stop(folder: Folder, reason: Reason) -> None:
    """Order that a run grants nothing more: what is running ends, and what was answered is kept.

    Args:
        folder: The run folder.
        reason: Code of the queries that it leaves unanswered.

    Raises:
        ConfigError: There is no run.
        ResumeError: The run is done.
    """
    _running(folder)
    _write(folder, {"stop": reason})


def read_orders(folder: Folder, budget_tokens: int) -> Orders:
    """Return what the orders come to.

    Args:
        folder: The run folder.
        budget_tokens: The budget that the run began with.

    Raises:
        ResumeError: An order is damaged.
    """
    stop: Reason | Literal[""] = ""
    for path in folder.child(ORDERS).files(".json"):
        name = path.removeprefix(f"{folder.path}/")
        try:
            order = json.loads(folder.read(name))
            budget_tokens = int(order.get("set", budget_tokens)) + int(order.get("add", 0))
            budget_tokens = min(max(budget_tokens, 0), MOST_BUDGET_TOKENS)
            stop = stop or order.get("stop", "")
        except (ValueError, TypeError, AttributeError) as error:
            raise damaged(folder, name, error) from error
    return Orders(0 if stop else budget_tokens, stop, budget_tokens)


def unit_in(folder: Folder) -> str:
    """Return what the budget of the run in a folder is counted in: `tokens` where it has no prices."""
    settings = (read_manifest(folder) or {"config": {}})["config"]
    return unit_of_budget(settings["budget"]) if settings.get("prices") else "tokens"


def _running(folder: Folder) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError(
            "there is no run in this folder", folder.path, remedy="Name the run_dir of a run that has begun."
        )
    if folder.exists(SUMMARY):
        raise ResumeError("the run is done", folder.path, remedy="Begin another run for what it left unanswered.")
    return manifest


def _write(folder: Folder, order: dict[str, Any]) -> None:
    orders = folder.child(ORDERS)
    # A clock may be set back, and two machines have two: an order comes after all that are there.
    earlier = [int(found[1]) for path in orders.files(".json") if (found := _NUMBER.search(path))]
    number = max(time.time_ns(), max(earlier, default=0) + 1)
    orders.write(f"{number:020d}-{uuid4().hex[:8]}.json", json.dumps(order | {"at": time.time()}).encode())
