"""What was observed: rollouts of known queries, counted on a token grid, with the features of each query.

Shapes: N queries, K grid points, R rollouts, D hidden width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from clear_ray.engine.base import Features
from clear_ray.errors import SchemaError

ROLLOUT_COLUMNS = ("query_id", "output_tokens", "finish_reason", "correct", "prompt")
FEATURE_COLUMNS = ("query_id", "prompt_tokens", "hidden_last", "hidden_mean")


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Every rollout's length and outcome, grouped by query.

    Attributes:
        query_ids: The N queries, in order of first appearance.
        prompts: Their prompts.
        query_R: Which query each rollout belongs to, an index into `query_ids`.
        tokens_R: Tokens it generated, end token included.
        is_right_R: It ended by itself and was correct.
        is_ended_R: It ended by itself; otherwise it was cut, and what it would have become is unknown.
    """

    query_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    query_R: NDArray[np.int64]
    tokens_R: NDArray[np.int64]
    is_right_R: NDArray[np.bool_]
    is_ended_R: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return N."""
        return len(self.query_ids)

    def take(self, index: ArrayLike) -> Rollouts:
        """Return the rollouts of the queries at `index` (integers or a mask), renumbered in that order."""
        chosen = np.arange(len(self))[np.asarray(index)]
        position_N = np.full(len(self), -1)
        position_N[chosen] = np.arange(len(chosen))
        kept_R = position_N[self.query_R] >= 0
        return Rollouts(
            query_ids=tuple(self.query_ids[i] for i in chosen),
            prompts=tuple(self.prompts[i] for i in chosen),
            query_R=position_N[self.query_R[kept_R]],
            tokens_R=self.tokens_R[kept_R],
            is_right_R=self.is_right_R[kept_R],
            is_ended_R=self.is_ended_R[kept_R],
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """Rollouts of each query, counted on the cells (t_{k-1}, t_k] of a token grid.

    Attributes:
        right_NK: Rollouts that ended in the cell with a correct answer.
        wrong_NK: Rollouts that ended in the cell without one.
        at_risk_NK: Rollouts still running at the start of the cell and observed to its end.
    """

    right_NK: NDArray[np.float64]
    wrong_NK: NDArray[np.float64]
    at_risk_NK: NDArray[np.float64]

    def take(self, index: ArrayLike) -> Counts:
        """Return the counts of the queries at `index`."""
        rows = np.asarray(index)
        return Counts(self.right_NK[rows], self.wrong_NK[rows], self.at_risk_NK[rows])


def count(rollouts: Rollouts, *, tokens_K: NDArray[np.int64]) -> Counts:
    """Count rollouts on the grid; one cut inside a cell does not count as observed there.

    Args:
        rollouts: N queries' rollouts. One longer than the grid counts as still running at its end.
        tokens_K: The grid.
    """
    shape = (len(rollouts), len(tokens_K))
    right, wrong, at_risk = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    cell_R = np.searchsorted(tokens_K, rollouts.tokens_R)
    inside_R = cell_R < len(tokens_K)
    for counted, chosen_R in (
        (right, rollouts.is_right_R & rollouts.is_ended_R & inside_R),
        (wrong, ~rollouts.is_right_R & rollouts.is_ended_R & inside_R),
    ):
        np.add.at(counted, (rollouts.query_R[chosen_R], cell_R[chosen_R]), 1.0)
    # An ended rollout is observed through its own cell; a cut one through the last cell it filled.
    filled_R = np.searchsorted(tokens_K, rollouts.tokens_R, side="right")
    cells_R = np.where(rollouts.is_ended_R & inside_R, cell_R + 1, filled_R)
    np.add.at(at_risk, rollouts.query_R, np.arange(len(tokens_K)) < cells_R[:, None])
    return Counts(right, wrong, at_risk)


def rollouts_from_table(table: pa.Table) -> Rollouts:
    """Read rollouts from a table with the columns of the recorded data.

    Raises:
        SchemaError: A column is missing, the table is empty, or a value is out of range.
    """
    _require(table, ROLLOUT_COLUMNS, "rollouts")
    if table.num_rows == 0:
        raise SchemaError("there are no rollouts", "rollouts", remedy="Sample some with `clear-ray calibrate`.")
    ids: list[str] = table["query_id"].to_pylist()
    prompt_of = dict(zip(reversed(ids), reversed(table["prompt"].to_pylist()), strict=True))
    index_of = {query_id: position for position, query_id in enumerate(dict.fromkeys(ids))}
    tokens_R = np.asarray(table["output_tokens"].to_numpy(zero_copy_only=False), np.int64)
    if (tokens_R < 1).any():
        row = int(np.argmax(tokens_R < 1))
        raise SchemaError(
            "output_tokens is below 1",
            f"rollouts row {row}",
            str(tokens_R[row]),
            remedy="Leave out rollouts that generated nothing.",
        )
    is_ended_R = np.array([reason == "stop" for reason in table["finish_reason"].to_pylist()])
    is_correct_R = np.asarray(table["correct"].to_numpy(zero_copy_only=False), np.bool_)
    return Rollouts(
        query_ids=tuple(index_of),
        prompts=tuple(prompt_of[query_id] for query_id in index_of),
        query_R=np.array([index_of[query_id] for query_id in ids], np.int64),
        tokens_R=tokens_R,
        is_right_R=is_correct_R & is_ended_R,
        is_ended_R=is_ended_R,
    )


def features_from_table(table: pa.Table, *, query_ids: Sequence[str], rollouts: pa.Table | None = None) -> Features:
    """Read the features of the named queries, in that order.

    Args:
        table: Columns query_id, prompt_tokens, hidden_last, hidden_mean and, if it is there, entropy in nats.
        query_ids: Which queries, in which order.
        rollouts: Rollouts to take a missing entropy from: the first `tok_entropy` of any rollout of the query.

    Raises:
        SchemaError: A column or a query is missing, or hidden states differ in width.
    """
    _require(table, FEATURE_COLUMNS, "features")
    row_of = {query_id: row for row, query_id in enumerate(table["query_id"].to_pylist())}
    missing = [query_id for query_id in query_ids if query_id not in row_of]
    if missing:
        raise SchemaError(f"{len(missing)} queries have no features", "features", missing[0], "Probe them too.")
    table = table.take([row_of[query_id] for query_id in query_ids])
    entropy_N = np.full(len(query_ids), np.nan, np.float32)
    if "entropy" in table.column_names:
        entropy_N = np.asarray(table["entropy"].to_numpy(zero_copy_only=False), np.float32)
    elif rollouts is not None and "tok_entropy" in rollouts.column_names:
        first = pa.compute.list_element(rollouts["tok_entropy"], 0).to_pylist()
        entropy_of = dict(zip(rollouts["query_id"].to_pylist(), first, strict=True))
        entropy_N = np.array([entropy_of.get(query_id, np.nan) for query_id in query_ids], np.float32)
    return Features(
        prompt_tokens_N=np.asarray(table["prompt_tokens"].to_numpy(zero_copy_only=False), np.int64),
        entropy_N=entropy_N,
        hidden_last_ND=_matrix(table["hidden_last"], "hidden_last"),
        hidden_mean_ND=_matrix(table["hidden_mean"], "hidden_mean"),
    )


def take_features(features: Features, index: ArrayLike) -> Features:
    """Return the features of the queries at `index` (integers or a mask)."""
    rows = np.asarray(index)
    return Features(
        prompt_tokens_N=features.prompt_tokens_N[rows],
        entropy_N=features.entropy_N[rows],
        hidden_last_ND=features.hidden_last_ND[rows],
        hidden_mean_ND=features.hidden_mean_ND[rows],
    )


def data_digest(rollouts: Rollouts, features: Features) -> str:
    """Return a SHA-256 hex digest over everything that a fit reads."""
    digest = hashlib.sha256("\0".join(rollouts.query_ids + rollouts.prompts).encode())
    for array in (
        rollouts.query_R, rollouts.tokens_R, rollouts.is_right_R, rollouts.is_ended_R,
        features.prompt_tokens_N, features.entropy_N, features.hidden_last_ND, features.hidden_mean_ND,
    ):  # fmt: skip
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _require(table: pa.Table, columns: Sequence[str], where: str) -> None:
    for column in columns:
        if column not in table.column_names:
            raise SchemaError(
                f"column {column} is missing",
                where,
                ", ".join(table.column_names),
                remedy="Write it, or rename the one that stands for it.",
            )


def _matrix(column: pa.ChunkedArray, name: str) -> NDArray[np.float32]:
    rows = [np.asarray(row, np.float32) for row in column.to_numpy(zero_copy_only=False)]
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise SchemaError(
            "hidden states differ in width",
            f"features column {name}",
            str(sorted(widths)),
            remedy="Record all features with one model.",
        )
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)
