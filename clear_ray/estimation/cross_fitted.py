"""Several heads, one for each fold: each query is predicted by the head that has not seen it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from clear_ray.engine.base import Features, Prompt
from clear_ray.errors import ConfigError
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.head import Arrays, Head, HeadCard, arrays_of, head_from_json, head_to_json
from clear_ray.estimation.observations import take_features

UNKNOWN = -1


class CrossFittedHead(Head):
    """A head for honest replay of the rollouts it was fitted on.

    Args:
        card: Where the heads come from; its kind is `cross_fitted`.
        fold_heads: One head a fold, fitted on the queries of all other folds.
        whole_head: A head fitted on all queries, for those in no fold.
        folds: Query id to fold.
    """

    def __init__(
        self, card: HeadCard, *, fold_heads: Sequence[Head], whole_head: Head, folds: Mapping[str, int]
    ) -> None:
        bad = sorted(set(folds.values()) - set(range(len(fold_heads))))
        if bad:
            raise ConfigError(f"folds must be 0 to {len(fold_heads) - 1}", "folds", str(bad[0]))
        super().__init__(card)
        self._heads, self._folds = (*fold_heads, whole_head), dict(folds)

    def curves(self, features: Features, prompts: Sequence[Prompt], query_ids: Sequence[str]) -> Curves:
        """Estimate each query with the head that was not fitted on it."""
        fold_N = np.array([self._folds.get(query_id, UNKNOWN) for query_id in query_ids], np.int64)
        parts: list[Curves] = []
        order: list[int] = []
        for fold in np.unique(fold_N) if len(fold_N) else [UNKNOWN]:
            rows = np.flatnonzero(fold_N == fold).tolist()
            head = self._heads[fold]
            ids = [query_ids[row] for row in rows]
            parts.append(head.curves(take_features(features, rows), [prompts[row] for row in rows], ids))
            order += rows
        back = np.argsort(order)
        return Curves.concatenate(parts).take(back)

    def arrays(self) -> Arrays:
        """Return the arrays of all heads, each under its number."""
        return {f"{i}/{name}": array for i, head in enumerate(self._heads) for name, array in head.arrays().items()}

    def settings(self) -> dict[str, Any]:
        """Return folds, and card and settings of every head."""
        return {"folds": self._folds, "heads": [head_to_json(head) for head in self._heads]}

    @classmethod
    def restore(cls, card: HeadCard, arrays: Arrays, settings: dict[str, Any]) -> Self:
        """Make the heads again."""
        stored = settings["heads"]
        heads = [head_from_json(each, arrays_of(str(i), arrays, mark="/")) for i, each in enumerate(stored)]
        return cls(card, fold_heads=heads[:-1], whole_head=heads[-1], folds=settings["folds"])
