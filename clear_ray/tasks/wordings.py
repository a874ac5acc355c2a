"""Answers in words: names, phrases, yes and no."""

from __future__ import annotations

import re
from collections.abc import Iterator

from clear_ray.tasks.clauses import is_inserted
from clear_ray.tasks.denials import is_denied
from clear_ray.tasks.marks import Located
from clear_ray.tasks.sentences import apposed, asserted
from clear_ray.tasks.writing import bold_spans, first_sentence, tidy, unexplained, words_of

_FEW_WORDS, _TAIL_WORDS, _SHORT_WORDS = 3, 6, 8
_LONGEST = 4_000
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_ASIDE = re.compile(r"\s*\([^()]{1,200}\)\W{0,3}\Z")
_COPULA = re.compile(r"(?: (?:is|are|was|were|equals|named|called|be)|\b[Ii]t's|\b[Tt]hat's)[: ] ?")
_TRUTH = {"yes": True, "true": True, "correct": True, "no": False, "false": False, "incorrect": False}
_YES = (
    "ja", "oui", "sí", "sì", "sim", "да", "так", "evet", "tak", "はい", "네", "예", "是", "是的", "对", "正确", "vrai",
    "richtig", "wahr", "verdadero", "vero", "verdadeiro", "نعم", "हाँ", "ya", "có",
)  # fmt: skip
_NO = (
    "nein", "non", "não", "nee", "nej", "nie",
    "hay\u0131r", "нет", "ні", "いいえ", "아니요", "아니오", "不", "否", "不是", "错误",
    "faux", "falsch", "falso", "لا", "नहीं", "tidak", "không",
)  # fmt: skip
_SURELY = {
    **dict.fromkeys(
        ["absolutely", "definitely", "certainly", "indeed", "of course", "yep", "yeah", "yup", "exactly"], True
    ),
    **dict.fromkeys(
        ["absolutely not", "definitely not", "certainly not", "of course not", "nope", "not at all"], False
    ),
}
_ABROAD = {**dict.fromkeys(_YES, True), **dict.fromkeys(_NO, False)}
_QUOTED_LINE = re.compile(r"\A(?:> ?)+(?=\S)")
_HEDGED = re.compile(
    r"(?:most likely|(?:very )?likely|probably|perhaps|maybe|possibly|i (?:think|believe|guess|would say)|i'd say)"
    r"(?: (?:it's|it is|it was|that))?,? (?=\S)",
    re.IGNORECASE,
)
_BULLET = re.compile(r"\s*(?:[-*\u2022\u2013+] |\d{1,2}[.)] )")
_TRUE_OR_FALSE = re.compile(
    r"\W{0,4}(?:(?:it|that|this)(?:'s| is) )?(?P<word>yes|no|true|"
    r"false|correct|incorrect)\b(?:\W{0,3}$|[.,;:!(\n-]| -|\W{0,3}\n"
    r"| (?:because|since|as|it|they|he|she|we|you|this|that|the|there)\b)",
    re.IGNORECASE,
)
_UNSURE = re.compile(r"\b(?:might|may|could|whether|if|unclear|uncertain|unknown|or)\b", re.IGNORECASE)
_CLOSES_WITH = re.compile(
    r"\b(?:is|are|was|be|so|hence|thus|therefore|[a-z]{2,15}:):?,? +[*_]{0,2}(?P<word>yes|no|true|false)[*_]{0,2}[.!]?\s*\Z",
    re.IGNORECASE,
)
_IN_BETWEEN = re.compile(r"\b(?:so|hence|thus|therefore),? (?P<word>yes|no), ", re.IGNORECASE)
_OF_A_STATEMENT = re.compile(
    r"\W{0,4}(?:i (?:would say|think|believe|agree)(?: that)? |i'd say (?:that )?)?"
    r"(?:(?:this|that|the) (?:statement|claim|assertion|sentence|proposition)|this|that|it) is"
    r"(?P<denied> not|n't)? (?:\w{1,12}ly )?[*_]{0,2}(?P<word>true|false|correct|incorrect)\b(?! (?:that|if|only))",
    re.IGNORECASE,
)


def line_answer(located: Located) -> str:
    """Return what the mark points at; without a mark, the last line or the last number in it."""
    marked = located.marked
    if marked is not None:
        return tidy(_head(marked.text) if marked.how == "said" else marked.text)
    line = last_line(located.rest)
    if len(line.split(maxsplit=_FEW_WORDS)) > _FEW_WORDS:
        numbers = [found[0] for found in _NUMBER.finditer(line) if not is_inserted(line, found.start())]
        if numbers:
            return numbers[-1].rstrip(",")
    return tidy(line)


def last_line(text: str) -> str:
    """Return the last line of a text that is neither empty nor the end of a fence."""
    text = text.rstrip()
    while text.endswith("\n```"):
        text = text[:-4].rstrip()
    return _QUOTED_LINE.sub("", text.rpartition("\n")[2].strip())


def phrase_answers(located: Located) -> Iterator[str]:
    """Yield the phrases that may be the answer, the likeliest first.

    A marked line without its explanation, then whole; of an unmarked one what is bold, then what it says after its last `is`.
    """
    line = line_answer(located)
    marked = located.marked
    if marked is not None:
        if marked.how == "said":
            yield concise(line)
        yield line
        yield tidy(_ASIDE.sub("", line))
        yield from apposed(line)
        return
    whole = last_line(located.rest)[:_LONGEST]
    for span in reversed(bold_spans(whole)):
        place = whole.find(span)
        if not is_denied(whole[:place], whole[place + len(span) :]):
            yield span
    yield line
    if line != tidy(whole):
        yield tidy(whole)
    if len(whole.split()) <= _SHORT_WORDS and _ASIDE.search(whole):
        yield tidy(_ASIDE.sub("", whole))
    if hedged := _HEDGED.match(whole):
        yield tidy(whole[hedged.end() :])
    said = [whole[found.end() :] for found in _COPULA.finditer(whole) if not is_denied(whole[: found.start()])]
    if said and len(said[-1].split()) <= _TAIL_WORDS:
        yield tidy(said[-1])
    yield from asserted(whole)


def concise(line: str) -> str:
    """Return a marked line up to its first full stop or explanation."""
    return tidy(unexplained(first_sentence(line[:_LONGEST])))


def read_truth(located: Located) -> str | None:
    """Return `true` or `false` for yes, no, true and false as an answer; None if it says neither, or both."""
    if located.marked is not None:
        found = _TRUE_OR_FALSE.match(located.marked.text[:_LONGEST]) or _TRUE_OR_FALSE.match(
            tidy(words_of(located.marked.text[:200]))
        )
        return _said(found) or _said_abroad(located.marked.text)
    line = last_line(located.rest)[:_LONGEST].rpartition("? ")[2]
    closes = None if _UNSURE.search(line) else _CLOSES_WITH.search(line)
    found = _TRUE_OR_FALSE.match(line) or closes or _IN_BETWEEN.search(line) or _OF_A_STATEMENT.match(line)
    found = found or _TRUE_OR_FALSE.match(located.rest.lstrip()[:_LONGEST])
    return _said(found) or _said_abroad(line)


def is_unsure(located: Located) -> bool:
    """Tell whether an unmarked text ends on a yes or no that only may be."""
    line = last_line(located.rest)[:_LONGEST]
    return located.marked is None and _UNSURE.search(line) is not None and _CLOSES_WITH.search(line) is not None


def truth_of(gold: str) -> str | None:
    """Return `true` or `false` for a gold answer of yes, no, true or false."""
    value = _TRUTH.get(words_of(gold))
    return None if value is None else str(value).lower()


def elements_of(answer: str) -> list[str]:
    """Return the parts of an answer that lists several."""
    inside = answer.strip().strip("[]{}()")
    parts = re.split(r"[,;\n] ?(?:and )?| and | & ", inside)
    return [stripped for part in parts if (stripped := _BULLET.sub("", part).strip())]


def listed_answer(located: Located) -> list[str]:
    """Return the lines of the list that a text is or ends on, without their bullets; nothing if it ends on none."""
    text = located.rest if located.marked is None else located.marked.text
    listed: list[str] = []
    for line in reversed(text.rstrip().split("\n")):
        if (bullet := _BULLET.match(line)) is None:
            break
        listed.insert(0, tidy(line[bullet.end() :]))
    return listed if len(listed) > 1 else []


def _said(found: re.Match[str] | None) -> str | None:
    if found is None:
        return None
    return str(_TRUTH[found["word"].lower()] != bool(found.groupdict().get("denied"))).lower()


def _said_abroad(line: str) -> str | None:
    """Return yes or no of another language with which a line begins and a clause of it ends."""
    first = re.match(
        r"[\s*_\"'(]*(?P<word>[^\W\d]{1,10})(?:[\s*_\"')]*(?:[,.;:!\n\u3002\uff0c\uff01]| -|$))", line.strip()
    )
    value = _SURELY.get(words_of(line), None if first is None else _ABROAD.get(first["word"].lower()))
    return None if value is None else str(value).lower()


def _head(text: str) -> str:
    stripped = text.lstrip()
    for opening, closing in (("\\[", "\\]"), ("$$", "$$"), ("```", "```")):
        if stripped.startswith(opening) and closing in stripped[len(opening) :]:
            inside = stripped[len(opening) :].partition(closing)[0].strip()
            return inside.partition("\n")[2].strip() if opening == "```" and "\n" in inside else inside
    return stripped.partition("\n")[0]
