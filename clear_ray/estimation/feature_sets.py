"""What an estimate may read of a query, as named sets that are put side by side.

- `hidden`: last and mean hidden state of the probe, with the entropy of the next token. Costs the probe's prefill; see
  docs/estimates.md for what it takes.
- `text`: scalar features of the question: lengths, brackets, numbers and signs.
- `ngrams`: words and pairs of words of the question, digits masked, hashed into `HASHED` columns, and their leading
  components. The same hash everywhere: no vocabulary is stored.
- `length`: tokens of the prompt alone.
- `logprobs`: how sure an endpoint is of the first token (`stages.first_tokens`), in place of hidden states. Costs a call.
- `task`: the label of the query, where the input has one. Labels are hashed too, so an unknown one is simply new.

An encoder's states take the place of the hidden ones before (`encoder.encoded_features`). A set is fitted on all prompts of
a batch, which takes no labels; each is scaled to a mean square of its weight.

Shapes: N queries, D columns of a set, F entries of the short vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

from clear_ray.engine.base import Features, Prompt
from clear_ray.errors import ConfigError
from clear_ray.estimation.head import Arrays
from clear_ray.estimation.projection import Projection, fit_projection_to
from clear_ray.estimation.readings import HASHED, Readings, read_prompts

Array = NDArray[np.float64]
FeatureSet = Literal["hidden", "text", "ngrams", "length", "task", "logprobs"]
FEATURE_SETS: tuple[FeatureSet, ...] = ("hidden", "text", "ngrams", "length", "task", "logprobs")
_WEIGHT: Mapping[str, float] = {"ngrams": 1.0, "length": 0.3, "task": 1.0, "logprobs": 1.0}
_FURTHEST = 4.0
_NGRAM_COMPONENTS, _FIT_QUERIES = 80, 5_000
_LABELS = 64
_FEW = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap:
    """A fitted map from what is read of queries to short vectors.

    Attributes:
        sets: Which sets, in order.
        projection: Projection of `hidden` and `text`; None if neither is read.
        idf_D: Weight of each hashed column; empty without `ngrams`.
        directions_DP: Directions from hashed columns to components.
        length: Mean and spread of the logarithm of the prompt's tokens, shape (2,).
        first: Mean and spread of each number of the first token, shape (2, F); of no width without `logprobs`.
    """

    sets: tuple[FeatureSet, ...]
    projection: Projection | None
    idf_D: Array
    directions_DP: Array
    length: Array
    first: Array = field(default_factory=lambda: np.zeros((2, 0)))

    def __call__(self, features: Features, prompts: Sequence[Prompt], tasks: Sequence[str] | None = None) -> Array:
        """Return one short vector a query.

        Args:
            features: Features of the probe; the hidden states are read for `hidden` alone.
            prompts: What is asked.
            tasks: Labels, for `task`.

        Raises:
            ConfigError: The map reads task labels and none are given, or hidden states of another width.
        """
        return self.of(read_for(self.sets, features, prompts, tasks), features)

    def of(self, readings: Readings, features: Features | None = None) -> Array:
        """Return one short vector for each query that was read, in order.

        Args:
            readings: What was read of them.
            features: Hidden states, for `hidden` alone.

        Raises:
            ConfigError: As for a call.
        """
        blocks = []
        if self.projection is not None:
            blocks.append(self.projection.of(_states(features, self.sets, len(readings)), readings.text_NT))
        if "ngrams" in self.sets:
            blocks.append(_weighted(readings.terms_ND, self.idf_D) @ self.directions_DP)
        if "length" in self.sets:
            place_N = (np.log(np.maximum(readings.prompt_tokens_N, 1)) - self.length[0]) / self.length[1]
            blocks.append(np.clip(place_N, -4.0, 4.0)[:, None] * np.sqrt(_WEIGHT["length"]))
        if "task" in self.sets:
            blocks.append(_labelled(_given(readings.tasks, len(readings))))
        if "logprobs" in self.sets:
            place_NF = (_first_numbers(features) - self.first[0]) / self.first[1]
            weight = np.sqrt(_WEIGHT["logprobs"] / max(place_NF.shape[1], 1))
            blocks.append(np.clip(np.nan_to_num(place_NF), -_FURTHEST, _FURTHEST) * weight)
        return np.concatenate(blocks, axis=1)

    def arrays(self) -> Arrays:
        """Return the arrays to store."""
        own = {name: getattr(self, name).astype(np.float32) for name in ("idf_D", "directions_DP", "length", "first")}
        projection = {} if self.projection is None else self.projection.arrays()
        return {**own, **{f"projection.{name}": array for name, array in projection.items()}}

    @classmethod
    def restore(cls, sets: Sequence[str], arrays: Arrays) -> FeatureMap:
        """Make the map again."""
        inner = {n.removeprefix("projection."): array for n, array in arrays.items() if n.startswith("projection.")}
        names = ("idf_D", "directions_DP", "length", "first")  # heads fitted before know nothing of first tokens
        own = {name: arrays[name].astype(np.float64) for name in names if name in arrays}
        return cls(checked_sets(sets), projection=Projection.restore(inner) if inner else None, **own)


def checked_sets(sets: Sequence[str]) -> tuple[FeatureSet, ...]:
    """Return the names of feature sets in their usual order.

    Raises:
        ConfigError: There is no such set, or none is named.
    """
    for name in sets:
        if name not in FEATURE_SETS:
            raise ConfigError("no such feature set", "features", name, f"Use some of {', '.join(FEATURE_SETS)}.")
    if not sets:
        raise ConfigError("no feature set is named", "features", remedy=f"Use some of {', '.join(FEATURE_SETS)}.")
    return tuple(name for name in FEATURE_SETS if name in sets)


def read_for(
    sets: Sequence[str], features: Features, prompts: Sequence[Prompt], tasks: Sequence[str] | None = None
) -> Readings:
    """Return what these sets read of prompts; of hidden states nothing."""
    # Without `hidden` not the entropy of the probe either.
    known = features if "hidden" in sets else _states(None, sets, len(prompts), features.prompt_tokens_N)
    return read_prompts(known, prompts, tasks, has_terms="ngrams" in sets)


def fit_feature_map(features: Features, prompts: Sequence[Prompt], *, sets: Sequence[str], seed: int = 0) -> FeatureMap:
    """Fit the map on prompts alone; of many, `_FIT_QUERIES` are drawn for its components.

    Args:
        features: Features of all queries of a batch, or of those that a head is fitted on.
        prompts: Their prompts.
        sets: Names out of `FEATURE_SETS`.
        seed: Seed of that draw.

    Raises:
        ConfigError: There is no such set.
    """
    return fit_map_to(read_for(checked_sets(sets), features, prompts), sets=sets, seed=seed, features=features)


def fit_map_to(
    readings: Readings, *, sets: Sequence[str], seed: int = 0, features: Features | None = None
) -> FeatureMap:
    """Do the same on what was read of prompts.

    Args:
        readings: What was read of them.
        sets: As for `fit_feature_map`.
        seed: Likewise.
        features: Hidden states, for `hidden` alone.

    Raises:
        ConfigError: There is no such set.
    """
    wanted = checked_sets(sets)
    rows = np.arange(len(readings))
    if len(rows) > _FIT_QUERIES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _FIT_QUERIES, replace=False))
    some = readings.take(rows)
    log_N = np.log(np.maximum(readings.prompt_tokens_N, 1)) if len(readings) else np.zeros(1)
    idf_D, directions_DP = np.zeros(0), np.zeros((0, 0))
    if "ngrams" in wanted:
        idf_D, directions_DP = _fit_ngrams(some.terms_ND, seed)
    projection = None
    if {"hidden", "text"} & set(wanted):
        states = _states(features, wanted, len(readings), readings.prompt_tokens_N)
        projection = fit_projection_to(_rows_of(states, rows), some.text_NT)
    fitted = FeatureMap(
        wanted,
        projection,
        idf_D,
        directions_DP,
        np.array([log_N.mean(), max(float(log_N.std()), _FEW)]),
        _scale_of(_first_numbers(features)) if "logprobs" in wanted else np.zeros((2, 0)),
    )
    # Stored in single precision: whatever is fitted behind this map must see what a reader of the file sees.
    return FeatureMap.restore(wanted, fitted.arrays())


def _states(
    features: Features | None, sets: Sequence[str], queries: int, prompt_tokens_N: NDArray[np.int64] | None = None
) -> Features:
    """Return what `projection` may read: without `hidden` neither states nor the entropy of the probe."""
    if features is not None and "hidden" in sets:
        return features
    none_ND, unknown_N = np.zeros((queries, 0), np.float32), np.full(queries, np.nan, np.float32)
    tokens_N = np.zeros(queries, np.int64) if prompt_tokens_N is None else prompt_tokens_N
    return Features(tokens_N, unknown_N, none_ND, none_ND)


def _first_numbers(features: Features | None) -> Array:
    """Return the numbers of first tokens, which stand where hidden states would."""
    if features is None:
        raise ConfigError("the estimate reads first tokens, and there are none", "features", "logprobs")
    return np.concatenate([features.hidden_last_ND, features.hidden_mean_ND], axis=1).astype(np.float64)


def _scale_of(numbers_NF: Array) -> Array:
    """Return mean and spread of each number, over the queries that have it; infinite where all are alike."""
    known_NF = np.isfinite(numbers_NF)
    count_F = np.maximum(known_NF.sum(axis=0), 1)
    mean_F = np.where(known_NF, numbers_NF, 0.0).sum(axis=0) / count_F
    spread_F = np.sqrt((np.where(known_NF, numbers_NF - mean_F, 0.0) ** 2).sum(axis=0) / count_F)
    return np.stack([mean_F, np.where(spread_F < _FEW, np.inf, spread_F)])


def _rows_of(features: Features, rows: NDArray[np.int64]) -> Features:
    return Features(
        features.prompt_tokens_N[rows],
        features.entropy_N[rows],
        features.hidden_last_ND[rows],
        features.hidden_mean_ND[rows],
    )


def _fit_ngrams(terms_ND: csr_array, seed: int) -> tuple[Array, Array]:
    queries = terms_ND.shape[0]
    seen_D = np.bincount(terms_ND.indices, minlength=HASHED)
    # A column that one query alone has tells it from all others, and nothing about any of them.
    idf_D = np.where(seen_D > 1, np.log((1.0 + queries) / (1.0 + seen_D)), 0.0)
    weighted = _weighted(terms_ND, idf_D)
    kept = min(_NGRAM_COMPONENTS, min(weighted.shape) - 1)
    if kept < 1 or not weighted.nnz or not np.abs(weighted.data).any():
        return idf_D, np.zeros((HASHED, 0))
    start = np.random.default_rng(seed).standard_normal(min(weighted.shape))
    left, singular, right = svds(weighted, k=kept, v0=start)
    kept_P = singular > 1e-3 * singular.max()
    # Half whitened, as the hidden states are; signs of components carry nothing for a kernel of distances.
    deviation_P = singular[kept_P] / np.sqrt(queries)
    directions_DP = right[kept_P].T * deviation_P**-0.5
    total = np.sqrt(((left[:, kept_P] * singular[kept_P] * deviation_P**-0.5) ** 2).sum(axis=1).mean())
    return idf_D, directions_DP * (np.sqrt(_WEIGHT["ngrams"]) / max(float(total), _FEW))


def _weighted(terms_ND: csr_array, idf_D: Array) -> csr_array:
    """Return the terms of each query, weighted, each row of length 1."""
    row_of = np.repeat(np.arange(terms_ND.shape[0]), np.diff(terms_ND.indptr))
    data = idf_D[terms_ND.indices]
    norm_N = np.sqrt(np.bincount(row_of, data**2, minlength=terms_ND.shape[0]))
    data = data / np.maximum(norm_N, _FEW)[row_of]
    return csr_array((data, terms_ND.indices, terms_ND.indptr), shape=terms_ND.shape)


def _given(tasks: Sequence[str] | None, queries: int) -> Sequence[str]:
    if tasks is None or len(tasks) != queries:
        raise ConfigError(
            "the estimate reads task labels, and there are none", "features", "task", "Give the input a column task."
        )
    return tasks


def _labelled(tasks: Sequence[str]) -> Array:
    """Return directions of the labels: the same one for the same label, nearly at right angles for any two others."""
    known = {task: position for position, task in enumerate(dict.fromkeys(tasks))}
    drawn = np.stack(
        [np.random.default_rng(crc32(task.encode())).standard_normal(_LABELS) for task in known] or [np.zeros(_LABELS)]
    )
    unit = drawn / np.sqrt((drawn**2).sum(axis=1, keepdims=True))
    found: Array = unit[[known[task] for task in tasks]] * np.sqrt(_WEIGHT["task"])
    return found
