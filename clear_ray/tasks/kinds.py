"""The kinds of scorers: what of a text is the answer (`extract`), and when two answers are the same (`same_answer`).

Every kind reads in two steps that know nothing of each other: the answer is extracted, by the kind's rule, from the text
without its thinking; then it is compared with the gold answer, which was prepared by the same rule. `extract` and
`same_answer` serve without any gold, too: to group equal answers of several samples. docs/scoring.md has the rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Literal, get_args

import regex

from clear_ray.tasks.choices import (
    Options,
    find_choice,
    is_choice,
    label_of,
    options_of,
    read_choice,
    undetermined_option,
)
from clear_ray.tasks.dates import moment_of, moments_in
from clear_ray.tasks.denials import denies
from clear_ray.tasks.formulas import canonical_mathematics
from clear_ray.tasks.gold import Reference, look_of, reference_of, short_answer, unwrapped_gold
from clear_ray.tasks.marks import Located, locate
from clear_ray.tasks.mathematics import (
    Prove,
    equal_mathematics,
    is_any_order,
    letter_of,
    read_mathematics,
    says_none,
)
from clear_ray.tasks.programs import read_program
from clear_ray.tasks.quantities import Quantity, is_quantity, read_quantity
from clear_ray.tasks.readings import readings
from clear_ray.tasks.refusals import is_undetermined, refuses
from clear_ray.tasks.sentences import adds_just, says_the_same
from clear_ray.tasks.structured import NOTHING, equal_json, levelled, read_json
from clear_ray.tasks.turns import own_answer
from clear_ray.tasks.verdict import BAD_GOLD, NO_ANSWER, NO_GOLD, TIMED_OUT, Verdict
from clear_ray.tasks.wordings import (
    concise,
    elements_of,
    is_unsure,
    last_line,
    line_answer,
    listed_answer,
    phrase_answers,
    read_truth,
    truth_of,
)
from clear_ray.tasks.writing import plain, question_of, same_name, shortened, tidy, unwrapped, words_of

Kind = Literal["exact", "number", "choice", "math", "regex", "json", "code"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COMPARED_HERE: tuple[Kind, ...] = ("exact", "number", "choice", "json")
"""Kinds that are judged in this process, in microseconds."""

_PATTERN_SECONDS = 1.0
_LONGEST = 1 << 20
_SAID_AGAIN = re.compile(r",? (?:i\.e\.|that is|or equivalently),? [^\n]{1,200}\Z")
_NOT_THEN = re.compile(r"\b(?:before|after|not|until|since) (?:the )?(?=\d|[A-Z][a-z]{2,9}\.? \d)")


def extract(text: str, kind: Kind, *, prompt: str = "", is_conversation: bool = False) -> str | None:
    """Return the final answer of a generated text as a kind reads it; None if it holds none. Never raises, whatever the text.

    Args:
        text: What the model wrote.
        kind: One of `KINDS`.
        prompt: The question, from which `choice` reads its options; JSON messages if it is a conversation.
        is_conversation: Whether it is.
    """
    visible = own_answer(text)
    if visible is None:
        return None
    if kind == "code":
        return read_program(visible) or None
    if kind == "json":
        value = read_json(visible)
        return None if value is NOTHING else json.dumps(value, ensure_ascii=False, sort_keys=True)
    located = locate(plain(visible))
    if kind != "regex" and refuses(_said_last(located)):
        return None
    if kind == "number":
        quantity = next(_quantities_of(located), None)
        return None if quantity is None else quantity.text
    if kind == "choice":
        return _choice_of(located, options_of(prompt, is_conversation=is_conversation))
    if kind == "math":
        return read_mathematics(located.marked, located.rest)
    answer = line_answer(located)
    if kind == "exact" and located.marked is not None and located.marked.how == "said":
        answer = concise(answer)
    return answer or None


def canonical(answer: str, kind: Kind) -> str:
    """Return a key under which equal extracted answers are grouped.

    For `number` a unit does not count, since a sample may leave it out; for `math` only what the writing tells is equal, so
    that two formulas of one value may have two keys. `same_answer` knows more and costs more.

    Args:
        answer: What `extract` returned.
        kind: By which it was extracted.
    """
    if kind in ("number", "exact", "math") and is_quantity(answer) and (quantity := read_quantity(answer)) is not None:
        return str(quantity.value)
    if kind == "math":
        return canonical_mathematics(answer)
    if kind == "exact" and is_choice(answer):
        return label_of(answer, {}) or words_of(answer)
    if kind in ("exact", "number"):
        return truth_of(answer) or words_of(answer)
    if kind == "json" and (value := read_json(answer)) is not NOTHING:
        return json.dumps(levelled(value), ensure_ascii=False, sort_keys=True)
    return answer.strip()


def same_answer(one: str, other: str, kind: Kind, *, prove: Prove | None = None) -> bool:
    """Tell whether two extracted answers are the same.

    Args:
        one: What `extract` returned.
        other: As `one`, for another text.
        kind: By which both were extracted.
        prove: For `math`, asked whether two formulas are equal where their writing does not tell; not asked if not given.
    """
    if kind in ("number", "exact"):
        return _same_words(one, other) or (
            not (is_quantity(one) and is_quantity(other)) and canonical(one, kind) == canonical(other, kind)
        )
    if canonical(one, kind) == canonical(other, kind):
        return True
    if kind == "math":
        # A reference is read more kindly than an answer; of two answers either may be the one.
        pairs = ((one, other), (other, one))
        return any(equal_mathematics(*pair, prove=prove or (lambda a, g: False)) for pair in pairs)
    return False


def judge_here(
    kind: Kind,
    text: str,
    gold: str | None,
    *,
    prompt: str = "",
    is_conversation: bool = False,
    prove: Prove | None = None,
) -> Verdict:
    """Score a text against a gold answer by any kind but `code`, which needs a sandbox.

    Args:
        kind: By which to score.
        text: What the model wrote.
        gold: The reference, in any shape that `gold` reads; None gives no score.
        prompt: The question, for the options of `choice` and for `any order`.
        is_conversation: Whether `prompt` is JSON messages.
        prove: For `math`; see `equal_mathematics`.
    """
    if gold is None:
        return Verdict(None, NO_GOLD)
    if kind == "regex":
        return _judge_regex(text, unwrapped_gold(gold))
    if kind == "json":
        return _judge_json(text, gold)
    reference = reference_of(gold, are_numbers_a_list=kind in ("exact", "math"))
    needs_options = kind == "choice" or (kind == "exact" and any(map(is_choice, map(short_answer, reference.answers))))
    options = options_of(prompt, is_conversation=is_conversation) if needs_options else {}
    if not can_read(reference, kind, options):
        return Verdict(None, BAD_GOLD)
    visible = own_answer(text)
    if visible is None:
        return Verdict(0.0, NO_ANSWER)
    located = locate(plain(visible[-_LONGEST:]))
    if refuses(_said_last(located)):
        return _judge_refusal(kind, located, reference, options)
    if kind == "math":
        verdict = _judge_math(located, reference, prompt, prove or (lambda a, g: False))
        before = _SAID_AGAIN.split(located.rest)[0]
        if verdict.score or located.marked is not None or before == located.rest:
            return verdict
        again = _judge_math(Located(None, before), reference, prompt, prove or (lambda a, g: False))
        return again if again.score else verdict  # 60 degrees, i.e. a third of pi
    if reference.is_set:
        return _judge_set(located, reference)
    verdict = Verdict(0.0, NO_ANSWER)
    for wanted in map(short_answer, reference.answers):
        found, is_right = _compared(kind, located, wanted, options)
        if not is_right and kind == "exact" and located.marked is None and prompt:
            is_right = adds_just(last_line(located.rest), wanted, question_of(prompt, is_conversation=is_conversation))
        if is_right:
            return Verdict.of(True, found)
        verdict = Verdict.of(False, found) if verdict.answer is None else verdict
    return verdict


def can_read(reference: Reference, kind: Kind, options: Options | None = None) -> bool:
    """Tell whether a kind can compare anything with a reference."""
    answers = [short_answer(answer) for answer in reference.answers]
    if kind == "number":
        return any(_wanted_quantity(answer) is not None for answer in answers)
    if kind == "choice":
        return any(label_of(answer, options or {}) is not None for answer in answers)
    return any(answers)


def _compared(kind: Kind, located: Located, wanted: str, options: Options) -> tuple[str | None, bool]:
    """Return what a kind reads in a text for one accepted answer, and whether it is that answer."""
    look = kind if kind != "exact" else look_of(wanted)
    if look == "number":
        quantities, gold = list(_quantities_of(located)), _wanted_quantity(wanted)
        for quantity in quantities:
            if gold is not None and quantity.equals(gold):
                return quantity.text, True
        if kind == "number":
            return (quantities[0].text if quantities else None), False
    elif look == "choice":
        label = _choice_of(located, options)
        if label is not None or kind == "choice":
            return label, label is not None and label == label_of(wanted, options)
    elif look == "truth":
        truth = read_truth(located)
        if truth is not None or is_unsure(located):
            return truth, truth == truth_of(wanted)
    elif look == "date":
        line = _said_last(located)
        days = set(moments_in(line))
        days = days if len(days) == 1 else set(moments_in(line.rpartition(";")[2]))
        if len(days) == 1 and not denies(line) and not _NOT_THEN.search(line):
            return tidy(line), bool(days.pop() & moment_of(short_answer(wanted)))
    return _compared_words(located, wanted)


def _compared_words(located: Located, wanted: str) -> tuple[str | None, bool]:
    words = words_of(wanted)
    phrases = list(phrase_answers(located))
    listed = [words_of(part) for part in elements_of(wanted)]
    if len(listed) > 1 and [words_of(line) for line in listed_answer(located)] == listed:
        return wanted, True
    for phrase in phrases:
        if len(listed) > 1 and [words_of(part) for part in elements_of(phrase)] == listed:
            return phrase, True
        if phrase and (tidy(phrase) == tidy(wanted) or (words and same_name(phrase, wanted))):
            return phrase, True
    said = _said_last(located)
    if _is_listed_without_commas(wanted):
        lines = [line for line in located.rest.split("\n") if line.strip()][-len(words.split()) :]
        for parts in (listed_answer(located), lines, elements_of(said.rpartition(": ")[2])):
            if [words_of(part) for part in parts] == words.split():
                return wanted, True
    if (is_undetermined(wanted) and is_undetermined(said)) or says_the_same(said, wanted):
        return tidy(said), True
    return next((phrase for phrase in phrases if phrase), None), False


def _is_listed_without_commas(wanted: str) -> bool:
    """Tell a reference that is words with spaces between them, as sorting words has it."""
    return re.fullmatch(r"[^\W\d_]+(?: [^\W\d_]+){2,40}", wanted) is not None


def _said_last(located: Located) -> str:
    """Return the line that holds the answer, if there is one."""
    if located.marked is None:
        return last_line(located.rest)
    return located.marked.text.strip().partition("\n")[0] if located.marked.how == "said" else located.marked.text


def _judge_refusal(kind: Kind, located: Located, reference: Reference, options: Options) -> Verdict:
    """Judge a text that gives no answer, which only a reference that says just that accepts."""
    said = words_of(_said_last(located))
    if kind == "choice" and is_undetermined(said) and (label := undetermined_option(options)) is not None:
        return Verdict.of(label in (label_of(wanted, options) for wanted in reference.answers), label)
    is_it = kind == "exact" and any(
        words_of(wanted) == said or (is_undetermined(wanted) and is_undetermined(said)) for wanted in reference.answers
    )
    return Verdict.of(True, tidy(_said_last(located))) if is_it else Verdict(0.0, NO_ANSWER)


def _same_words(one: str, other: str) -> bool:
    if words_of(one) == words_of(other):
        return True
    if is_quantity(one) and is_quantity(other):
        left, right = read_quantity(one), read_quantity(other)
        return left is not None and right is not None and left.equals(right)
    return False


def _quantities_of(located: Located) -> Iterator[Quantity]:
    if located.marked is None:
        return readings(located.rest, is_marked=False)
    return readings(located.marked.text, is_marked=True, around=located.rest)


def _choice_of(located: Located, options: Options) -> str | None:
    return (
        read_choice(located.marked.text, options) if located.marked is not None else find_choice(located.rest, options)
    )


def _wanted_quantity(gold: str) -> Quantity | None:
    return next(readings(gold, is_marked="\n" not in gold), None)


def _judge_math(located: Located, reference: Reference, prompt: str, prove: Prove) -> Verdict:
    answer = read_mathematics(located.marked, located.rest)
    any_order = is_any_order(prompt)
    is_late = False
    golds = list(map(short_answer, reference.answers))
    for gold in ["{" + ",".join(golds) + "}"] if reference.is_set else golds:
        if (wanted := letter_of(gold)) is not None:
            label = _choice_of(located, {})
            equal: bool | None = label == wanted
            answer = label or answer
        else:
            equal = bool(answer) and equal_mathematics(answer or "", gold, prove=prove, any_order=any_order)
        if equal or says_none(_said_last(located), gold) or _is_same_moment(answer, gold):
            return Verdict.of(True, answer)
        if not equal and _is_words(gold) and (found := _compared_words(located, tidy(unwrapped(gold))))[1]:
            return Verdict.of(True, found[0])
        is_late = is_late or equal is None
    return Verdict(0.0, TIMED_OUT, answer) if is_late else Verdict.of(False, answer or None)


def _is_same_moment(answer: str | None, gold: str) -> bool:
    """Tell a date or a time of the day that is the same, however it is written."""
    texts = [" ".join(tidy(unwrapped(text)).split()) for text in (answer or "", gold)]
    return all(look_of(text) == "date" for text in texts) and bool(moment_of(texts[0]) & moment_of(texts[1]))


def _is_words(gold: str) -> bool:
    r"""Tell an answer in words, `\text{even}`, from a formula."""
    return re.fullmatch(r"[^\W\d_]{3,20}(?: [^\W\d_]{1,20}){0,5}", tidy(unwrapped(gold))) is not None


def _judge_set(located: Located, reference: Reference) -> Verdict:
    lists = [listed_answer(located), *map(elements_of, phrase_answers(located))]
    for elements in filter(None, lists):
        if _is_all_of(elements, reference.answers):
            return Verdict.of(True, ", ".join(elements))
    answer = line_answer(located)
    return Verdict.of(False, answer) if answer else Verdict(0.0, NO_ANSWER)


def _is_all_of(elements: list[str], wanted_ones: tuple[str, ...]) -> bool:
    left = list(elements)
    for wanted in wanted_ones:
        match = next((part for part in left if _same_words(tidy(part), wanted)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def _judge_regex(text: str, pattern: str) -> Verdict:
    try:
        compiled = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError, MemoryError):
        return Verdict(None, BAD_GOLD)
    visible = own_answer(text)
    if not visible or not visible.strip():
        return Verdict(0.0, NO_ANSWER)
    located = locate(plain(visible[-_LONGEST:]))
    searched = line_answer(located) if located.marked is not None else located.rest
    try:
        found = compiled.search(searched, timeout=_PATTERN_SECONDS, concurrent=True)
    except TimeoutError:
        return Verdict(0.0, TIMED_OUT, shortened(searched, 200))
    return Verdict.of(found is not None, shortened(searched if located.marked else last_line(searched), 200))


def _judge_json(text: str, gold: str) -> Verdict:
    wanted = read_json(gold)
    if wanted is NOTHING:
        return Verdict(None, BAD_GOLD)
    visible = own_answer(text)
    value = NOTHING if visible is None else read_json(visible)
    if value is NOTHING:
        return Verdict(0.0, NO_ANSWER)
    try:
        return Verdict.of(equal_json(value, wanted), shortened(json.dumps(value, ensure_ascii=False), 1_000))
    except RecursionError:
        return Verdict(0.0, TIMED_OUT)


def as_kind(name: str) -> Kind | None:
    """Return a scorer's name as a kind; None if it is none."""
    return next((kind for kind in KINDS if kind == name), None)
