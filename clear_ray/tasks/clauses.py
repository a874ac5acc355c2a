"""Which number of a sentence is its point, and which are told by the way: `To pack 72 eggs, she needs 6 boxes`.

What opens a clause last before a number decides. After a verb that states (`is`, `has`, `=`) the number is the point;
after a preposition, a conjunction or an infinitive of purpose (`for`, `since`, `out of`, `to pack`) it is not. A comma begins
anew. `product of 4 and 9` names what a number was made of.
"""

from __future__ import annotations

import re

_ANEW = re.compile(r"[,;:](?=\s)| - (?=[a-z])|\. (?=[A-Z])")
_LONGEST = 300
_OPENS = re.compile(
    r"\b(?:(?P<aside>for|in|per|over|within|during|across|among|"
    r"throughout|out of|after|before|since|because|from|although|though|"
    r"while|when|if|whereas|as|who|which|whose|until|than(?= (?:the|those|his|her|their|we|you|he|she|they)\b)|"
    r"(?:each|one|all|any|some|most|half|both) of|(?:product|sum|difference|"
    r"quotient|ratio|multiple|multiples|power|factor|factors|divisors|mean|age) of|"
    r"(?<!need )(?<!needs )(?<!has )(?<!have )(?<!had )(?<!going )(?<!able )(?<!wants )(?<!want )(?<!used )(?<!equal )"
    r"(?<!comes )(?<!rounds )(?<!adds up )to (?!(?:an?|the|about|around|nearly|"
    r"almost|roughly|exactly|only|just|be|get|have|have)\b)[a-z]{2,15})"
    r"|(?P<point>is|are|was|were|has|have|had|be|equals|costs?|needs?|gets?|makes?|earns?|pays?|leaves?|takes?|total|totals|gives|"
    r"remain|remains|will|would|can|should|must|therefore|so|then|thus|hence|a total of|an average of))\b|(?P<sign>=)",
    re.IGNORECASE,
)
_LISTED = re.compile(r"(?:\d[^\d.;]{0,30} and|between \d[^.;]{0,20} and)\s*\Z")
_INSERTS = re.compile(r"\w[\"'*]{0,3},[\"']? (?:which|who|[a-z]{2,12}(?:ed|en|ilt|rn|nd)) [^,.;]{0,60}\Z")
_GOES_ON = re.compile(r"[^,.;]{1,60}, (?:is|was|are|were|has|had|[a-z]{2,15}s)\b")
_OF_ONE = re.compile(
    r"\d(?: [a-z]{2,15}){0,2} (?:of|out of) (?:(?:the|his|her|their|"
    r"its|all|every|those|these|original|initial|first) ){0,2}\Z",
    re.IGNORECASE,
)


def is_inserted(sentence: str, start: int) -> bool:
    """Tell whether the number at a place stands in a clause between two commas: `The film, released in 2010, is by Nolan`."""
    before, after = sentence[max(0, start - _LONGEST) : start], sentence[start : start + _LONGEST]
    return _INSERTS.search(before) is not None and _GOES_ON.match(after) is not None


def is_by_the_way(sentence: str, start: int) -> bool:
    """Tell whether the number at a place of a sentence is told by the way.

    Args:
        sentence: A sentence or line.
        start: Where the number begins.
    """
    before = sentence[max(0, start - _LONGEST) : start + 1].rstrip("-$£€0123456789. ") + " "
    if _OF_ONE.search(before):
        return True
    segment = _ANEW.split(before)[-1]
    opened = list(_OPENS.finditer(segment))
    return bool(opened) and opened[-1]["aside"] is not None
