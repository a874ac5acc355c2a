"""Answers forced at the end of their grants."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clear_ray.engine import Grant
from clear_ray.engine.closing import Closing
from clear_ray.errors import ConfigError
from tests.unit.engine.decode_loop import decode
from tests.unit.engine.tiny import END, VOCABULARY, answer_for, run_batch, slot_batch, tiny_model

CLOSING = (50, 51)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def closing_with(reserve: int) -> Closing:
    def text_of(token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))

    return Closing(reserve, CLOSING, text_of, "50 51")


@settings(deadline=None, max_examples=40)
@given(
    asked=st.lists(
        st.tuples(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8), st.integers(1, 20)),
        min_size=1,
        max_size=6,
    ),
    reserve=st.integers(3, 8),
)
def test_an_unfinished_answer_is_cut_closed_and_goes_on(
    model: Any, asked: list[tuple[list[int], int]], reserve: int
) -> None:
    answers = [answer_for(Grant(f"q{i}", "", limit), ids) for i, (ids, limit) in enumerate(asked)]
    run_batch(slot_batch(model, closing=closing_with(reserve)), answers)
    plain = decode(model, [answer.grant for answer in answers], [ids for ids, _ in asked], end_token_ids=END)
    for answer, (ids, limit), untouched in zip(answers, asked, plain, strict=True):
        cut = limit - reserve
        if cut < 1 or (len(untouched) <= cut + 1 and untouched[-1] in END):
            assert tuple(answer.generated) == untouched
            continue
        head = untouched[:cut]
        if (50, 51) in itertools.pairwise(head):
            continue
        rest = Grant(answer.grant.query_id, "", reserve - len(CLOSING), prefix_token_ids=head + CLOSING)
        tail = decode(model, [rest], [[*ids, *head, *CLOSING]], end_token_ids=END)[0]
        assert tuple(answer.generated) == head + CLOSING + tail
        assert len(answer.generated) <= limit


def test_an_answer_is_not_closed_twice(model: Any) -> None:
    prefix = (9, 50, 51, 8)
    grant = Grant("q", "", 12, prefix_token_ids=prefix)
    answer = answer_for(grant, [5, 6])
    run_batch(slot_batch(model, closing=closing_with(5), end_token_ids=frozenset()), [answer])
    plain = decode(model, [grant], [[5, 6, *prefix]], end_token_ids=frozenset())[0]
    assert tuple(answer.generated) == plain


@pytest.mark.parametrize("reserve", [0, 1, 2])
def test_a_reserve_without_room_for_an_answer_is_refused(reserve: int) -> None:
    with pytest.raises(ConfigError, match="closing text takes 2 tokens"):
        closing_with(reserve)
