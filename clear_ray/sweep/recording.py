"""Recorded rollouts as a table of outcomes: what any ceiling would have brought, without an engine.

Shapes: N queries, S samples of each, T ceilings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.engine.base import Features
from clear_ray.errors import SchemaError
from clear_ray.estimation.curves import Curves, curves_from_incidence
from clear_ray.estimation.observations import Rollouts, features_from_table, rollouts_from_table, take_features

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


def read_recording(rollouts_path: str, features_path: str) -> Recording:
    """Read rollouts and features with the columns of the recorded data.

    Args:
        rollouts_path: Parquet; columns query_id, sample, output_tokens, finish_reason, correct, prompt; task, max_tokens
            and tok_entropy are used where they are there.
        features_path: Parquet of the same queries' probe features.

    Raises:
        SchemaError: A file cannot be read, a column is missing, or queries differ in their number of samples.
    """
    table = read_table(rollouts_path)
    order = [("query_id", "ascending")] + ([("sample", "ascending")] if "sample" in table.column_names else [])
    table = table.sort_by(order)
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
    return Recording(
        rollouts=rollouts,
        features=features_from_table(read_table(features_path), query_ids=rollouts.query_ids, rollouts=table),
        length_NS=rollouts.tokens_R.reshape(shape),
        is_stopped_NS=rollouts.is_ended_R.reshape(shape),
        is_right_NS=rollouts.is_right_R.reshape(shape),
        task_N=np.array([" ".join(str(label) for label in row) for row in zip(*labels, strict=True)], np.str_)
        if labels
        else np.full(len(rollouts), "", np.str_),
        cap_tokens=int(max(table["max_tokens"].to_pylist()) if has("max_tokens") else rollouts.tokens_R.max()),
    )


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
