from __future__ import annotations

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.estimation.loops import loop_end
from tests.conftest import ROLLOUTS


def is_looping(tokens: list[int], *, repeats: int, least_tokens: int, longest_period: int) -> bool:
    """Whether the end of the answer is a loop, by the definition."""
    for period in range(1, longest_period + 1):
        covered = max(period * repeats, least_tokens)
        tail = tokens[-covered:]
        if len(tokens) >= covered and all(tail[i] == tail[i - period] for i in range(period, covered)):
            return True
    return False


@given(
    st.lists(st.integers(0, 2), max_size=40), st.integers(2, 4), st.integers(1, 16), st.integers(1, 8)
)  # few different tokens, so that there are loops
@settings(max_examples=200, deadline=None)
def test_the_end_is_the_first_prefix_that_is_a_loop(
    tokens: list[int], repeats: int, least_tokens: int, longest_period: int
) -> None:
    limits = {"repeats": repeats, "least_tokens": least_tokens, "longest_period": longest_period}
    ends = [end for end in range(1, len(tokens) + 1) if is_looping(tokens[:end], **limits)]
    assert loop_end(tokens, **limits) == (ends[0] if ends else None)


def test_no_recorded_answer_that_is_right_would_be_stopped() -> None:
    rows = pq.read_table(
        ROLLOUTS / "rollouts.parquet", columns=["token_ids", "correct", "finish_reason", "output_tokens"]
    ).to_pylist()
    right = [row for row in rows if row["correct"] and row["finish_reason"] == "stop"]
    cut = [row for row in rows if row["finish_reason"] == "length"]
    assert not any(loop_end(row["token_ids"]) for row in right)
    assert sum(loop_end(row["token_ids"]) is not None for row in cut) == 27
