"""Extraction and comparison take any text, in time linear in its length, and never raise; equal answers are equal."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clear_ray.tasks import KINDS, Kind, canonical, extract, has_complete_answer, same_answer
from clear_ray.tasks.choices import options_of
from clear_ray.tasks.kinds import COMPARED_HERE, judge_here
from clear_ray.tasks.programs import tests_of as suite_of
from clear_ray.tasks.quantities import is_quantity, read_quantity
from clear_ray.tasks.thinking import without_thinking
from clear_ray.tasks.writing import same_name, words_of

PIECES = [
    "Answer:", "answer is", "**", "\\boxed{", "}", "####", " ", "\n", "12", "1,234", "$", "%", "B", "(B)", ")",
    "not ", "-", "=", "\\frac{1}{2}", "<think>", "</think>", "<answer>", "</answer>", "x", ".", "or", "and", "yes",
    "```python\n", "```\n", "{", '"a": 1', "[", "]", "\uff21", "\uff1a", "\u2212", "½", "million", "\\text{", "e",
    "^", "10", "true", ",", "/", "Paris", "¹", "\u0000", "😀",
]  # fmt: skip
answers = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
texts = st.one_of(answers, st.text(max_size=200))


@settings(max_examples=300, deadline=None)
@given(texts, texts, st.sampled_from(KINDS), texts)
@example("Answer: 1e999", "1e999", "number", "")
@example("\\boxed{" * 50, "{'ground_truth': " * 50, "exact", "A) \nB) ")
def test_no_text_and_no_gold_makes_a_scorer_raise(text: str, gold: str, kind: Kind, prompt: str) -> None:
    answer = extract(text, kind, prompt=prompt)
    assert answer is None or answer
    if answer is not None:
        assert same_answer(answer, answer, kind)
        assert isinstance(canonical(answer, kind), str)
    if kind != "code":
        verdict = judge_here(kind, text, gold, prompt=prompt)
        assert verdict.score in (None, 0.0, 1.0)
        assert verdict.reason
        assert verdict == judge_here(kind, text, gold, prompt=prompt)
    suite_of(gold, text, prompt)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@settings(max_examples=10_000, deadline=None)
@given(texts, texts, st.sampled_from(KINDS), texts)
def test_no_text_and_no_gold_makes_a_scorer_raise_for_long(text: str, gold: str, kind: Kind, prompt: str) -> None:
    extract(text, kind, prompt=prompt)
    suite_of(gold, text, prompt)
    if kind != "code":
        assert judge_here(kind, text, gold, prompt=prompt).score in (None, 0.0, 1.0)


@settings(max_examples=200, deadline=None)
@given(texts, texts, st.sampled_from(["number", "exact", "math", "json", "choice"]))
@example("B", "**B", "math")
def test_sameness_is_symmetric(one: str, other: str, kind: Kind) -> None:
    a, b = extract(one, kind), extract(other, kind)
    if a is not None and b is not None:
        assert same_answer(a, b, kind) == same_answer(b, a, kind)


UNITS = [
    "answer ", "answer is not ", "\\boxed{", "Answer: ", "1,", "* ", "$", "-1/1", " " * 50, "####", "\n#### x",
    "**a", "<think>", "</think>", "<answer>", "```\n", "~~~", "{", '{"a":', "[", "A) ", "\nB) x", "(A), ",
    "\\text{", "\\frac{", "1 ", "½", "is yes ", "1'000", "x = ", "or ", "_", "\\(", "\\[", "(", "e", "twenty ",
    "1 million ", "\r\n", "\u200b", "not ", "a" * 40, "def f(",
    "A and B, ", "the product of 4 and 9 ", "January 1, ", "antwort abc def ", "(about 3) ", "as neutral ", "1,5 ",
    "let me know. ", "as an ai, but the ", "x\n\n", "\nConfidence: ", "は日です", "(born 1961) ", "- a ", "1, or 5% ",
    "\\begin{cases}a\\\\", "six of the ", "<result>", "true - so ",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear_in_the_text(unit: str) -> None:
    # A quadratic scan of a hundred thousand characters takes half a minute at least; a linear one some tenths of a second.
    text = unit * (100_000 // len(unit))
    started = time.process_time()
    for kind in KINDS:
        extract(text, kind, prompt=text)
        extract(f"Answer: {text}", kind)
    has_complete_answer(text)
    assert time.process_time() - started < 10


@given(texts, st.integers(-(10**12), 10**12))
def test_the_last_marked_number_is_read_after_any_text(before: str, number: int) -> None:
    before = before.replace("<", "").replace("[THINK]", "")
    assert extract(f"{before}\n\\boxed{{{number}}}", "number") == str(number)
    verdict = judge_here("number", f"{before}\n\\boxed{{{number}}}", f"{number:,}")
    assert verdict.score == 1.0


@given(st.integers(0, 10**9), st.integers(0, 10**9))
@example(1_000_000_000, 1)
@example(12_345, 12)
def test_two_whole_numbers_are_the_same_only_if_they_are(one: int, other: int) -> None:
    for text in (
        f"Answer: {one}",
        f"So it is {one:,}.",
        f"**Answer:** ${one:,}.00",
        f"#### {one}",
        f"\\boxed{{{one} \\text{{ m}}}}",
    ):
        assert judge_here("number", text, str(other)).score == float(one == other)
        assert judge_here("exact", text, str(other)).score == float(one == other)


@given(st.sampled_from("ABCDE"), st.sampled_from("ABCDE"))
def test_a_letter_is_right_however_it_is_written(one: str, other: str) -> None:
    for form in (
        "Answer: {}",
        "({})",
        "{}) text",
        "**{}**",
        "The correct answer is {}.",
        "\\boxed{{\\text{{({})}}}}",
        "{}. It is so.",
    ):
        for kind in ("choice", "exact"):
            assert judge_here(kind, form.format(one), other).score == float(one == other)  # type: ignore[arg-type]


@given(st.text(max_size=50), st.sampled_from(KINDS))
def test_thinking_does_not_count(guess: str, kind: Kind) -> None:
    said = "```python\nx = 12\n```" if kind == "code" else "Answer: 12"
    assert extract(f"<think>{guess} {said}", kind) is None
    assert extract(f"{guess.replace('<', '')}</think>{said}", kind) == extract(said, kind)


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("plain", "plain"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<think>a", None),
        ("<THINK>a</THINK>b", "b"),
        ("<thinking>a</thinking>b", "b"),
        ("[THINK]a[/THINK]b", "b"),
        ("◁think▷a◁/think▷b", "b"),
        ("<|channel|>analysis<|message|>a", None),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>", "b"),
        ("analysisa.assistantfinalb", "b"),
        ("analysis of a poem", "analysis of a poem"),
        ("b<|im_end|>\n", "b"),
    ],
)
def test_what_is_thought_is_cut(text: str, visible: str | None) -> None:
    assert without_thinking(text) == visible


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("Q?\nA) one\nB) two", {"A": "one", "B": "two"}),
        ("Q? (A) one (B) two (C) three", {"A": "one", "B": "two", "C": "three"}),
        ("Q?\nA. one\nB. two\nAnswer: A\n\nQ?\nA. three\nB. four\nAnswer:", {"A": "three", "B": "four"}),
        ("Q?\n1. one\n2. two", {"1": "one", "2": "two"}),
        ("Plan A: go. Plan B: stay", {}),
        ("", {}),
        ("A) only", {}),
    ],
)
def test_options_are_read_from_the_prompt(prompt: str, options: dict[str, str]) -> None:
    assert options_of(prompt) == options
    messages = [
        {"role": "user", "content": "A) x\nB) y"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": prompt},
    ]
    assert options_of(json.dumps(messages), is_conversation=True) == options


@pytest.mark.parametrize(
    ("one", "other", "kind", "same"),
    [
        ("1,234.50", "$1234.5", "number", True),
        ("50%", "0.5", "number", True),
        ("12 km", "12 m", "number", False),
        ("Paris", "paris.", "exact", True),
        ("Paris", "London", "exact", False),
        ("\\frac{1}{2}", "0.5", "math", True),
        ("\\dfrac12", "\\frac{1}{2}", "math", True),
        ("x+1", "1+x", "math", False),  # that takes math-verify
        ("B", "B", "choice", True),
        ("A,C", "B", "choice", False),
        ("(B)", "B", "exact", True),
        ("B", "C", "exact", False),
        ("yes", "True", "exact", True),
        ('{"a": 1.0, "b": [2]}', '{"b": [2.0], "a": 1}', "json", True),
        ('{"a": 1}', '{"a": true}', "json", False),
        ('{"a": 1}', '{"a": "1"}', "json", False),
        ("[1, 2]", "[2, 1]", "json", False),
        ("two dozen", "24", "number", True),
    ],
)
def test_same_answers_have_one_key(one: str, other: str, kind: Kind, same: bool) -> None:
    assert same_answer(one, other, kind) is same
    if not same:
        assert kind == "number" or canonical(one, kind) != canonical(other, kind)


def test_a_proof_may_be_asked_for() -> None:
    asked: list[tuple[str, str]] = []

    def prove(answer: str, gold: str) -> bool:
        asked.append((answer, gold))
        return True

    assert same_answer("x+1", "1+x", "math", prove=prove)
    assert asked == [("x+1", "1+x")]
    assert not same_answer("Paris", "Spair", "math", prove=prove)
    assert len(asked) == 1


@given(st.text())
def test_words_levelled_twice_are_levelled_once(text: str) -> None:
    word = "".join(letter for letter in text.lower() if letter.isascii() and letter.isalnum())
    assert words_of(words_of(word)) == words_of(word)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**6), max_value=10**6))
def test_a_decimal_is_read_exactly(value: Any) -> None:
    quantity = read_quantity(str(value))
    assert quantity is not None
    assert quantity.value == value
    assert is_quantity(str(value))


def test_kinds_that_are_compared_here_need_no_process() -> None:
    assert set(COMPARED_HERE) < set(KINDS)


@pytest.mark.parametrize("number", ["12{,}345", "12,345", "12345", r"12\,345"])
def test_thousands_are_one_number_however_latex_writes_them(number: str) -> None:
    assert same_answer(number, "12345", "number")
    assert not same_answer(number, "12", "number")
    assert extract(f"The answer is {number}.", "number") is not None


@pytest.mark.parametrize("kind", ["exact", "number", "choice", "math"])
@pytest.mark.parametrize(
    "text",
    ["I cannot tell.", "I'm sorry, but I can't answer that: 7 or B?", "Answer: N/A", "I do not know.", "Not sure"],
)
def test_a_refusal_is_no_answer_and_so_none_that_others_agree_with(text: str, kind: Kind) -> None:
    assert extract(text, kind, prompt="Which?\nA. One\nB. Two") is None


def test_what_is_said_of_the_world_and_a_guess_are_answers() -> None:
    assert extract("Answer: unknown", "exact") == "unknown"
    assert extract("It cannot be determined.", "exact") == "It cannot be determined"
    assert extract("I'm not sure, but I think it is 12.", "number") == "12"


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("World War Two", "World War II", True),
        ("Apollo 11", "Apollo XI", True),
        ("Henry VIII", "Henry VII", False),
        ("Vitamin C", "Vitamin D", False),
        ("II", "2", False),
        ("Jose Saramago", "José Saramago", True),
        ("Brasilia", "Brasília", True),
        ("schon", "schön", False),
        ("Mutter", "Mütter", False),
        ("ano", "año", False),
    ],
)
def test_a_name_is_the_same_without_its_accents_and_by_another_numeral(one: str, other: str, is_same: bool) -> None:
    assert same_name(one, other) is same_name(other, one) is is_same
