"""Labels of options that a sentence names in whatever language, a list that ticks one, and several labels at once.

A capital letter alone is a label if no other one is in its sentence, nothing is denied there, and what stands before it is a
sign, a script without spaces, or a word that leads to it (`la opción C`, `Wahl ist C`, `故选C`): in `vitamin C` it is a name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Options = Mapping[str, str]
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|(?<=[\u3002\uff01\uff1f])|\n")
_LETTER = r"A-Za-z\u00c0-\u024f0-9_"
_ALONE = re.compile(
    rf"(?<![{_LETTER}'.\\/&+-])(?P<open>[(\[])?(?P<label>[A-Z])(?(open)[)\]])(?P<close>[).:](?=\s|$))?(?![{_LETTER}&/+#*^=<>-]|'(?![dt][i\u0131u\u00fc]r))"
)
_LEADS = re.compile(
    r"(?:[^\w\s(\[]|[^\x00-\u024f]|\b(?:is|be|to|option|choice|letter|answer|select|choose|pick|think|say|guess|believe|prefer|es|est|ist|\u00e9|\u00e8|jest|\u00e4r|er|adalah|l\u00e0|olan"
    r"|la|le|el|die|o|a|opci\u00f3n|opcion|letra|inciso|respuesta|lettre|r\u00e9ponse|choix|proposition|buchstabe|antwort|lautet|m\u00f6glichkeit"
    r"|lettera|risposta|opzione|resposta|op\u00e7\u00e3o|alternativa|optie|antwoord|opcja|odpowied\u017a|se\u00e7enek|cevap|pilihan|jawaban"
    r"|\u0111\u00e1p \u00e1n|svar|alternativ))\s*\Z",
    re.IGNORECASE,
)
_NO = re.compile(
    r"\b(?:not|no|non|n\u00e3o|nicht|kein\w*|pas|niet|nie|ikke|inte|de\u011fil|bukan|kh\u00f4ng|neither|nor|\u043d\u0435|\u043d\u0456|wrong|"
    r"incorrect|false|falsch|faux|falso|except|cannot)\b|n't\b|\u4e0d|\u975e|\u9519|\u932f|\uc544\ub2c8|\u307e\u305b\u3093|\u306a\u3044",
    re.IGNORECASE,
)
_TICK = re.compile(
    "[\u2705\u2713\u2714\u2611\U0001f7e2]|\\[[xX]\\]|(?:<-|\u2190|<=)|\\((?:correct|right)(?: answer)?\\)",
    re.IGNORECASE,
)
_OPTION = re.compile(r"[^\w\n(\[]*\[?[xX ]?\]?\s*[*(\[]{0,3}(?P<label>[A-Z]|[1-9])[)\].:]")
_SEVERAL = re.compile(
    r"(?<![\w'])(?P<labels>[(\[]?[A-Z][)\]]?(?:(?:, ?| ?& ?|,? (?:and|y|et|und|e|en) )[(\[]?[A-Z][)\]]?(?!\w)){1,9})\W{0,4}\Z"
)
_ALL_RIGHT = re.compile(
    r"(?:both )?(?:options |answers )?(?P<labels>[(\[]?[A-Z][)\]]?(?:(?:, ?|"
    r",? and )[(\[]?[A-Z][)\]]?){1,9}) are (?:both |all )?"
    r"(?:the )?(?:correct|right|true)\b",
    re.IGNORECASE,
)
_INTRODUCED = re.compile(
    r"\b(?:correct|right|true|apply|answers?|options?|select\w*|choose|chosen)\b[^\n]*:\W*\Z", re.IGNORECASE
)


def lone_label(text: str, options: Options) -> str | None:
    """Return the one label that the last sentence of a line names; None if it names none, several, or denies something.

    Args:
        text: A line.
        options: Options of the question, as far as they are known.
    """
    sentences = [part for part in _SENTENCE.split(text.strip()) if part.strip()]
    if not sentences or _NO.search(sentences[-1]):
        return None
    sentence = sentences[-1]
    places = [place for place in _ALONE.finditer(sentence) if not _is_word(sentence, place)]
    if len({place["label"] for place in places}) != 1 or not any(_is_named(sentence, place) for place in places):
        return None
    label = places[0]["label"]
    return label if label in options or not options else None


def closing_labels(line: str, options: Options) -> str | None:
    """Return several labels on which a line ends: `the correct options are A, C and E`; None if it does not."""
    sentence = _SENTENCE.split(line.strip())[-1]
    found = _SEVERAL.search(sentence) or _ALL_RIGHT.match(sentence)
    if found is None or _NO.search(sentence) or not _LEADS_TO_SEVERAL.search(sentence[: found.start("labels")]):
        return None
    labels = re.findall(r"[A-Z]", re.sub(r"\b[a-z]+\b", "", found["labels"]))
    return ",".join(sorted(set(labels))) if not options or set(labels) <= options.keys() else None


_LEADS_TO_SEVERAL = re.compile(
    r"(?:\A|[:=]|\b(?:are|is|be|options|choices|answers|letters|statements|both|select|choose|son|sont|sind|s\u00e3o|sono|zijn))[\s*_(\[]*\Z",
    re.IGNORECASE,
)


def ticked_label(lines: Sequence[str]) -> str | None:
    """Return the one option that is ticked in a list that a text ends on; None if none is, or several are."""
    listed = _listed(lines)
    ticked = [label for label, line in listed if _TICK.search(line)]
    return ticked[0] if len(ticked) == 1 and len(listed) > 1 else None


def listed_labels(lines: Sequence[str], options: Options) -> str | None:
    """Return the labels of a list that a text ends on, if it is said to be the answer's and leaves an option out."""
    listed = _listed(lines)
    before = lines[-len(listed) - 1] if len(lines) > len(listed) else ""
    labels = {label for label, _ in listed}
    if len(labels) < 2 or not _INTRODUCED.search(before) or _NO.search(before):
        return None
    return ",".join(sorted(labels)) if not options or labels < options.keys() else None


def _is_set(sentence: str, place: re.Match[str]) -> bool:
    """Tell whether a letter is set as a label: `(B)`, `B)`, `B. Paris`."""
    return bool(place["open"]) or place["close"] == ")" or (bool(place["close"]) and not _ends(sentence, place))


def _is_named(sentence: str, place: re.Match[str]) -> bool:
    before = sentence[: place.start("label")]
    if not before.strip(" *_"):
        return _is_set(sentence, place) or _ends(sentence, place)
    return _is_set(sentence, place) or _LEADS.search(before) is not None


def _is_word(sentence: str, place: re.Match[str]) -> bool:
    """Tell whether a letter is a word of its language: `A planet`, `I think`."""
    if place["label"] not in "AIOEY" or _is_set(sentence, place) or _ends(sentence, place):
        return False
    return re.match(r" (?!(?:and|or|nor|is|are)\b)\w", sentence[place.end() :]) is not None


def _ends(sentence: str, place: re.Match[str]) -> bool:
    rest = sentence[place.end("label") :].strip(" .!*_)\"'\u3002")
    return not rest or rest[0] > "\u024f"


def _listed(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return (label, line) of the options in a row on which a text ends."""
    listed: list[tuple[str, str]] = []
    for line in reversed(lines):
        if (found := _OPTION.match(line)) is None:
            break
        listed.insert(0, (found["label"], line))
    return listed
