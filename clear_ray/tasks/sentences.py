"""What a sentence answers, where no mark says so: `Seven Samurai is a film …`, `It was Marie Curie who …`, `Capital: Paris`.

A sentence that contrasts (`but`, `while`, `not`, `than`) says nothing here: which of its names it answers with is a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from clear_ray.tasks.denials import is_denied
from clear_ray.tasks.writing import first_sentence, tidy, words_of

_MOST_WORDS = 12
CONTRAST = re.compile(
    r"\b(?:but|however|although|though|while|whereas|not|never|or|nor|instead|"
    r"rather|except|unlike|than(?! (?:any|all|every)\b)|without|if|might|may|"
    r"could|would|second|third|next)\b|n't\b|[?;]",
    re.IGNORECASE,
)
_COPULA = re.compile(
    r"(?:\b(?:is|are|was|were|equals|be|appears?|seems?|remains?|becomes?|turns|means|stands for|"
    r"denotes|refers to|translates (?:to|as)|ist|est|es|è|é)|\b[Ii]t's|\b[Tt]hat's|\b[Tt]hey're)[: ] ?"
)
_ABROAD = re.compile(r"(?:\b(?:no|non|não|nicht)|\bn') ?\Z", re.IGNORECASE)
_DENIED = re.compile(r" ?(?:not|nicht|kein\w*|pas|niet)\b", re.IGNORECASE)
_RELATIVE = re.compile(
    r",(?!\d)|[;(]| you(?:'re| are)\b"
    r"| (?:who|that|which|whose|whom|where|when|because|since|as an?|in which|at which|for which)\b",
    re.IGNORECASE,
)
_WHERE = re.compile(
    r" (?:in|at|into|to|\u00e0|en|em) (?:the (?:city|town|country|state|"
    r"village) of )?(?P<place>[A-Z][^\W\d]+(?: [A-Z][^\W\d]+){0,3})\Z"
)
_ELSEWHERE = re.compile(r"\b(?:in|at|from|near|\u00e0|en|em) (?:the )?[A-Z0-9]")
_PARTICIPLE = re.compile(
    r"(?:\w{1,15}ly )?(?:(?:called|named|termed|considered|known as|referred to as)"
    r"|[a-z]{1,15}(?:ed|en|wn|ght|ilt|und|old|orn|hot|ung|de|ead|et|"
    r"ut|un|on|ld|pt) (?:by|in|at|on|from|to|as|after|with|near)) ",
)
_CIRCUMSTANCE = re.compile(r" (?:in|on|at|around|during|after|before|between|from)\b")
_SECOND = re.compile(r" and (?=\w{1,15}(?:ed|en|wn|ght) )")
_BOTH = re.compile(
    r"(?P<one>[^()]{1,60}) \((?!(?:not|or|formerly|previously|unlike|e\.g|i\.e|see|from|in|as)\b)"
    r"(?P<other>[^()]{1,60})\)\W{0,3}"
)
_ALIAS = re.compile(r"\A(?:(?:now|also|better|formally|officially) )?(?:called|known as|named) |\A(?:a\.?k\.?a\.?|or) ")
_NAME = re.compile(
    r"(?:[A-Z][\w.'-]*|of|the|de|da|van|von|la|le|al|bin)(?: (?:[A-Z][\w.'-]*|of|the|de|da|van|von|la|le|al|bin)){0,4}"
)
_PREPOSITION = re.compile(r"\A(?:on|in|at|by|from|near|about) ")
_IS_ABROAD = re.compile(r"\W{0,2}(?:Es|È|É|C'est|Es ist|Das ist|Это|To) (?P<value>[^.!?]{1,60})\W{0,3}")
_DASHED = re.compile(r"(?P<head>[^-,.:;]{1,40}) - (?=[a-z])")
_CYRILLIC_IS = re.compile(r"[\u0400-\u04ff] - (?P<value>[^-,.;:]{1,60})\.?\Z")
_BY = re.compile(
    r"(?<!followed)(?<!preceded)(?<!accompanied)(?<!joined)(?<!succeeded) (?:by|"
    r"through|via|using) (?:means of |the process of )?(?P<place>[^,;]{1,40})\Z"
)
_BY_WHOM = re.compile(r", [a-z]{2,15} by \S")
_OBJECT = re.compile(
    r"(?:They|It|He|She|We|You) [a-z]{2,15} (?:the )?(?P<name>[A-Z][\w.'-]*(?: [A-Z][\w.'-]*){0,3})"
    r"(?: (?:in|to|at|on|from|with|as) (?:(?! and | or )[^,;]){1,60})?\.?"
)
_EASTERN = re.compile(
    r"は,?(?P<ja>[^は,.]{1,40}?)(?:です|である|でした|だ)\.?\Z|[은는] (?P<ko>[^.,]{1,40}?)(?:입니다|이다|예요|이에요)\.?\Z"
    r"|(?<!不)(?:是|叫做|叫)(?P<zh>[^,.是不]{1,40})\.?\Z"
)
_IN_BRACKETS = re.compile(r" \([^()]{1,60}\)")
_TITLED = re.compile(
    r"(?:President|Dr|Mr|Mrs|Ms|Sir|King|Queen|Prince|Professor|Prof|Captain|General|Pope|Saint)\.? "
    r"(?P<name>[A-Z]\S+ .{1,60})"
)
_KIND_OF = re.compile(
    r"(?:\A|\b(?:an?|the) |[*_\"'])(?P<value>[\w-]{2,30})[*_\"']{0,3} (?:sentiment|label|class|category|emotion|tone)\Z",
    re.IGNORECASE,
)
_ACTOR = re.compile(
    r"(?:The |An? )?(?P<name>[A-Z][\w.'-]*(?: (?:(?:of|the|de|da|van|von|la|le|al|bin|and|&) ){0,2}[A-Z][\w.'-]*){0,5})"
    r" (?!(?:and|or|of|in|at|on|with|to|for|from|by|as|who|which|that|is|was|are|were|the|an?)\b)[a-z]{2,20}\b"
)
_PLACE = re.compile(
    r"\b(?:died|lives?|lived|took place|happened|occurred|lies|ended|began|started|works?|worked|comes?|came|originated|"
    r"grew up|settled) (?:in|at|on|from|near) (?P<place>[^,;]{1,60})\Z",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"(?P<subject>[^,;:()?!]{1,80}?) "
    r"(?:(?:is|was|are|were) (?:the|an?|one of|considered|known as|\w{2,12}est)"
    r"|won|wrote|discovered|invented|painted|directed|founded|composed|became|created|built|holds?|led|sang|starred|has|had)"
    r"\b "
)
_PRONOUN = re.compile(
    r"(?:it|this|that|these|those|there|he|she|they|we|i|you|what|which|who|here|one"
    r"|the (?:answer|result|correct|right|final)\b.*)\Z",
    re.IGNORECASE,
)
_INSTEAD = re.compile(r",? (?:rather than|instead of|and not|not) [^,.;:]{1,60}(?=\W{0,3}\Z)", re.IGNORECASE)
_SURELY = re.compile(
    r"(?:actually|really|indeed|in fact|simply|most likely|probably|likely|definitely|certainly|officially|currently|now|"
    r"at|often|commonly|usually|[a-z]{2,15}ly) (?=\S)"
)
_CLASSED = re.compile(
    r"\b(?:classif\w+|label\w*|categori[sz]\w+|describe\w*|rate\w*|"
    r"identif\w+|consider\w*|mark\w*|tag\w*|see) [^.;]{0,60}?\bas (?:an? )?"
    r"(?P<value>[^,;.]{1,40})\Z",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"([A-Z][^,;()]{0,60}), ([^,;]{1,60}), [a-z]{2,20}\b")
_HAS = re.compile(
    r"\b(?:has|have|had|bears?|carries) the (?:\w+ )?(?:name|formula|title|"
    r"symbol|code|nickname|capital) (?:of )?(?P<value>[^,;.]{1,60})\Z"
)
_QUOTED = re.compile(r'\b(?:is|to|as|called|named|reads|says|word|phrase|be|means):? "([^"\n]{1,100})"')
_ELABORATED = re.compile(
    r"(?P<first>[^.!?]{3,200}[^.!?\d])\. (?:He|She|It|They)(?:'s| is| was| has| had| were| are)? "
    r"(?:also|later|born|known|located|famous|best known|considered|widely)\b"
)
_TITLE = re.compile(r'"(?P<title>[^"\n]{1,100})"(?= (?:by|is|was|\())')
_LABEL = re.compile(r"[*_]{0,2}(?P<name>[A-Z][\w' ]{0,30})[*_]{0,2}: ?[*_]{0,2}(?P<value>\S.*)")
_NO_LABEL = re.compile(
    r"(?:\w+ )?(?:note|question|hint|steps?|example|options?|wrong|incorrect|not|explanation|reason|reasoning|thoughts?|"
    r"because|source|given|however|context|passage|input|query|problem|q|warning|p\.?s\.?)(?: \d+)?\Z",
    re.IGNORECASE,
)
_APPOSITION = re.compile(
    r"(?P<head>[^,;()]{1,100}), "
    r"(?:[A-Z]\w{1,20}'s|in|on|at|near|from|by|the|an?|which|whose|where|when|also|born|written|located|known|founded)\b"
)
_WORD_BREAK = re.compile(r"[^\w]+")
_FUNCTION_WORDS = frozenset(
    {
        "a", "an", "and", "answer", "are", "at", "be", "been", "by", "called", "can", "correct", "could", "did", "do",
        "doe", "find", "for", "found", "from", "ha", "had", "have", "he", "her", "hi", "how", "i", "in", "it",
        "named", "of", "on", "she", "that", "the", "there", "they", "thi", "to", "wa", "we", "were", "what", "when",
        "where", "which", "who", "will", "with", "would", "you",
    }
)  # fmt: skip
"""Without their last s, as `_contents` compares words."""
_EQUATION = re.compile(r"(?P<left>[^,;:?!]{1,80}?) (?:is|was|are|were) (?P<right>[^,;:?!]{1,120})")


def asserted(line: str) -> Iterator[str]:
    """Yield what an unmarked last line says is the answer: what a label stands before, a title, its complement, its subject.

    Args:
        line: The line.
    """
    if (label := _LABEL.fullmatch(line)) and not _NO_LABEL.match(label["name"]):
        yield tidy(_without_aside(label["value"]))
        yield from apposed(label["value"])
    line = _INSTEAD.sub("", line)
    yield from _named(line)
    yield from _complement(line)
    if tidy(first_sentence(line)) == tidy(line) and not CONTRAST.search(line):
        yield from _of_whole_sentence(line)


def _named(line: str) -> Iterator[str]:
    """Yield what a line names: in quotes, by its kind or title, before an explanation, in another language."""
    if (classed := _CLASSED.search(tidy(line))) is not None and not is_denied(line[: classed.start("value")]):
        yield tidy(classed["value"])
    quoted = _QUOTED.findall(line)
    if len(quoted) == 1 and line.count('"') == 2 and not CONTRAST.search(line):
        yield quoted[0]
    if (elaborated := _ELABORATED.match(line)) is not None:
        yield from asserted(elaborated["first"])
    if (title := _TITLE.match(line)) is not None:
        yield title["title"]
    for abroad in filter(None, (_IS_ABROAD.fullmatch(line), _CYRILLIC_IS.search(line))):
        if not _DENIED.match(abroad["value"]):
            yield tidy(abroad["value"])
    if (dashed := _DASHED.match(line)) is not None and len(dashed["head"].split()) <= 3:
        yield tidy(dashed["head"])
    yield from (said for found in _EASTERN.finditer(line) if (said := found["ja"] or found["ko"] or found["zh"]))
    if (both := _BOTH.fullmatch(line)) is not None and len(line.split()) <= _MOST_WORDS:
        yield tidy(both["one"])
        yield tidy(_ALIAS.sub("", both["other"]))
    if (found := _TITLED.fullmatch(tidy(line))) is not None:
        yield found["name"]
    if (found := _KIND_OF.search(tidy(line))) is not None and not CONTRAST.search(line):
        yield found["value"]
    yield from (head for head in apposed(line) if _NAME.fullmatch(head))


def _complement(line: str) -> Iterator[str]:
    """Yield what stands after the last `is` of a line that is not denied."""
    places = [
        found
        for found in _COPULA.finditer(line)
        if not (
            is_denied(line[: found.start()])
            or _ABROAD.search(line[: found.start()])
            or _DENIED.match(line, found.end())
        )
    ]
    if not places:
        return
    said = _RELATIVE.split(line[places[-1].end() :], maxsplit=1)[0]
    if len(said.split()) > _MOST_WORDS:
        return
    yield tidy(said)
    yield tidy(_SURELY.sub("", said, count=1))
    yield tidy(_PREPOSITION.sub("", said))
    if participle := _PARTICIPLE.match(said):
        yield tidy(said[participle.end() :])
        yield tidy(_SECOND.split(said[participle.end() :], maxsplit=1)[0])
        yield tidy(_CIRCUMSTANCE.split(said[participle.end() :], maxsplit=1)[0])


def _of_whole_sentence(line: str) -> Iterator[str]:
    """Yield what one sentence acts on, has, stands at or speaks of."""
    if (acted := _OBJECT.fullmatch(line)) is not None:
        yield tidy(acted["name"])
    if (has := _HAS.search(tidy(line))) is not None:
        yield tidy(has["value"])
    if (aside := _ASIDE.match(line)) is not None:
        yield from (part for part in aside.groups() if _NAME.fullmatch(part))
    by = None if _BY_WHOM.search(line) else _BY.search(tidy(line))
    if (place := _PLACE.search(tidy(line)) or by) is not None:
        yield tidy(place["place"])
    where = _WHERE.search(tidy(line))
    if where is not None and not _ELSEWHERE.search(line[: where.start()]):
        yield where["place"]
    subject = _SUBJECT.match(_IN_BRACKETS.sub("", line))
    if subject and not _PRONOUN.match(subject["subject"]):
        yield tidy(subject["subject"])
    actor = _ACTOR.match(line)
    if actor and not _PRONOUN.match(actor["name"]):
        yield tidy(actor["name"])


def apposed(line: str) -> Iterator[str]:
    """Yield what stands before an apposition, if there is one: `Mount Everest, in the Himalayas`."""
    if found := _APPOSITION.match(line.strip()):
        yield tidy(found["head"])


def adds_just(line: str, gold: str, question: str) -> bool:
    """Tell whether a sentence says with the words of its question nothing but a reference.

    `The Broncos represented the AFC` adds the Broncos to `Which team represented the AFC?`.

    Args:
        line: A sentence.
        gold: The reference, which the question must not name.
        question: The last question of the prompt.
    """
    asked, wanted = _contents(question), words_of(gold)
    if not asked or not wanted or f" {wanted} " in f" {words_of(question)} " or CONTRAST.search(line):
        return False
    said = f" {_WORD_BREAK.sub(' ', words_of(line))} "
    bare = f" {_WORD_BREAK.sub(' ', wanted).strip()} "
    return said.count(bare) == 1 and not _contents(said.replace(bare, " ")) - asked


def _contents(text: str) -> set[str]:
    return {word.rstrip("s") for word in _WORD_BREAK.split(text.casefold()) if word} - _FUNCTION_WORDS


def says_the_same(line: str, gold: str) -> bool:
    """Tell whether a sentence and a reference that is one, too, say that the same thing is the same.

    `The capital is Paris` says what `Paris is the capital of France` does: one side is equal, the other as far as it goes.

    Args:
        line: A sentence, or a name alone.
        gold: The reference.
    """
    if CONTRAST.search(line) or CONTRAST.search(gold):
        return False
    wanted = _EQUATION.fullmatch(tidy(gold))
    if wanted is None:
        return False
    left, right = words_of(wanted["left"]), words_of(wanted["right"])
    if words_of(line) == left and wanted["left"][:1].isupper() and not _PRONOUN.match(wanted["left"]):
        return True
    said = _EQUATION.fullmatch(tidy(line))
    if said is None:
        return False
    sides = words_of(said["left"]), words_of(said["right"])
    return any(
        one == first and (_begins(other, second) or _begins(second, other))
        for one, other in (sides, sides[::-1])
        for first, second in ((left, right), (right, left))
    )


def _begins(short: str, long: str) -> bool:
    return bool(short) and (short == long or long.startswith(f"{short} "))


def _without_aside(value: str) -> str:
    return re.sub(r"\s*\([^()]{1,200}\)\W{0,3}\Z", "", first_sentence(value))
