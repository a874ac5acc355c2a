"""Right answers that were scored as wrong: gold as GSM8K publishes it, and letters as models write them."""

from __future__ import annotations

import pytest

from clear_ray.tasks import load_scorer
from clear_ray.tasks.scorers import NamedScorer

LETTERS = [
    "Answer: B", "B", "**B**", r"\boxed{B}", "Answer: (B)", "(B)", "Answer: B)", "B. Paris", "Answer: B. Paris",
    "The correct answer is B) Paris", "The answer is B: Paris", "The correct option is B", r"\boxed{\text{(B)}}",
    r"\boxed{\textbf{(B)}\ 12}",
]  # fmt: skip


@pytest.mark.parametrize("text", LETTERS)
@pytest.mark.parametrize("gold", ["B", "(B)", r"\text{(B)}"])
@pytest.mark.parametrize("scorer", ["exact", "choice", "math", "math_verify", "auto"])
def test_a_letter_is_a_letter(scorer: str, text: str, gold: str) -> None:
    assert load_scorer(scorer)(text, gold, None) == 1.0
    assert load_scorer(scorer)(text, gold.replace("B", "C"), None) == 0.0


@pytest.mark.parametrize(
    ("scorer", "text", "gold", "prompt", "score"),
    [
        ("number", "The answer is 12 more than 5, i.e., 17.", "17", "", 1),
        ("number", "The answer is 12 more than 5, i.e., 17.", "12", "", 0),
        ("number", "Answer: 12 more apples", "12", "", 1),
        ("number", "Answer: 1. Add 5 and 7\n2. The total is 12", "12", "", 1),
        ("number", "The answer is 12 = 5 + 7", "12", "", 1),
        ("number", "Answer: 8 dozen eggs - 560 eggs", "8", "", 0),
        ("number", "This final answer is the correct solution to 9 + 2 = 11.\nAnswer: 13", "11", "", 0),
        ("number", "Answer: 11\nThis final answer is the correct solution to the problem 9 + 2.", "11", "", 1),
        ("choice", "A: Paris", "B", "A) London\nB) Paris", 1),
        ("choice", "A: London", "A", "A) London\nB) Paris", 1),
        ("choice", "A: B", "B", "", 1),
    ],
)
def test_what_was_misread_once(scorer: str, text: str, gold: str, prompt: str, score: float) -> None:
    named = load_scorer(scorer)
    assert isinstance(named, NamedScorer)
    assert named.judge(text, gold, None, prompt=prompt).score == score


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Answer: 5", "5"),
        ("2+3=<<2+3=5>>5\n#### 5", "5"),
        ("The total is $29.00", "29"),
        ("Answer: 12 apples", "12"),
        ("**Answer**: 12", "12"),
        ("Answer: −3", "-3"),  # noqa: RUF001
        ("Answer：12", "12"),  # noqa: RUF001
    ],
)
@pytest.mark.parametrize("scorer", ["exact", "number", "math", "auto"])
def test_gold_as_gsm8k_publishes_it(scorer: str, text: str, number: str) -> None:
    for gold in (
        number,
        f"#### {number}",
        f"We add.\n1+1=<<1+1=2>>2\n#### {number}",
        f"so \\boxed{{{number}}}.",
        f'["{number}"]',
    ):
        assert load_scorer(scorer)(text, gold, None) == 1.0
        assert load_scorer(scorer)(text, gold.replace(number, number + "7"), None) == 0.0
