"""The axis on which a round is priced: what queries may buy next, and what each amount of it turns into.

**Tokens.** Where only generated tokens are charged, and there is one model, the axis is the tokens themselves.

**Menus.** Where prompts are paid for, or where there are several models, the axis is the budget's own unit. A query may take
one of several options: each model, from the beginning or from where its answer was cut off, at any ceiling. So an option is
the points (cost of the call, chance of a right answer), the first of them (cost of the prompt, 0), since a prompt alone
buys nothing. All points of all options of a query, in order of cost, each with the best chance that can be had for it, are
one curve again. Everything that holds for curves of tokens holds for it: price, envelope, slack and certificate.

Shapes: N queries of the batch, M of them priced, J options, K grid points, P points of a menu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import Tabulated
from clear_ray.allocation.envelope import limited_points
from clear_ray.allocation.in_blocks import ROWS_OF_BLOCK, TabulatedInBlocks, blocks_of, curves_of
from clear_ray.config.units import MOST_BUDGET_TOKENS
from clear_ray.records import COST_PARTS
from clear_ray.rounds.batch import Basis, Batch, cost_parts, expected_spend, further_utility

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """One way in which queries may be asked next.

    Attributes:
        batch: Curves by this option, weights and ceilings, of all queries.
        generated_tokens_N: Tokens of the answer that would be gone on with; 0 for an answer that begins.
        is_offered_N: Which queries may take it; all if not given.
    """

    batch: Batch
    generated_tokens_N: Integers
    is_offered_N: NDArray[np.bool_] | None = None

    @property
    def room_N(self) -> Integers:
        """Most further tokens of each query; 0 where it is not offered."""
        room_N = np.maximum(self.batch.max_tokens_N - self.generated_tokens_N, 0)
        return room_N if self.is_offered_N is None else np.where(self.is_offered_N, room_N, 0)

    def take(self, index: Integers) -> Option:
        """Return that of some queries."""
        is_offered = None if self.is_offered_N is None else self.is_offered_N[index]
        return Option(self.batch.take(index), self.generated_tokens_N[index], is_offered)


class Axis(Protocol):
    """What M queries may buy, in amounts; shapes (M,)."""

    @property
    def is_tokens(self) -> bool:
        """Whether an amount is so many tokens."""

    def floors(self, owed_tokens_M: Integers) -> Integers:
        """Return the amounts of tokens that are owed whatever the price."""

    def utility(self, floor_M: Integers) -> Tabulated | TabulatedInBlocks:
        """Return the curves over amounts, with floors."""

    def read(self, amount_M: Integers) -> tuple[Integers, Integers]:
        """Return which option is bought with each amount, and how many further tokens; 0 tokens where it buys nothing."""

    def parts(self, option_M: Integers, tokens_M: Integers) -> Integers:
        """Return what calls may take from the budget in all, thousandths of its unit."""

    def expected_tokens(self, option_M: Integers, tokens_M: Integers) -> NDArray[np.float64]:
        """Return what they are expected to generate."""


def axis_of(
    options: Sequence[Option], index: Integers, *, available_tokens: int, basis: Basis, is_one_block: bool = False
) -> Axis:
    """Return what the queries at `index` may buy.

    Args:
        options: At least one; of several, each has its costs.
        index: Which queries.
        available_tokens: What may be granted, in the budget's unit.
        basis: What a grant is priced at.
        is_one_block: Whether all of them may be held at once, which pays where they are asked at hundreds of prices.
    """
    if len(index) > ROWS_OF_BLOCK and not is_one_block:
        return AxisInBlocks(tuple(options), index, available_tokens, basis)
    return _axis_of_few(options, index, available_tokens, basis)


def _axis_of_few(
    options: Sequence[Option], index: Integers, available_tokens: int, basis: Basis
) -> TokenAxis | MenuAxis:
    if _is_in_tokens(options):
        return TokenAxis(options[0], index, available_tokens, basis)
    return MenuAxis(tuple(options), index, available_tokens, basis)


def _is_in_tokens(options: Sequence[Option]) -> bool:
    return len(options) == 1 and options[0].batch.calls is None


@dataclass(frozen=True, slots=True, eq=False)
class AxisInBlocks:
    """See `Axis`: of so many queries that a block of them is looked at at once."""

    options: tuple[Option, ...]
    index: Integers
    available_tokens: int
    basis: Basis

    @property
    def is_tokens(self) -> bool:
        """See `Axis`."""
        return _is_in_tokens(self.options)

    def floors(self, owed_tokens_M: Integers) -> Integers:
        """See `Axis`."""
        if not owed_tokens_M.any():
            return owed_tokens_M
        floor_M = np.zeros_like(owed_tokens_M)
        for some in blocks_of(np.arange(len(owed_tokens_M))):
            floor_M[some] = self._of(some).floors(owed_tokens_M[some])
        return floor_M

    def utility(self, floor_M: Integers) -> Tabulated | TabulatedInBlocks:
        """See `Axis`."""
        return curves_of(lambda places: self._of(places).utility(floor_M[places]), len(self.index))

    def read(self, amount_M: Integers) -> tuple[Integers, Integers]:
        """See `Axis`."""
        option_M, tokens_M = np.zeros_like(amount_M), np.zeros_like(amount_M)
        for some in blocks_of(np.flatnonzero(amount_M)):
            option_M[some], tokens_M[some] = self._of(some).read(amount_M[some])
        return option_M, tokens_M

    def parts(self, option_M: Integers, tokens_M: Integers) -> Integers:
        """See `Axis`."""
        parts_M = np.zeros_like(tokens_M)
        for some in blocks_of(np.flatnonzero(tokens_M)):
            parts_M[some] = self._of(some).parts(option_M[some], tokens_M[some])
        return parts_M

    def expected_tokens(self, option_M: Integers, tokens_M: Integers) -> NDArray[np.float64]:
        """See `Axis`."""
        expected_M = np.zeros(len(tokens_M))
        for some in blocks_of(np.flatnonzero(tokens_M)):
            expected_M[some] = self._of(some).expected_tokens(option_M[some], tokens_M[some])
        return expected_M

    def _of(self, places: Integers) -> TokenAxis | MenuAxis:
        """Return the axis of a block of the queries."""
        options = [option.take(self.index[places]) for option in self.options]
        return _axis_of_few(options, np.arange(len(places)), self.available_tokens, self.basis)


@dataclass(frozen=True, slots=True, eq=False)
class TokenAxis:
    """See `Axis`: an amount is so many tokens."""

    option: Option
    index: Integers
    available_tokens: int
    basis: Basis

    @property
    def is_tokens(self) -> bool:
        """See `Axis`."""
        return True

    def floors(self, owed_tokens_M: Integers) -> Integers:
        """See `Axis`."""
        return owed_tokens_M

    def utility(self, floor_M: Integers) -> Tabulated:
        """See `Axis`."""
        return further_utility(
            self.option.batch,
            self.index,
            generated_tokens_N=self.option.generated_tokens_N,
            available_tokens=self.available_tokens,
            basis=self.basis,
            floor_tokens=floor_M,
        )

    def read(self, amount_M: Integers) -> tuple[Integers, Integers]:
        """See `Axis`."""
        return np.zeros_like(amount_M), amount_M

    def parts(self, option_M: Integers, tokens_M: Integers) -> Integers:
        """See `Axis`."""
        return tokens_M * cost_parts(self.option.batch.cost_N[self.index])

    def expected_tokens(self, option_M: Integers, tokens_M: Integers) -> NDArray[np.float64]:
        """See `Axis`."""
        return expected_spend(
            self.option.batch.curves.take(self.index), self.option.generated_tokens_N[self.index], tokens_M
        )


class MenuAxis:
    """See `Axis`: an amount is in the budget's unit.

    Args:
        options: Each with its costs.
        index: Which queries.
        available_tokens: What may be granted.
        basis: What a grant is priced at: its reservation, or what it is expected to take.
    """

    is_tokens = False

    def __init__(self, options: tuple[Option, ...], index: Integers, available_tokens: int, basis: Basis) -> None:
        self._options, self._index, self._is_expected = options, index, basis == "expected_spend"
        points = [self._points_of(option, available_tokens) for option in options]
        self._tokens_JMK, self._amount_JMK = np.stack([p[0] for p in points]), np.stack([p[1] for p in points])
        success = np.concatenate([p[2] for p in points], axis=1)
        amount = np.concatenate([p[1] for p in points], axis=1)
        option = np.repeat(np.arange(len(options)), [p[1].shape[1] for p in points])
        # Of points at the same cost the best comes first: a curve is read at the first of them.
        best_first = np.argsort(-success, axis=1, kind="stable")
        by_amount = np.argsort(np.take_along_axis(amount, best_first, axis=1), axis=1, kind="stable")
        order = np.take_along_axis(best_first, by_amount, axis=1)
        self._amount_MP = np.take_along_axis(amount, order, axis=1)
        sorted_success = np.take_along_axis(success, order, axis=1)
        self._success_MP = np.maximum.accumulate(sorted_success, axis=1)
        # A point is bought only where no cheaper one is as good; what lies beyond it is more of the same option.
        before = np.concatenate([np.zeros((len(index), 1)), self._success_MP[:, :-1]], axis=1)
        place = np.where(self._success_MP > before, np.arange(amount.shape[1]), -1)
        self._holder_MP = np.maximum.accumulate(place, axis=1)
        self._option_MP = option[order]

    def floors(self, owed_tokens_M: Integers) -> Integers:
        """See `Axis`: by the option that serves at the least cost."""
        costs = []
        for option in self._options:
            room = option.room_N[self._index]
            parts = self._taken(option, np.minimum(owed_tokens_M, room))
            costs.append(np.where((room > 0) | (owed_tokens_M == 0), parts, np.iinfo(np.int64).max))
        return np.asarray(-(-np.min(costs, axis=0) // COST_PARTS), np.int64)

    def utility(self, floor_M: Integers) -> Tabulated:
        """See `Axis`."""
        return Tabulated.of_points(
            self._amount_MP,
            self._success_MP,
            weight_N=self._options[0].batch.weight_N[self._index],
            min_tokens_N=np.minimum(floor_M, self._amount_MP[:, -1]),
        )

    def read(self, amount_M: Integers) -> tuple[Integers, Integers]:
        """See `Axis`."""
        rows, at_M = np.arange(len(amount_M)), (self._amount_MP <= amount_M[:, None]).sum(axis=1) - 1
        holder_M = np.where(at_M >= 0, self._holder_MP[rows, np.maximum(at_M, 0)], -1)
        tokens_JM = np.stack([self._tokens_for(j, amount_M) for j in range(len(self._options))])
        # For an amount that buys no chance of success, the most tokens.
        option_M = np.where(holder_M >= 0, self._option_MP[rows, np.maximum(holder_M, 0)], tokens_JM.argmax(axis=0))
        return option_M, tokens_JM[option_M, rows]

    def parts(self, option_M: Integers, tokens_M: Integers) -> Integers:
        """See `Axis`."""
        return self._chosen([self._taken(option, tokens_M) for option in self._options], option_M)

    def expected_tokens(self, option_M: Integers, tokens_M: Integers) -> NDArray[np.float64]:
        """See `Axis`."""
        found: NDArray[np.float64] = self._chosen(
            [
                expected_spend(option.batch.curves.take(self._index), option.generated_tokens_N[self._index], tokens_M)
                for option in self._options
            ],
            option_M,
        )
        return found

    @staticmethod
    def _chosen(of_option: list[NDArray], option_M: Integers) -> NDArray:  # type: ignore[type-arg]
        return np.stack(of_option)[option_M, np.arange(len(option_M))]

    def _taken(self, option: Option, tokens_M: Integers) -> Integers:
        return option.batch.costs.taken_parts(self._index, tokens_M, option.generated_tokens_N[self._index])

    def _points_of(self, option: Option, available_tokens: int) -> tuple[Integers, Integers, NDArray[np.float64]]:
        """Return further tokens, cost and chance of an option's points, the prompt first; shape (M, K + 1) each."""
        index, calls = self._index, option.batch.costs
        generated, points = option.generated_tokens_N[index], further_points(option, index, available_tokens)
        tokens, success, spend = points.tokens_MP, points.success_MP, points.spend_MP
        paid = np.minimum(spend, tokens) if self._is_expected else tokens
        parts = calls.token_parts_N[index][:, None] * (paid if self._is_expected else paid.astype(np.int64))
        fixed = np.where(points.most_M > 0, calls.fixed_parts(index, generated), 0)[:, None]
        amount = np.ceil((fixed + parts) / COST_PARTS) if self._is_expected else -(-(fixed + parts) // COST_PARTS)
        return tokens.astype(np.int64), amount.astype(np.int64), success

    def _tokens_for(self, option: int, amount_M: Integers) -> Integers:
        """Return the further tokens of an option that amounts pay for, at what it is priced at."""
        amount_MK, tokens_MK = self._amount_JMK[option], self._tokens_JMK[option]
        left = (amount_MK <= amount_M[:, None]).sum(axis=1) - 1
        right, rows = np.minimum(left + 1, amount_MK.shape[1] - 1), np.arange(len(amount_M))
        at_left = np.maximum(left, 0)
        run = amount_MK[rows, right] - amount_MK[rows, at_left]
        share = np.where(run > 0, (amount_M - amount_MK[rows, at_left]) / np.maximum(run, 1), 0.0)
        climb = tokens_MK[rows, right] - tokens_MK[rows, at_left]
        tokens = np.where(left < 0, 0, tokens_MK[rows, at_left] + np.floor(share * climb).astype(np.int64))
        if self._is_expected:
            return tokens
        offered = self._options[option]
        generated = offered.generated_tokens_N[self._index]
        left_parts = amount_M * COST_PARTS - offered.batch.costs.fixed_parts(self._index, generated)
        return np.clip(tokens, 0, np.maximum(left_parts // offered.batch.costs.token_parts_N[self._index], 0))


@dataclass(frozen=True, slots=True, eq=False)
class FurtherPoints:
    """What some queries' further tokens by one option bring, at the points of its grid, the first of which is none.

    Attributes:
        tokens_MP: Further tokens.
        success_MP: Chance of a right answer.
        spend_MP: Tokens expected to be generated.
        most_M: Most further tokens that may be, and could be paid for.
    """

    tokens_MP: NDArray[np.float64]
    success_MP: NDArray[np.float64]
    spend_MP: NDArray[np.float64]
    most_M: NDArray[np.float64]


def further_points(option: Option, index: Integers, available_tokens: int) -> FurtherPoints:
    """Return the points of the queries at `index`, as far as what is available would pay for one of them."""
    generated = option.generated_tokens_N[index]
    affordable = option.batch.costs.affordable_tokens(available_tokens * COST_PARTS, index, generated)
    room = np.minimum(option.room_N[index], affordable)
    curves = option.batch.curves.take(index)
    further = Tabulated(
        curves.tokens_K,
        curves.success_NK,
        curves.spend_NK,
        survival_NK=curves.survival_NK,
        max_tokens_N=generated + room,
    ).continued(generated)
    limits = (np.zeros(len(index)), np.minimum(further.max_tokens_N, room))
    tables = (further.tokens_NK.astype(np.float64), further.success_NK, further.spend_NK)
    tokens, success, spend = (limited_points(further.tokens_NK, table, *limits).T for table in tables)
    return FurtherPoints(tokens, success, spend, limits[1])


def reservation_prices(batch: Batch) -> NDArray[np.float64]:
    """Return the price above which each query is not worth a first call, priced at ceilings, shape (N,)."""
    index = np.arange(len(batch.weight_N))
    option = Option(batch, np.zeros_like(index))
    axis = axis_of((option,), index, available_tokens=MOST_BUDGET_TOKENS, basis="ceilings")
    return axis.utility(np.zeros_like(index)).reservation_price
