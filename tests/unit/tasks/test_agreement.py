"""Which answers agree with the others to the same query."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clear_ray.tasks.agreement import agreeing


def test_the_most_frequent_result_counts_if_two_give_it() -> None:
    results = ["4", "5", "4", "7", "8", None, "1", "1", "2", "2", None, None]
    queries = ["a", "a", "a", "b", "b", "b", "c", "c", "c", "c", "d", "d"]
    found = agreeing(queries, results)
    assert found == [True, False, True, False, False, False, True, True, True, True, False, False]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "2", None])), max_size=12))
def test_the_order_of_answers_says_nothing(answers: list[tuple[str, str | None]]) -> None:
    queries, results = [query for query, _ in answers], [result for _, result in answers]
    found = dict(zip(answers, agreeing(queries, results), strict=True))
    turned = answers[::-1]
    again = dict(zip(turned, agreeing([q for q, _ in turned], [r for _, r in turned]), strict=True))
    assert found == again
    assert not any(right for (_, result), right in found.items() if result is None)
