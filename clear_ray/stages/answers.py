"""Every answer of queries that were asked for several: the last grant of each attempt, as rows of `records.ANSWER_SCHEMA`.

Shapes: N queries, P attempts of all of them, R rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clear_ray.ledger.void import VoidAttempts
from clear_ray.records import ANSWER_SCHEMA
from clear_ray.stages.answer_parts import AnswerParts

if TYPE_CHECKING:
    from clear_ray.rounds.states import QueryStates


@dataclass(frozen=True, slots=True, eq=False)
class LastGrants:
    """Which grant was the last of each attempt.

    Attributes:
        key_P: Query and number of each attempt in one number, rising.
        round_P: The round of its last grant.
        stride: The key is `index * stride + number`.
        chosen_N: The attempt whose answer counts as its query's.
    """

    key_P: NDArray[np.int64]
    round_P: NDArray[np.int32]
    stride: int
    chosen_N: NDArray[np.int32]

    @staticmethod
    def of(states: QueryStates) -> LastGrants:
        """Return those of a run, the current attempts among them."""
        current, past = np.flatnonzero(states.attempt_N > 0), states.past
        index_P = np.concatenate([past.index_P, current])
        number_P = np.concatenate([past.number_P, states.attempt_N[current]])
        round_P = np.concatenate([past.last_round_P, states.last_round_N[current]])
        stride = int(number_P.max(initial=0)) + 1
        key_P = index_P * stride + number_P
        order = np.argsort(key_P)
        return LastGrants(key_P[order], round_P[order], stride, states.chosen_attempt_N)

    def is_last(
        self, index: NDArray[np.int64], number: NDArray[np.int64], round_number: NDArray[np.int32]
    ) -> NDArray[np.bool_]:
        """Return which of some grants were the last of their attempts."""
        key = index * self.stride + number
        at = np.minimum(np.searchsorted(self.key_P, key), len(self.key_P) - 1)
        found: NDArray[np.bool_] = (self.key_P[at] == key) & (self.round_P[at] == round_number)
        return found


class KeepAnswers:
    """Turn grants into answers, one row for each attempt; drop those before its last grant and those that are void.

    Args:
        last: Which grants were the last of their attempts.
        first_sample: Which independent answer the first attempt of a query was.
        price_R: Price of each round, the first at place 1.
        void: Grants that do not count.
        parts: Puts answers together.
    """

    def __init__(
        self,
        last: LastGrants,
        *,
        first_sample: int,
        price_R: NDArray[np.float64],
        void: VoidAttempts,
        parts: AnswerParts,
    ) -> None:
        self._last, self._first_sample, self._price_R = last, first_sample, price_R
        self._void, self._parts = void, parts

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return rows of `ANSWER_SCHEMA`."""
        batch = self._void.dropped_from(batch)
        number = batch["sample"].to_numpy().astype(np.int64) - self._first_sample + 1
        is_last = self._last.is_last(batch["index"].to_numpy(), number, batch["round"].to_numpy())
        batch, number = self._parts.whole(batch.filter(pa.array(is_last))), number[is_last]
        columns = {
            "is_chosen": pa.array(self._last.chosen_N[batch["index"].to_numpy()] == number),
            "tokens": batch["answer_tokens"],
            "price": pa.array(self._price_R[batch["round"].to_numpy()]),
            "error": pc.if_else(pc.equal(batch["error"], ""), None, batch["error"]),
        }
        arrays = [columns[name] if name in columns else batch[name] for name in ANSWER_SCHEMA.names]
        return pa.table(arrays, names=ANSWER_SCHEMA.names).cast(ANSWER_SCHEMA)
