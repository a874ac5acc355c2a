from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clear_ray.engine import Grant
from clear_ray.serve.routing import TokenCount, tokens_of


def test_the_fewest_tokens_come_first_and_among_equals_the_fewest_calls() -> None:
    count = TokenCount()
    count.send("a", "long", 400)
    for number in range(5):
        count.send("b", f"short{number}", 10)
    assert count.ranked(["a", "b", "c"]) == ["c", "b", "a"]
    count.send("c", "probe", 0)
    assert count.ranked(["c", "d"]) == ["d", "c"]


def test_a_call_counts_from_its_choice_to_its_end() -> None:
    count = TokenCount()
    assert count.choose("call", "a", 100)
    assert count.tokens("a") == 100
    assert not count.choose("call", "b", 100)  # the first one was full
    assert (count.tokens("a"), count.tokens("b")) == (0, 100)
    count.drop("call")
    count.send("b", "name", 100)
    assert count.tokens("b") == 100
    count.end("a", "name")  # not there
    count.end("b", "name")
    count.end("b", "name")  # told twice
    assert count.tokens("b") == 0


def test_calls_of_one_name_end_in_the_order_in_which_they_were_sent() -> None:
    count = TokenCount()
    for tokens in (0, 30, 30):  # a probe and two choices of one query
        count.send("a", "query", tokens)
    count.end("a", "query")
    assert count.tokens("a") == 60


def test_a_replica_that_is_gone_is_forgotten() -> None:
    count = TokenCount()
    count.send("a", "name", 100)
    count.choose("call", "a", 50)
    count.keep(["b"])
    assert count.tokens("a") == 0
    count.drop("call")
    count.end("a", "name")
    assert count.tokens("a") == 0


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(2, 5))
def test_no_replica_is_ahead_by_more_than_one_grant(grants: list[int], replicas: int) -> None:
    """Long grants do not pile up: each goes to the least of all, so the spread never exceeds the longest grant."""
    count, names = TokenCount(), list(range(replicas))
    for number, tokens in enumerate(grants):
        count.send(count.ranked(names)[0], number, tokens)
    spread = [count.tokens(name) for name in names]
    assert max(spread) - min(spread) <= max(grants)
    assert sum(spread) == sum(grants)


def test_a_call_weighs_what_its_grant_may_generate() -> None:
    assert tokens_of([Grant("q", "", 70), (), 16, 0]) == 70
    assert tokens_of(["q", "a prompt"]) == 0


def test_a_call_weighs_what_it_has_bought_once_that_is_known() -> None:
    count = TokenCount()
    count.send("a", "query", 400)
    count.send("a", "other", 10)
    count.reweigh("a", "query", 400, 30)
    assert count.tokens("a") == 40
    count.end("a", "query")
    count.reweigh("a", "query", 30, 7)  # over already
    assert count.tokens("a") == 10
