"""Texts that give no answer: `I cannot tell`, `I don't know`, `There is not enough information`; and what they are worth.

A refusal is no answer of any kind, and two of them do not agree with each other. A guess behind one is an answer (`I'm not
sure, but I think it's Paris`). That something is unknown or cannot be determined is said of the world, and an answer.
"""

from __future__ import annotations

import re

from clear_ray.tasks.writing import tidy

_LONGEST = 600
_SAY = (
    r"(?:tell|say|answer|help|assist|determine|provide|choose|decide|know|comply|solve|find|identify|discuss|give|confirm|"
    r"verify|do that|fulfill|fulfil|complete|share|offer|make)"
)
_CANNOT = (
    r"(?:cannot|can'?t|can not|could not|couldn't|won't|will not"
    r"|(?:am|'m|was|are|were) (?:not able|unable) to)"
)
_REFUSED = re.compile(
    rf"\b(?:i|we)(?: \w{{1,12}}){{0,2}} ?{_CANNOT} (?:\w{{1,12}} )?{_SAY}\b"
    r"|\b(?:i|we)(?: \w{1,12}ly)? (?:do not|don't|did not|didn't) (?:\w{1,12}ly )?"
    r"(?:know|have (?:enough|sufficient|access|any))\b"
    r"|\b(?:i am|i'm) (?:not (?:sure|certain)|unsure|unable to)\b"
    r"|\bas an ai\b"
    r"|\bthere (?:is|was|isn't|is not) (?:not enough|insufficient|no|enough) (?:information|context|data)\b",
    re.IGNORECASE,
)
_NOTHING = re.compile(
    r"(?:(?:i'?m |i am )?sorry[,.]? ?)?(?:n/?a|n\.a\.|no answer(?: given)?|none given|no idea|not sure|unsure"
    rf"|{_CANNOT} {_SAY}|unable to {_SAY}|[?.\-_ ]{{1,10}})",
    re.IGNORECASE,
)
_GUESSED = re.compile(
    r"\b(?:but|however|still|though|that said|if i had to)\b.{0,60}?\b(?:i(?:'d| would)? (?:think|believe|guess|say|suspect)"
    r"|(?:my|a) (?:best |educated )?guess|probably|most likely|it(?:'s| is| was)(?! (?:not|possible))|the answer)\b",
    re.IGNORECASE,
)
_TOLD = re.compile(
    r"\bas an ai\b.*\b(?:but|however),? (?:as of|according to|based on|in|from|the)\b.{1,120}? (?:is|was|are|were)\b",
    re.IGNORECASE,
)
_UNDETERMINED = re.compile(
    r"\b(?:cannot|can'?t|can not|could not) be (?:\w{1,12} )?"
    r"(?:determined|told|known|answered|inferred|concluded|decided|said)\b"
    r"|\b(?:unknown|undetermined|unanswerable|indeterminate)\b|\bnot (?:mentioned|stated|given|specified|known)\b"
    r"|\b(?:do|does|did)(?: not|n't) (?:say|mention|state|specify|provide|"
    r"contain|indicate|give|tell)\b|\bno (?:such )?(?:answer|information)\b"
    r"|\b(?:is|was)n't enough (?:information|context|data)\b"
    r"|\b(?:not enough|insufficient) (?:information|context|data)\b",
    re.IGNORECASE,
)
_ASKS = re.compile(r"(?:is|are|was|were|does|do|did|could|can|should|would|will)\b[^?]{1,200}\?\W*\Z", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?]) +(?=\S)")


def refuses(line: str) -> bool:
    """Tell whether a line gives no answer: whether its last sentence refuses one, and guesses none.

    Args:
        line: What a mark points at, or the last line of an unmarked text.
    """
    line = line.strip()[-_LONGEST:]
    if _NOTHING.fullmatch(tidy(line)):
        return True
    last = _SENTENCE.split(line)[-1]
    if _ASKS.match(last):
        return True
    found = _REFUSED.search(last)
    return found is not None and _GUESSED.search(last, found.end()) is None and _TOLD.search(last) is None


def is_undetermined(text: str) -> bool:
    """Tell whether a text says that something cannot be known."""
    return _UNDETERMINED.search(text) is not None
