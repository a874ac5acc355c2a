"""What a text denies: `not Paris`, `I don't think that the answer is 12`, `B is wrong`.

One rule for every kind: what a clause denies, before it or after it, is no answer; what follows a denial's `but` is one. A
clause begins anew after a comma, a full stop, a dash, `but`, `so` and their like.
"""

from __future__ import annotations

import re

_LONGEST_CLAUSE = 160
_ANEW = re.compile(
    r"[.;:!?\n,](?=\s|$)| - |\band (?=(?:the|it|this|that|my|we|i|so)\b)"
    r"|\b(?:(?<!anything )but|so(?! (?:sure|certain))|yet|thus|hence|therefore|however|instead|rather|because)\b",
    re.IGNORECASE,
)
_NO = r"(?:\bnot|n't|\b(?:never|neither|nor|cannot|hardly|no longer|no way|nobody|no one|anything but))"
_WRONG = r"\b(?:wrong|incorrect|false|bad)"
_TO_A_PLACE = r"[\s*_\"'`($\[:]*\Z"
_DIRECTLY = re.compile(
    rf"(?:不是|不为|并非|不是说)\Z|{_NO}(?: (?:be|been|is|are|the|an?|my|that|actually|"
    rf"really|simply|necessarily|equal|equals|to|final|correct|right|"
    rf"option|choice|answer|letter))*{_TO_A_PLACE}"
    rf"|{_WRONG}(?: (?:final )?(?:answer|option|choice|letter|one)s? (?:is|are|was|would be))?{_TO_A_PLACE}",
    re.IGNORECASE,
)
_ON = r"(?: [\w']{1,20}){0,6}\W{0,6}\Z"
_THAT = rf"(?: (?:that|if|whether|to)\b{_ON}|(?: (?:the|my|its|final|correct|right)\b){{0,3}}\W{{0,6}}\Z)"
_THINK = r"(?:think|believe|say|claim|mean|guess|suppose|assume|imply|agree|accept|conclude|feel|expect)"
_BELIEVED = re.compile(
    rf"{_NO} (?:\w{{1,20}} ){{0,2}}{_THINK}\b{_ON}"
    rf"|{_NO} (?:\w{{1,20}} ){{0,2}}(?:case|true|possible|likely|plausible|sure|certain|convinced|correct|right)\b{_THAT}"
    rf"|\b(?:might|may|could) (?:\w{{1,20}} )?{_THINK}\b{_ON}"
    rf"|\b(?:i|we|you|one|they|people|many|some) (?:\w{{1,20}} )?(?:thought|assumed)\b{_ON}"
    rf"|(?<!no )(?<!without )(?<!not )(?<!n't )\b(?:doubt|deny|denies|reject|refuse|refuses)\b{_ON}"
    rf"|\b(?:unclear|uncertain|undecided|unsure|unknown) (?:if|whether)\b{_ON}"
    rf"|\b(?:false|untrue|wrong|incorrect|mistaken|impossible|unlikely|doubtful) (?:that|to)\b{_ON}",
    re.IGNORECASE,
)
_AFTERWARDS = re.compile(
    r"\s*(?:ではな|ではあり|[가이] 아)|[\s*_\"'`)\]$]{0,6}(?:, ?)?(?:(?:which|but (?:that|it|this)) )?"
    r"(?:(?:is|was|are|would be|seems|looks|must be)(?: \w{1,12}ly)? "
    r"(?:not (?:the|an?|correct|right|it|possible|true|what|my)\b|wrong\b|incorrect\b|false\b|impossible\b|ruled out\b)"
    r"|(?:is|was|are|ca|wo|could|would)n't (?:be )?(?:the|an?|correct|right|it|possible|true|what|my)\b"
    r"|can ?not be (?:the|correct|right|it|true)\b)",
    re.IGNORECASE,
)
_BEGINS = re.compile(r"\W{0,6}(?:not|never|neither|isn't|n't|nicht|keine?|pas|não|niet|nie|не)\b", re.IGNORECASE)
_BUT = re.compile(
    r"[^.\n]{0,80}?(?:\bbut (?:rather |instead |it is |it's )?|[,;] (?:it is|it's) (?!not\b))(?=\S)", re.IGNORECASE
)


def is_denied(before: str, after: str = "") -> bool:
    """Tell whether the clause around a place in a text denies what stands there.

    Args:
        before: The text up to the place.
        after: The text from its end on.
    """
    clause = _ANEW.split(before[-_LONGEST_CLAUSE:])[-1]
    return bool(_DIRECTLY.search(clause) or _BELIEVED.search(clause) or _AFTERWARDS.match(after[:_LONGEST_CLAUSE]))


def denies(before: str) -> bool:
    """Tell whether the clause at the end of a text has a denial anywhere: `plants do not take in`."""
    return re.search(rf"{_NO}\b", _ANEW.split(before[-_LONGEST_CLAUSE:])[-1], re.IGNORECASE) is not None


def begins_denied(text: str) -> bool:
    """Tell whether a text begins with what is not."""
    return _BEGINS.match(text) is not None


def after_denial(text: str) -> str:
    """Return what a text that begins with a denial says after its `but`; the text as it is if it says nothing of the kind."""
    denial = _BEGINS.match(text)
    but = _BUT.match(text, denial.end()) if denial else None
    return text[but.end() :] if but else text
