"""Which answers agree with the others to the same query: what stands in for a scorer where several were sampled."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

_FEWEST = 2


def agreeing(query_ids: Sequence[str], results: Sequence[str | None]) -> list[bool]:
    """Return whether each answer gives the result that most answers to its query give, two of them at least.

    Where two results are as frequent, both count. An answer without a result agrees with none.

    Args:
        query_ids: Query of each answer.
        results: What each answer comes to, equal ones written the same; None for none.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for query_id, result in zip(query_ids, results, strict=True):
        if result is not None:
            counts[query_id][result] += 1
    most = {query_id: max(each.values()) for query_id, each in counts.items()}
    return [
        result is not None and counts[query_id][result] == most[query_id] >= _FEWEST
        for query_id, result in zip(query_ids, results, strict=True)
    ]
