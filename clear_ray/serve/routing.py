"""Which engine replica gets a query: the one with the fewest outstanding tokens, not the fewest queries.

A router lives in every process that calls the engine, that is in the ingress, and counts the ceilings of the grants that
it has sent and that have not ended. It knows nothing of the grants of other ingress replicas; there is one ingress.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable
from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

from clear_ray.engine.base import Grant
from clear_ray.serve.asking import ServedQuery


class TokenCount:
    """Outstanding tokens by replica.

    A call is counted from the moment in which a replica is chosen for it (`choose`), goes over to the replica that took it
    (`send`) and ends with it (`end`).
    """

    def __init__(self) -> None:
        self._chosen: dict[Hashable, tuple[Hashable, int]] = {}
        self._sent: defaultdict[Hashable, dict[Hashable, deque[int]]] = defaultdict(dict)
        self._tokens: defaultdict[Hashable, int] = defaultdict(int)
        self._calls: defaultdict[Hashable, int] = defaultdict(int)

    def tokens(self, replica: Hashable) -> int:
        """Return the tokens outstanding on a replica."""
        return self._tokens[replica]

    def ranked(self, replicas: Iterable[Hashable]) -> list[Hashable]:
        """Return the replicas, the one with the fewest outstanding tokens first, among equals the one with fewer calls."""
        return sorted(replicas, key=lambda replica: (self._tokens[replica], self._calls[replica]))

    def choose(self, call: Hashable, replica: Hashable, tokens: int) -> bool:
        """Count a call that is on its way to a replica; told again, it has another one. Return whether it is new."""
        is_new = call not in self._chosen
        self.drop(call)
        self._chosen[call] = replica, tokens
        self._add(replica, tokens, 1)
        return is_new

    def drop(self, call: Hashable) -> None:
        """Forget a call that was chosen for and has not been sent."""
        if call in self._chosen:
            replica, tokens = self._chosen.pop(call)
            self._add(replica, -tokens, -1)

    def send(self, replica: Hashable, name: Hashable, tokens: int) -> None:
        """Count a call that a replica has got; calls may share a name, such as the choices of one query."""
        self._sent[replica].setdefault(name, deque()).append(tokens)
        self._add(replica, tokens, 1)

    def reweigh(self, replica: Hashable, name: Hashable, before: int, tokens: int) -> None:
        """Count a call that a replica has got for another number of tokens."""
        calls = self._sent[replica].get(name)
        if calls and before in calls:
            calls[calls.index(before)] = tokens
            self._add(replica, tokens - before, 0)

    def end(self, replica: Hashable, name: Hashable) -> None:
        """Forget the oldest call of a name on a replica."""
        calls = self._sent[replica].get(name)
        if not calls:
            return
        self._add(replica, -calls.popleft(), -1)
        if not calls:
            del self._sent[replica][name]

    def keep(self, replicas: Iterable[Hashable]) -> None:
        """Forget all other replicas."""
        kept = set(replicas)
        for table in (self._sent, self._tokens, self._calls):
            for replica in [replica for replica in table if replica not in kept]:
                del table[replica]
        self._chosen = {call: chosen for call, chosen in self._chosen.items() if chosen[0] in kept}

    def _add(self, replica: Hashable, tokens: int, calls: int) -> None:
        self._tokens[replica] += tokens
        self._calls[replica] += calls


def tokens_of(args: Iterable[Any]) -> int:
    """Return the tokens that a call to the engine may generate: its grant's, or the most it may buy; none for a probe."""
    bought = sum(argument.max_tokens for argument in args if isinstance(argument, Grant))
    return bought + sum(argument.weight.tokens for argument in args if isinstance(argument, ServedQuery))


class TokenRouter(FIFOMixin, RequestRouter):
    """Serve's request router over `TokenCount`.

    Serve tries the replicas in the order given here; one that has `max_ongoing_requests` already is passed over. The replica
    found goes to the call that has waited longest (`FIFOMixin`): without it, calls that share a name, as the choices of one
    query do, are taken for one another by Serve 2.60, and all but the first wait for ever.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Begin with nothing outstanding; called by Serve once."""
        del kwargs
        self._count = TokenCount()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas, one in each rank, by outstanding tokens."""
        by_id: dict[Hashable, RunningReplica] = {replica.replica_id: replica for replica in candidate_replicas}
        ranked = self._count.ranked(by_id)
        if pending_request is not None and ranked:
            self._watch(pending_request, ranked[0])
        return [[by_id[replica_id]] for replica_id in ranked]

    def _watch(self, pending: PendingRequest, first: Hashable) -> None:
        """Count a call at its first choice, until it is known where it went."""
        call, tokens = id(pending.future), tokens_of(pending.args)
        if not self._count.choose(call, first, tokens):
            return
        name = pending.metadata.internal_request_id

        weights = [argument.weight for argument in pending.args if isinstance(argument, ServedQuery)]

        def follow(future: Any) -> None:
            self._count.drop(call)
            if future.cancelled():
                return
            replica = future.result().replica_id
            self._count.send(replica, name, tokens)
            for weight in weights:
                weight.follow(lambda bought: self._count.reweigh(replica, name, tokens, bought))

        pending.future.add_done_callback(follow)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Forget a call that has ended; Serve tells it once for every call that it sent."""
        self._count.end(replica_id, internal_request_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forget replicas that are gone."""
        self._count.keep(replica.replica_id for replica in replicas)
        super().update_replicas(replicas)
