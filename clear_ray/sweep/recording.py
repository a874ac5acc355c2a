"""Recorded rollouts as a table of outcomes: what any ceiling would have brought, without an engine.

Shapes: N queries, S samples of each, T ceilings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.engine.base import Features
from clear_ray.errors import SchemaError
from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.observations import Rollouts, features_from_table, rollouts_from_table, take_features

_MOST_CEILINGS = 4_096
_COLUMNS = ("length_NS", "is_stopped_NS", "is_right_NS", "task_N")


@dataclass(frozen=True, eq=False)
class Recording:
    """The rollouts of N queries, S of each, and the features of their probes.

    Attributes:
        rollouts: As a head is fitted on them.
        features: Features of the same queries, in the same order.
        length_NS: Tokens of each rollout, end token included.
        is_stopped_NS: It ended by itself.
        is_right_NS: It ended by itself and was correct.
        task_N: Task and level, as far as they are told; empty where they are not.
        cap_tokens: The ceiling under which the rollouts were sampled.
    """

    rollouts: Rollouts
    features: Features
    length_NS: NDArray[np.int64]
    is_stopped_NS: NDArray[np.bool_]
    is_right_NS: NDArray[np.bool_]
    task_N: NDArray[np.str_]
    cap_tokens: int

    def __len__(self) -> int:
        """Return N."""
        return len(self.length_NS)

    @property
    def ceilings_T(self) -> NDArray[np.int64]:
        """All ceilings, or of a long recording `_MOST_CEILINGS` of them, close together where they are low, shape (T,)."""
        if self.cap_tokens < _MOST_CEILINGS:
            return np.arange(self.cap_tokens + 1)
        spread = np.rint(np.geomspace(1, self.cap_tokens, _MOST_CEILINGS)).astype(np.int64)
        return np.unique(np.concatenate([[0], spread]))

    @property
    def samples(self) -> int:
        """Return S."""
        return int(self.length_NS.shape[1])

    def take(self, is_wanted_N: NDArray[np.bool_]) -> Recording:
        """Return the recording of some queries."""
        columns = {name: getattr(self, name)[is_wanted_N] for name in _COLUMNS}
        features, rollouts = take_features(self.features, is_wanted_N), self.rollouts.take(is_wanted_N)
        return replace(self, rollouts=rollouts, features=features, **columns)

    def spend_NST(self, ceilings_T: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what each rollout spends under each ceiling."""
        return np.minimum(self.length_NS[:, :, None], ceilings_T)

    def right_NST(self, ceilings_T: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each rollout is right under each ceiling."""
        return self.is_right_NS[:, :, None] & (self.length_NS[:, :, None] <= ceilings_T)

    def empirical_curves(
        self, tokens_K: NDArray[np.int64], samples: NDArray[np.int64], *, pseudo_samples: float = 0.0
    ) -> Curves:
        """Return the curves that some of the samples themselves draw, on a token grid.

        Args:
            tokens_K: The grid.
            samples: Which samples.
            pseudo_samples: How many samples the mean curve of all queries counts for, against false certainty.
        """
        length_NS, is_right_NS = self.length_NS[:, samples, None], self.is_right_NS[:, samples, None]
        success_NK = (is_right_NS & (length_NS <= tokens_K)).mean(axis=1)
        # One that was cut at the recording's cap is still running there.
        is_ended_NS = self.is_stopped_NS[:, samples, None] & (length_NS <= tokens_K)
        survival_NK = 1.0 - is_ended_NS.mean(axis=1)
        share = pseudo_samples / (len(samples) + pseudo_samples)
        success_NK = (1 - share) * success_NK + share * success_NK.mean(axis=0)
        survival_NK = (1 - share) * survival_NK + share * survival_NK.mean(axis=0)
        return curves_from_incidence(success_NK, survival_NK=survival_NK, tokens_K=tokens_K)


def read_recording(rollouts_path: str, features_path: str | None = None, *, model: str | None = None) -> Recording:
    """Read rollouts and features with the columns of the recorded data.

    Args:
        rollouts_path: Parquet; columns query_id, sample, output_tokens, finish_reason, correct, prompt; task, level, model,
            max_tokens, prompt_tokens and tok_entropy are used where they are there.
        features_path: Parquet of the same queries' probe features. Without it there are no hidden states, the prompt may be
            missing, and where queries differ in their number of samples only as many are read as all have.
        model: Which rows to read, where the file holds the answers of several models.

    Raises:
        SchemaError: A file cannot be read, a column is missing, the model is not in it, or queries differ in their number of
            samples.
    """
    table = rows_of(rollouts_path, model)
    if features_path is None:
        table = _even(table)
    rollouts = rollouts_from_table(table)
    samples, extra = divmod(len(rollouts.query_R), len(rollouts))
    if extra or (np.bincount(rollouts.query_R) != samples).any():
        counted = np.bincount(rollouts.query_R)
        raise SchemaError(
            "queries differ in their number of samples",
            rollouts_path,
            f"{counted.min()} to {counted.max()}",
            "Leave out the queries whose samples are not all recorded.",
        )
    shape = (len(rollouts), samples)
    has = table.column_names.__contains__
    labels = [table[name].to_pylist()[::samples] for name in ("task", "level") if has(name)]
    features = (
        _bare_features(table, samples)
        if features_path is None
        else features_from_table(read_table(features_path), query_ids=rollouts.query_ids, rollouts=table)
    )
    return Recording(
        rollouts=rollouts,
        features=features,
        length_NS=rollouts.tokens_R.reshape(shape),
        is_stopped_NS=rollouts.is_ended_R.reshape(shape),
        is_right_NS=rollouts.is_right_R.reshape(shape),
        task_N=np.array([" ".join(str(label) for label in row) for row in zip(*labels, strict=True)], np.str_)
        if labels
        else np.full(len(rollouts), "", np.str_),
        cap_tokens=int(max(table["max_tokens"].to_pylist()) if has("max_tokens") else rollouts.tokens_R.max()),
    )


def rows_of(path: str, model: str | None) -> pa.Table:
    """Return the rows of a recording, of one model, by query and sample; errors as of `read_recording`."""
    table = _of_model(read_table(path), path, model)
    order = [("query_id", "ascending")] + ([("sample", "ascending")] if "sample" in table.column_names else [])
    return table.sort_by(order)


def _of_model(table: pa.Table, path: str, model: str | None) -> pa.Table:
    """Return the rows of one model; of all if none is named and the file has one alone."""
    if "model" not in table.column_names:
        if model is None:
            return table
        raise SchemaError("the file does not say which model answered", path, model, remedy="Leave out --model.")
    known = sorted(set(table["model"].to_pylist()))
    if model is None and len(known) == 1:
        return table
    if model not in known:
        said = "the file holds the answers of several models" if model is None else "there are no answers of this model"
        raise SchemaError(said, path, model or "", remedy=f"Give --model, one of {', '.join(known)}.")
    return table.filter(pa.compute.equal(table["model"], model))


def _even(table: pa.Table) -> pa.Table:
    """Return the first samples of each query, as many as all queries have, with a prompt for each row."""
    ids = table["query_id"].to_pylist()
    place: list[int] = []
    before: dict[str, int] = {}
    for query_id in ids:
        place.append(before.get(query_id, 0))
        before[query_id] = place[-1] + 1
    table = table.filter(pa.array(np.array(place) < min(before.values(), default=0)))
    if "prompt" not in table.column_names:
        table = table.append_column("prompt", pa.array([""] * len(table), pa.string()))
    # An answer that holds nothing took one token to end: zero cannot be granted.
    tokens = pa.array(np.maximum(table["output_tokens"].to_numpy().astype(np.int64), 1))
    return table.set_column(table.column_names.index("output_tokens"), "output_tokens", tokens)


def _bare_features(table: pa.Table, samples: int) -> Features:
    """Return what is known without a probe: the tokens of the prompts, where they are recorded."""
    queries = len(table) // samples
    recorded = (
        table["prompt_tokens"].to_numpy()[::samples] if "prompt_tokens" in table.column_names else np.ones(queries)
    )
    none_ND = np.zeros((queries, 0), np.float32)
    prompt_tokens_N = np.maximum(np.nan_to_num(np.asarray(recorded, np.float64), nan=1.0), 1.0).astype(np.int64)
    return Features(prompt_tokens_N, np.full(queries, np.nan, np.float32), none_ND, none_ND)


def read_table(path: str) -> pa.Table:
    """Read a Parquet file.

    Raises:
        SchemaError: It cannot be read.
    """
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SchemaError(
            "the recording cannot be read as Parquet", path, str(error), remedy="Give the path of a whole Parquet file."
        ) from error
