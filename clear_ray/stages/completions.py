"""How every query ended: the driver's numbers beside its last attempt, as rows of completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import COMPLETION_SCHEMA, OF_QUERY
from clear_ray.report.wording import priced
from clear_ray.stages.answer_parts import PARTS, AnswerParts
from clear_ray.stages.causes import LOST, code_of, code_of_answer

if TYPE_CHECKING:
    from clear_ray.rounds.states import QueryStates

_STOPPED = {
    "batch_cancelled": "The batch was cancelled before its turn came.",
    "batch_expired": "The time of the batch was over before its turn came.",
}
"""What is said of a query that an order left unanswered, by the code of the order."""
_STOPPED_AMID = {
    "batch_cancelled": "the batch was cancelled before it had more",
    "batch_expired": "the time of the batch was over before it had more",
}
"""What is said of one whose answer it cut."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """How every query of the batch ended, in numbers.

    Attributes:
        states: Where every query stands after the last round.
        spent_tokens_N: Tokens generated for each query, those of lost work included.
        reservation_price_N: Price above which a query is not worth a token.
        prompt_tokens_N: Length of its prompt, tokens.
        error_of_index: Why a query could not be read, of those few.
        unit: What the budget is counted in.
        stopped: Code of the order that ended the run, if one did.
        is_known_N: Which queries had an estimate by then; all if not given.
        ceiling_N: Most tokens that each query may be granted; not known if not given.
    """

    states: QueryStates
    spent_tokens_N: NDArray[np.int64]
    reservation_price_N: NDArray[np.float64]
    prompt_tokens_N: NDArray[np.int64]
    error_of_index: Mapping[int, str]
    unit: str = "tokens"
    stopped: str = ""
    is_known_N: NDArray[np.bool_] | None = None
    ceiling_N: NDArray[np.int64] | None = None

    def left_unread(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some queries no price was cleared over, since an order ended the run before they were read."""
        return np.zeros(len(index), bool) if self.is_known_N is None else ~self.is_known_N[index]

    def why_cut(self, index: NDArray[np.int64]) -> list[str]:
        """Return why no more was granted to some queries, whose answers were cut."""
        states = self.states
        is_first = states.attempt_N[index] <= 1
        is_whole = np.zeros(len(index), bool)
        if self.ceiling_N is not None:
            is_whole = is_first & (states.answer_tokens_N[index] >= self.ceiling_N[index])
        is_over = is_first & ~states.may_go_on_N[index]
        each = zip(is_whole.tolist(), is_over.tolist(), states.price_N[index].tolist(), strict=True)
        return [self._why_cut(whole, over, price) for whole, over, price in each]

    def _why_cut(self, is_whole: bool, is_over: bool, price: float) -> str:
        if is_whole:
            return "that is the most that it may have"
        if is_over:
            return "its engine goes on with no such answer"
        return _STOPPED_AMID.get(self.stopped) or _why_no_more(price, self.unit)

    def columns(self, index: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """Return the number columns of `COMPLETION_SCHEMA` for some queries."""
        return {
            "max_tokens": self.states.granted_tokens_N[index],
            "spent_tokens": self.spent_tokens_N[index],
            "rounds": self.states.rounds_N[index],
            "price": self.states.price_N[index],
            "expected_utility": self.states.expected_utility_N[index],
            "surplus": self.states.surplus_N[index],
            "reservation_price": self.reservation_price_N[index],
            "prompt_tokens": self.prompt_tokens_N[index],
            "attempts": self.states.attempt_N[index],
        }


class Complete:
    """Turn the grant that ended each query's answer into its completion; drop all others and those that are void.

    Args:
        verdicts: How the queries ended.
        void: Grants that do not count.
        parts: Puts answers together.

    Attributes:
        reads: The columns of an attempt that it looks at.
    """

    reads = (
        *(*OF_QUERY, *PARTS, "round", "attempt", "sample", "finish_reason", "error", "correct", "answer", "verdict"),
        *("ended_at", "engine"),
    )

    def __init__(self, verdicts: Verdicts, void: VoidAttempts, parts: AnswerParts) -> None:
        self._verdicts, self._void, self._parts = verdicts, void, parts

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return rows of `COMPLETION_SCHEMA`, completed or failed."""
        batch = self._void.dropped_from(batch)
        index = batch["index"].to_numpy()
        batch = batch.filter(pa.array(batch["round"].to_numpy() == self._verdicts.states.chosen_round_N[index]))
        batch = self._parts.whole(batch)
        index = batch["index"].to_numpy()
        numbers = self._verdicts.columns(index)
        errors, unit = batch["error"].to_pylist(), self._verdicts.unit
        finish = batch["finish_reason"].to_pylist()
        reasons = [
            _reason_failed(error)
            if error
            else (
                _reason_served(reason, spent, ceiling, _at(price, unit))
                if served
                else _reason_completed(reason, spent, ceiling, _at(price, unit), why)
            )
            + _reason_chosen(chosen, attempts)
            for error, why, served, reason, spent, ceiling, price, chosen, attempts in zip(
                errors,
                self._verdicts.why_cut(index),
                self._verdicts.states.is_served_N[index].tolist(),
                finish,
                *(numbers[name].tolist() for name in ("spent_tokens", "max_tokens", "price")),
                self._verdicts.states.chosen_attempt_N[index].tolist(),
                numbers["attempts"].tolist(),
                strict=True,
            )
        ]
        return _completions(
            batch,
            numbers,
            status=["failed" if error else "completed" for error in errors],
            finish_reason=finish,
            text=batch["text"],
            reason=reasons,
            error=[error or None for error in errors],
            correct=batch["correct"],
            error_code=[code_of_answer(error) if error else None for error in errors],
            ended_at=batch["ended_at"],
            answer=batch["answer"],
            verdict=batch["verdict"],
            sample=batch["sample"],
            logprobs=batch["logprobs"],
            engine=batch["engine"],
        )


class Abandon:
    """Turn the queries that were never run into completions without an answer; drop the others.

    Attributes:
        reads: The columns of a query that it looks at.
    """

    reads = OF_QUERY

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return rows of `COMPLETION_SCHEMA`: abandoned, or failed where the prompt or the answer was lost."""
        index = batch["index"].to_numpy()
        batch = batch.filter(pa.array(self._verdicts.states.last_round_N[index] == 0))
        index = batch["index"].to_numpy()
        numbers, unit, stopped = self._verdicts.columns(index), self._verdicts.unit, self._verdicts.stopped
        is_unread = self._verdicts.left_unread(index)
        prices, most = numbers["price"].tolist(), numbers["reservation_price"].tolist()
        refused_at = self._verdicts.states.price_N[index]
        is_refused = (~is_unread & (self._verdicts.reservation_price_N[index] <= refused_at)).tolist()
        errors = [
            self._verdicts.error_of_index.get(i) or (LOST if spent else None)
            for i, spent in zip(index.tolist(), numbers["spent_tokens"].tolist(), strict=True)
        ]
        # A query without gold answer has no score; one with, that was given up, has not been answered correctly.
        correct = pc.if_else(pc.is_valid(batch["gold"]), pa.scalar(0.0), pa.scalar(None, pa.float64()))
        return _completions(
            batch,
            {**numbers, "price": pa.array(numbers["price"], mask=is_unread)},
            status=["failed" if error else "abandoned" for error in errors],
            finish_reason=pa.nulls(len(batch), pa.string()),
            text=pa.nulls(len(batch), pa.string()),
            reason=[
                _reason_failed(error) if error else _reason_abandoned(refused, price, highest, unit, stopped)
                for error, refused, price, highest in zip(errors, is_refused, prices, most, strict=True)
            ],
            error=errors,
            correct=correct,
            error_code=[
                code_of(error) if error else "abandoned_by_price" if refused else "batch_expired"
                for error, refused in zip(errors, is_refused, strict=True)
            ],
            ended_at=pa.nulls(len(batch), pa.float64()),
            answer=pa.nulls(len(batch), pa.string()),
            verdict=pa.nulls(len(batch), pa.string()),
            sample=pa.nulls(len(batch), pa.int32()),
            logprobs=pa.nulls(len(batch), pa.string()),
            engine=pa.nulls(len(batch), pa.string()),
        )


def _completions(batch: pa.Table, numbers: Mapping[str, object], **columns: object) -> pa.Table:
    older = pa.nulls(len(batch), pa.int32())  # rows of an older run have neither `n` nor `choice`
    carried = {name: batch[name] if name in batch.column_names else older for name in OF_QUERY}
    found = {**carried, **numbers, **columns}
    arrays = []
    for field in COMPLETION_SCHEMA:
        values = found[field.name]
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        arrays.append(values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type))
    return pa.table(arrays, schema=COMPLETION_SCHEMA)


@lru_cache(maxsize=4_096)
def _at(price: float, unit: str) -> str:
    if unit != "tokens":
        return priced(price, unit).replace(" expected", "")
    return f"{1000 * price:.3g} correct answers per 1,000 tokens"


def _why_no_more(price: float, unit: str) -> str:
    """Return why a cut answer was not gone on with, though it might have been: at no price all is bought that there is."""
    return f"more was not worth {_at(price, unit)}" if price > 0 else "nothing was left for more"


def _reason_completed(finish_reason: str, spent_tokens: int, max_tokens: int, price: str, why_cut: str) -> str:
    if finish_reason == "stop":
        return f"Answered with {spent_tokens} of the {max_tokens} tokens granted; the price was {price}."
    return f"Cut off at its last grant of {max_tokens} tokens in all; {why_cut}."


def _reason_chosen(chosen: int, attempts: int) -> str:
    return "" if attempts < 2 else f" This is attempt {chosen} of {attempts}."


def _reason_served(finish_reason: str, spent_tokens: int, max_tokens: int, price: str) -> str:
    answer = "answered" if finish_reason == "stop" else "cut off"
    return (
        f"Not worth the price of {price}: asked for a direct answer, and {answer} with {spent_tokens} of the "
        f"{max_tokens} tokens of the minimum service."
    )


def _reason_failed(error: str) -> str:
    return f"Failed: {error.splitlines()[0][:200].rstrip('.')}."


def _reason_abandoned(is_refused: bool, price: float, reservation_price: float, unit: str, stopped: str) -> str:
    if is_refused:
        most = _at(reservation_price, unit).partition(" ")[0]
        return f"Not worth the price of {_at(price, unit)}: it would be worth {most} at most."
    at = f" at {_at(price, unit)}" if price > 0 else ""
    return _STOPPED.get(stopped, f"Nothing was left when its turn came{at}.")
