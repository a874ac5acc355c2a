"""Right answers that were scored as wrong: gold as GSM8K publishes it, and letters as models write them."""

from __future__ import annotations

import pytest

from clear_ray.tasks import load_scorer

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
