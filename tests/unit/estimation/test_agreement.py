from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clear_ray.estimation.agreement import agree

RESULTS = st.lists(st.sampled_from(["4", "5", "6", None]), max_size=8)


def test_the_most_frequent_result_is_kept() -> None:
    found = agree(["7", "4", None, "4"])
    assert found.chosen == 1
    assert found.right == (0.0, 1 / 3, None, 1 / 3)


def test_one_answer_says_nothing_of_itself() -> None:
    assert agree(["4"]).right == (None,)
    assert agree([None, None]).right == (None, None)
    assert agree([]).right == ()


@given(RESULTS)
def test_no_answer_agrees_better_than_the_one_that_is_kept(results: list[str | None]) -> None:
    found = agree(results)
    said = [value for value in found.right if value is not None]
    assert all(0.0 <= value <= 1.0 for value in said)
    if said:
        assert found.right[found.chosen] == max(said)


@given(RESULTS)
def test_the_order_of_answers_changes_no_verdict(results: list[str | None]) -> None:
    backwards = agree(results[::-1])
    assert backwards.right[::-1] == agree(results).right
