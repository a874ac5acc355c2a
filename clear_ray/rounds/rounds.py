"""The law of a run: when the price is cleared, of which queries, with how many tokens, and when it is over.

    while (granted := rounds.next(unspent_tokens)) is not None:     budget less what was spent
        ... run the grants ...                                      or not yet: ask again first
        rounds.take(granted.number, attempts)

`run`, a resume, the replay of recorded rollouts and the simulation of faults drive this one object. It has no clock, no
files and no cluster; what it is told and answers is all that a round depends on.

**A clearing** shares what is available: what is not spent and not promised to grants that are still running. It goes to
queries that are free: open, and without a running grant. The first clearing takes place if one token is available. A
further one takes place if there were fewer than `max_rounds`, if `smallest_grant_tokens` are available beside what is
owed, and if no round came to nothing since.

**Beside running grants** the law may be asked too (`pace` says when that pays). Offers that can price what is running
(`beside`) grant something of what is not owed then, and to a query that is owed tokens no fewer than those; others wait. If
`max_rounds` is not given, such clearings do not count.

**Owed** is the minimum service of every free query of which no grant was ever run. A clearing may grant it and more, or keep
it back; it sells it to no other query.

**The last round** pays out what is owed, once a clearing does not take place or grants nothing, and nothing is running.

**While prompts are being read** (`widening`) the queries known so far are offered, and `next` is told what is unspent of
their part of the budget. Clearings do not count then, and the end is not reached.

**The end** is when `next` returns None and nothing is running: nothing is left that could be bought.

**Attempts.** Where a query may be asked again, a grant goes on with its current attempt or begins a fresh one
(`history.AttemptRule`); the query stays open until the rule closes it.

Invariants: no query holds two running grants, or begins more attempts than it may; what is promised to grants priced at their
ceilings is never more than what is not spent; told the same in the same order, it answers the same, which is what a resume
does with what its folder holds.

Shapes: N queries of the batch, M of them granted in a round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.allocation import AllocationConfig
from clear_ray.errors import BudgetError
from clear_ray.records import COST_PARTS
from clear_ray.report.summary import RoundReport
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.batch import taken_tokens
from clear_ray.rounds.beside import RunningGrants
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.minimum_service import owed_tokens
from clear_ray.rounds.offers import Offers, OverlappingOffers
from clear_ray.rounds.running import DEFECT, Round, RunningRound
from clear_ray.rounds.states import QueryStates


class Rounds:
    """All rounds of one batch.

    Args:
        offers: What queries are offered, and what is believed of them.
        settings: When rounds end, and whether there is a minimum service.
        failed: Queries that failed before the first round.
        calls: What calls take, where prompts are paid for; of several models, those of the cheapest.
        rule: What ends a query; its first answer if not given.
        most_alone: Most clearings beside which nothing runs, where `max_rounds` is not given; else as the settings have it.

    Attributes:
        states: Where every query stands.
        number: Number of the last round; 0 before the first.
        known_queries: How many queries are offered, while further ones will be; None if all are.
    """

    def __init__(
        self,
        offers: Offers,
        settings: AllocationConfig,
        *,
        failed: Collection[int] = (),
        calls: CallCosts | None = None,
        rule: AttemptRule | None = None,
        most_alone: int | None = None,
    ) -> None:
        self._most_alone = settings.most_rounds if most_alone is None else most_alone
        self.states = QueryStates(offers.cost_N, failed=failed, rule=rule)
        self.number = 0
        self.known_queries: int | None = None
        self._offers, self._settings, self._calls = offers, settings, calls
        self._running_tokens_N = np.zeros(len(offers.cost_N), np.int64)
        self._running_round_N = np.zeros(len(offers.cost_N), np.int32)
        self._promised_parts_N = np.zeros(len(offers.cost_N), np.int64)
        self._alone = 0
        self._running: dict[int, RunningRound] = {}
        self._came_to_nothing = False
        self._has_served = False

    @property
    def offers(self) -> Offers:
        """What queries are offered, and what is believed of them."""
        return self._offers

    @property
    def running(self) -> tuple[int, ...]:
        """Numbers of the rounds that were not taken yet."""
        return tuple(self._running)

    @property
    def promised_tokens(self) -> int:
        """What running grants may spend, in tokens of cost 1 or in the budget's unit, rounded up."""
        return -(-int(self._promised_parts_N.sum()) // COST_PARTS)

    def widen(self, known_queries: int | None, *, failed: Collection[int] = ()) -> None:
        """Note that the offers have grown.

        Args:
            known_queries: How many queries are offered by now, if there will be more; None if these are all.
            failed: Those that have become known and cannot be read.
        """
        self.states.fail(failed)
        self.known_queries = known_queries
        self._came_to_nothing = False

    def may_clear(self, unspent_tokens: int) -> bool:
        """Return whether `next` would clear the price. Changes nothing."""
        return self._may_clear(unspent_tokens - self.promised_tokens, self._owed_tokens_N())

    def next(self, unspent_tokens: int, progress_tokens_N: NDArray[np.int64] | None = None) -> Round | None:
        """Grant what is available.

        Args:
            unspent_tokens: The budget less what was spent, in tokens of cost 1; what is promised is taken off here.
            progress_tokens_N: What running grants have generated so far, as far as it is known; nothing if not given.

        Returns:
            The next round, whose grants are running from now on; None if there is nothing to grant, for good if no round
            is running and all queries are known.

        Raises:
            BudgetError: The offers grant what they may not; a defect.
        """
        if self._has_served:
            return None
        available_tokens, owed_tokens_N = unspent_tokens - self.promised_tokens, self._owed_tokens_N()
        clearing = nothing_to_grant(len(owed_tokens_N))
        if self._may_clear(available_tokens, owed_tokens_N):
            clearing = self._clear(available_tokens, owed_tokens_N, progress_tokens_N)
        if not len(clearing.index_M) and not self._running and owed_tokens_N.any():
            refused_at = float(self.states.price_N[owed_tokens_N > 0].max())
            clearing = self._offers.serve(owed_tokens_N, available_tokens=available_tokens, shadow_price=refused_at)
        if not len(clearing.index_M):
            return None
        is_beside, known = bool(self._running), self.known_queries
        return self._begin(Round(self.number + 1, available_tokens, clearing, is_beside=is_beside, known_queries=known))

    def _clear(
        self,
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
        progress_tokens_N: NDArray[np.int64] | None,
    ) -> Clearing:
        if not self._running:
            return self._offers.clear(
                self.states,
                is_free_N=self._is_free_N,
                available_tokens=available_tokens,
                owed_tokens_N=owed_tokens_N,
            )
        if not isinstance(self._offers, OverlappingOffers):
            return nothing_to_grant(len(owed_tokens_N))
        index_M = np.flatnonzero(self._running_tokens_N)
        tokens_M = self._running_tokens_N[index_M]
        progress_M = np.zeros_like(tokens_M) if progress_tokens_N is None else progress_tokens_N[index_M]
        clearing = self._offers.clear_beside(
            self.states,
            is_free_N=self._is_free_N,
            running=RunningGrants(index_M, tokens_M, np.clip(progress_M, 0, tokens_M)),
            available_tokens=available_tokens - self._taken(owed_tokens_N),
        )
        return clearing.some(np.flatnonzero(clearing.tokens_M >= owed_tokens_N[clearing.index_M]))

    def replay(self, kept: Round) -> Round:
        """Have a round run again that was granted before a restart; rounds come in their order.

        What was noted of earlier rounds comes first: a query that is granted again here and has no attempt there has lost it.

        Raises:
            BudgetError: It is not the next one, or grants what is running.
        """
        if kept.number != self.number + 1:
            raise BudgetError(f"round {self.number + 1} is the next one", "rounds", str(kept.number), DEFECT)
        lost = kept.clearing.index_M[self._running_tokens_N[kept.clearing.index_M] > 0]
        self._release(lost)
        return self._begin(kept)

    def note(self, number: int, attempts: Attempts) -> None:
        """Note what came of some grants of a running round: their queries are free again, what is left of them unpromised.

        Raises:
            BudgetError: One of them is no running grant of that round.
        """
        self._running_round(number).note(attempts, self.states)
        self._came_to_nothing = False
        self._release(attempts.index_M)

    def take(self, number: int, attempts: Iterable[Attempts] = ()) -> RoundReport:
        """Note the rest of what came of a round, which is over then: grants without an attempt were not run.

        Args:
            number: The round.
            attempts: What was not noted yet; only one of them is held at a time.

        Returns:
            The round's report; without its time, of which nothing is known here.

        Raises:
            BudgetError: As for `note`.
        """
        for some in attempts:
            self.note(number, some)
        running = self._running_round(number)
        del self._running[number]
        clearing = running.granted.clearing
        not_run = clearing.index_M[~running.was_run_M]
        self._release(not_run[self._running_round_N[not_run] == number])  # else it was lost, and is granted again
        self._came_to_nothing |= not running.was_run_M.any()
        return running.report()

    @property
    def _is_free_N(self) -> NDArray[np.bool_]:
        is_free_N: NDArray[np.bool_] = self.states.is_open_N & (self._running_tokens_N == 0)
        return is_free_N

    def _owed_tokens_N(self) -> NDArray[np.int64]:
        is_unserved_N = self._is_free_N & (self.states.rounds_N == 0)
        return owed_tokens(is_unserved_N, self._offers.max_tokens_N, self._settings.minimum_service_tokens)

    def _may_clear(self, available_tokens: int, owed_tokens_N: NDArray[np.int64]) -> bool:
        if self._came_to_nothing or self._has_served:
            return False
        if self._settings.max_rounds is not None:
            is_over = self.number >= self._settings.most_rounds
        else:
            is_over = not self._running and self.known_queries is None and self._alone >= self._most_alone
        if is_over:
            return False
        if self.number == 0:
            return available_tokens >= 1
        for_sale_tokens = available_tokens - self._taken(owed_tokens_N)
        return for_sale_tokens >= self._smallest_grant()

    def _taken(self, tokens_N: NDArray[np.int64]) -> int:
        """Return what a first grant of so many tokens to each query takes from the budget."""
        if self._calls is None:
            return taken_tokens(tokens_N, self.states.cost_N)
        index = np.arange(len(tokens_N))
        return -(-int(self._calls.taken_parts(index, tokens_N, np.zeros_like(tokens_N)).sum()) // COST_PARTS)

    def _smallest_grant(self) -> float:
        """Return what the smallest useful grant takes; where prompts are paid for, to the query that it takes the least."""
        smallest, open_M = self._settings.smallest_grant_tokens, np.flatnonzero(self._is_free_N)
        if self._calls is None or not len(open_M):
            return smallest
        # One that may begin again need not read its answer so far.
        before_M = np.where(self.states.left_N[open_M] > 0, 0, self.states.answer_tokens_N[open_M])
        parts_M = self._calls.taken_parts(open_M, np.full(len(open_M), smallest), before_M)
        return float(parts_M.min()) / COST_PARTS

    def _begin(self, granted: Round) -> Round:
        clearing = granted.clearing
        index, is_free_N = clearing.index_M, self._is_free_N
        if len(np.unique(index)) < len(index) or not is_free_N[index].all() or (clearing.tokens_M < 1).any():
            raise BudgetError("a query is granted twice, or is not free", f"round {granted.number}", remedy=DEFECT)
        begins_M, states = self.states.begins_M(clearing), self.states
        if (begins_M & (states.left_N[index] < 1) | ~begins_M & ~states.may_go_on_N[index]).any():
            raise BudgetError(
                "an attempt too many, or going on with what is over", f"round {granted.number}", remedy=DEFECT
            )
        self.number = granted.number
        self._alone += not granted.is_beside and granted.known_queries is None
        self._running[granted.number] = RunningRound(granted)
        self._running_tokens_N[index], self._running_round_N[index] = clearing.tokens_M, granted.number
        self._promised_parts_N[index] = clearing.parts_M(self._offers.cost_N)
        self._has_served |= clearing.is_service
        self.states.grant(clearing)
        return granted

    def _release(self, index_M: NDArray[np.int64]) -> None:
        self._running_tokens_N[index_M], self._running_round_N[index_M] = 0, 0
        self._promised_parts_N[index_M] = 0

    def _running_round(self, number: int) -> RunningRound:
        if number not in self._running:
            raise BudgetError("no such round is running", "rounds", str(number), DEFECT)
        return self._running[number]
