"""Degenerate loops: an answer that only repeats itself will not end by itself.

Source: ours. On the recorded rollouts three repeats over at least 24 tokens marked 31 of 1,592 answers, none of them
right, and 27 of the 103 that ran into their cap; see benchmarks/results/notebook.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

REPEATS = 3
LEAST_TOKENS = 24
LONGEST_PERIOD = 64


def loop_end(
    token_ids: Sequence[int],
    *,
    repeats: int = REPEATS,
    least_tokens: int = LEAST_TOKENS,
    longest_period: int = LONGEST_PERIOD,
) -> int | None:
    """Return after how many tokens an answer has shown itself to be in a loop; None if it never does.

    Args:
        token_ids: The answer's tokens.
        repeats: How often the same tokens must follow each other, at least 2.
        least_tokens: How many tokens the repeats must cover together, so that `1 1 1` or a row of dashes is no loop.
        longest_period: Most tokens of the part that repeats.
    """
    tokens = np.asarray(token_ids, np.int64)
    earliest: int | None = None
    for period in range(1, min(longest_period, len(tokens) // 2) + 1):
        is_same = tokens[period:] == tokens[:-period]
        needed = max(period * (repeats - 1), least_tokens - period)
        breaks = np.flatnonzero(~is_same)
        starts, ends = np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(is_same)]])
        long_enough = np.flatnonzero(ends - starts >= needed)
        if len(long_enough):
            end = int(starts[long_enough[0]]) + needed + period
            earliest = end if earliest is None else min(earliest, end)
    return earliest
