"""Between the stages: which rows of a dataset are granted tokens, and which row of a query is its last.

The driver decides over arrays of N numbers; these callables carry the decision to where the rows are. Nothing is joined or
shuffled: a row knows its `index`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clear_ray.records import QUERY_SCHEMA
from clear_ray.stages.probe import with_added_columns

if TYPE_CHECKING:
    pass
from clear_ray.ledger.void import VoidAttempts

GRANTED_COLUMNS = (*QUERY_SCHEMA.names, "token_ids", "round", "sample", "granted_tokens", "rank")


@dataclass(frozen=True, slots=True)
class GrantTable:
    """The grants of one round, for M queries in order of dispatch; `sample_M` is which of a query's answers each is for."""

    round: int
    index_M: NDArray[np.int64]
    tokens_M: NDArray[np.int64]
    sample_M: NDArray[np.int32]


class SelectGranted:
    """Keep the rows whose query is granted tokens, with the grant and its rank in the order of dispatch.

    Args:
        grants: The grants.
        is_wanted_M: Which of the grants to look for among these rows.
        last_round_N: Round of each query's last attempt, for rows of earlier rounds; older rows are dropped.
        void: Attempts of those rounds that do not count.
    """

    def __init__(
        self,
        grants: GrantTable,
        is_wanted_M: NDArray[np.bool_],
        last_round_N: NDArray[np.int32] | None,
        void: VoidAttempts,
    ) -> None:
        self._void = void
        self._round = grants.round
        self._last_round_N = last_round_N
        wanted = np.flatnonzero(is_wanted_M)
        order = wanted[np.argsort(grants.index_M[wanted])]
        self._index_M, self._tokens_M, self._rank_M = grants.index_M[order], grants.tokens_M[order], order
        self._sample_M = grants.sample_M[order]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the granted rows with the columns of `GRANTED_COLUMNS`."""
        if self._last_round_N is not None:
            batch = self._void.dropped_from(batch)
        index = batch["index"].to_numpy()
        at = np.minimum(np.searchsorted(self._index_M, index), len(self._index_M) - 1)
        is_granted = self._index_M[at] == index
        if self._last_round_N is not None:
            is_granted &= batch["round"].to_numpy() == self._last_round_N[index]
        rows = with_added_columns(batch).select(QUERY_SCHEMA.names).filter(pa.array(is_granted))
        at = at[is_granted]
        token_ids = (
            pa.array([[]] * len(rows), pa.list_(pa.int32()))
            if self._last_round_N is None
            else batch["token_ids"].filter(pa.array(is_granted))
        )
        rows = rows.append_column("token_ids", token_ids)
        rows = rows.append_column("round", pa.array(np.full(len(at), self._round, np.int32)))
        rows = rows.append_column("sample", pa.array(self._sample_M[at], pa.int32()))
        rows = rows.append_column("granted_tokens", pa.array(self._tokens_M[at]))
        return rows.append_column("rank", pa.array(self._rank_M[at]))
