"""The market as an actor of the cluster: one for a run folder, on the driver's node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ActorAlreadyExistsError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clear_ray.cluster.engines import CALLS_IN_FLIGHT, cause_of
from clear_ray.cluster.pieces import cost_pieces, costs_in
from clear_ray.ledger.client import MarketClient
from clear_ray.ledger.identity import check_journal
from clear_ray.ledger.journal import read_journal
from clear_ray.ledger.lock import once_free
from clear_ray.ledger.market import MarketActor
from clear_ray.storage import open_folder

_ANSWER_SECONDS = 5.0

NAMESPACE = "clear_ray"  # of all drivers: each has its own otherwise


class BatchMarketActor(MarketActor):
    """A `MarketActor` whose costs come in pieces.

    Args:
        run_dir: See `MarketActor`.
        budget_tokens: See `MarketActor`.
        queries: See `MarketActor`.
        run_id: See `MarketActor`.
        pieces: What `cost_pieces` made of the costs.
    """

    def __init__(self, run_dir: str, budget_tokens: int, queries: int, run_id: str, *pieces: bytes) -> None:
        super().__init__(run_dir, budget_tokens, queries, costs_in(pieces), run_id)


@contextmanager
def opened_market(
    run_dir: str, budget_tokens: int, cost_N: NDArray[np.float64], *, run_id: str
) -> Iterator[MarketClient]:
    """Start the market on this node, where a local run folder is, and end it afterwards.

    It has the folder's name, of which a cluster has one: object stores know no locks. One that still lives under that name
    for a run whose folder was deleted is ended: it could only spoil the run that was begun in its place.

    Args:
        run_dir: The run folder.
        budget_tokens: What the run may generate, in tokens of cost 1.
        cost_N: What a token of each query takes from the budget, shape (N,).
        run_id: Identity of the run; `identity.begin` made it.

    Raises:
        ResumeError: The run's journal is damaged, gone or another run's, or another run is writing it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    folder = open_folder(run_dir)
    options = {
        "name": f"clear_ray market of {folder.identity}",
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": CALLS_IN_FLIGHT,
        "scheduling_strategy": here,
    }
    remote: Any = ray.remote(BatchMarketActor).options(**options).remote

    def start() -> Any:
        try:
            return remote(run_dir, budget_tokens, len(cost_N), run_id, *cost_pieces(cost_N))
        except ActorAlreadyExistsError:
            _end_if_out_of_place(str(options["name"]))
            raise

    actor: Any = once_free(start, ActorAlreadyExistsError, folder)
    market = MarketClient(actor, ray.get)
    try:
        try:
            market.balance()
        except Exception as error:
            check_journal(folder, run_id)  # a constructor's own error does not come back: it is told here
            for _ in read_journal(folder):
                pass
            raise cause_of(error) from error
        yield market
    finally:
        ray.kill(actor)


def _end_if_out_of_place(name: str) -> None:
    """End a market whose run folder is gone; one that does not say so is left alone, and its name stays taken."""
    with suppress(Exception):
        other: Any = ray.get_actor(name, namespace=NAMESPACE)
        if not MarketClient(other, ray.get, _ANSWER_SECONDS).is_in_place():
            ray.kill(other)
