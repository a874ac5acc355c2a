r"""Where in a text its final answer stands.

Marks, of which the last one wins: `\boxed{…}`; `<answer>…</answer>`; `#### …`; `Answer: …` and `the answer is …` in several
languages, bold or not; a heading `Answer` on a line of its own. A mark that denies (`the answer is not 12`, `the wrong answer
is 12`, `I doubt that the answer is 12`) is none, except for what follows its `but`; nor is one that speaks about the answer
(`the answer is correct`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from clear_ray.tasks.denials import after_denial, begins_denied, is_denied

_MOST_MARKS = 50
_LONGEST_OBJECT = 1 << 16
_LONGEST_CLAUSE = 160
How = Literal["box", "tag", "hash", "said"]

_LEAD = r"(?:final |the |my |correct |right ){0,2}"
_ABROAD = (
    "antwort", "lösung", "ergebnis", "réponse", "reponse", "résultat", "respuesta", "solución", "resultado", "risposta",
    "resposta", "ответ", "antwoord", "odpowiedź", "odpowiedzią", "odpověď", "cevap", "cevab\u0131", "yan\u0131t", "svar",
    "svaret", "vastaus", "jawaban", "jawabannya", "відповідь", "отговор", "одговор", "răspunsul", "răspuns", "válasz",
    "đáp án", "câu trả lời", "απάντηση", "התשובה", "الجواب", "الإجابة", "پاسخ", "जवाब", "उत्तर", "উত্তর",
)  # fmt: skip
_UNSPACED = ("答案", "答え", "正解", "解答", "정답은?", "정답", "답은", "답", "回答", "คำตอบ(?:ที่ถูกต้อง|สุดท้าย)?")
_NEGATION = "no|non|não|nicht|kein|ne|pas|niet|nie|не|değil|bukan|không"
_SAID = re.compile(
    r"(?P<void>\b(?:first|initial|original|old|previous|no|this|that|your) (?:final )?)?\banswer(?:['\"*_`]{1,3}(?=[ :=]))?"
    r"(?:,? (?:therefore|then|thus|hence),?)?(?: (?:to|for|of|here|in)\b[^.:;\n]{0,100}?)?"
    r"(?: {0,3}[*_]{0,3} {0,3}(?:[:=](?![=>])|[-=]>|\u2192)"
    r"|,(?= [-$£€]?\d[\d.,]{0,20}, )"
    r"|(?:'s\b| {1,3}(?:(?:is|was|are|would be|should be|must be|has to be|equals)\b"
    r"|(?:is|was|are|ca|could|must|should)(?=n't)|(?:can|could|must|should)(?= ?not be\b))) ?:?)"
    rf"|(?:{'|'.join(_UNSPACED)})(?:应该|應該|選択肢|选项)? {{0,3}}[*_]{{0,3}}(?:[:=]|是|为|為|は|은|는|คือ)"
    rf"|\b(?:{'|'.join(_ABROAD)})\b(?: (?!(?:{_NEGATION})\b)[^\W\d]{{2,14}}){{0,3}}? {{0,3}}[*_]{{0,3}} {{0,3}}"
    r"(?::|(?:ist|lautet|est|es|è|é|er|är|on|jest|to|je|adalah|là|هي|هو|है|είναι|היא|este|is)(?!\w) ?:?|[-\u2013] )"
    r"|\bans(?:\.:?| ?[:=])"
    rf"|^[ #*_]{{0,10}}{_LEAD}answer[*_]{{0,3}} - (?=\S)"
    rf"|^[ #*_]{{0,10}}{_LEAD}answer[*_ ]{{0,5}}$",
    re.IGNORECASE | re.MULTILINE,
)
_HINTS = ("answer", "ans.", "ans:", "ans ", "ans=", "答", "正解", "답", "คำตอบ", *_ABROAD)
"""Without one of them there is nothing that `_SAID` could find, which takes longer to say so."""
_HASH = re.compile(r"^[ *]{0,6}####(?!#) {0,5}(?P<rest>\S[^\n]*)$", re.MULTILINE)
_SHORT_RESULT = re.compile(
    r"[^\w\n]{0,6}[-+]?[\d,./ ]{0,40}\d *%?(?: [^\W\d]{1,30}){0,2}[^\w\n]{0,4}|[^\w\n]{0,4}[A-Z][^\w\n]{0,4}"
)
_BOX = re.compile(r"\\(?:boxed|fbox) {0,3}(?=(?P<brace>\{)|[^\s{])")
_HTML = re.compile(r"</?(?:b|strong|i|em|u|p|span|div|h\d|li|ul)>", re.IGNORECASE)
_TAG = re.compile(r"<(?P<name>(?:final[_ -]?)?(?:answer|result))>", re.IGNORECASE)
_CONFIDENCE = re.compile(
    r"(?<=\S)\s*\n\W{0,6}(?:my )?confidence(?: level| score)?\W{0,4}[:=][^\n]{0,40}\s*\Z", re.IGNORECASE
)
_FIELDS = ("final_answer", "answer", "result", "choice", "label", "prediction", "output")
"""Names under which an object may have its answer, the likeliest first; an only field may have any."""
_ABOUT = re.compile(
    r"\W{0,6}(?:the (?:answer|result|solution|correct (?:answer|solution)) (?:to|of|for)\b"
    r"|(?:also |indeed |very |therefore |thus )?(?:correct|right|wrong|incorrect|clear|obvious|as follows|based on|found|"
    r"given|provided|shown|expected|needed|required)\b)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s|\n")
_SURELY = re.compile(
    r" ?(?:certainly|definitely|clearly|obviously|probably|simply|indeed|thus|therefore|most likely),? (?=\S)"
)
_CORRECTED = re.compile(
    r"[-,.;(\u2026? ]{1,4}(?:no,? wait|wait,? no|wait|scratch that|correction|sorry|i meant?|make that)\b[,:.]? ?(?:no,? )?"
    r"(?:it(?:'s| is| should be) |actually )?",
    re.IGNORECASE,
)
_BESIDE = re.compile(r"(?:[*_:]{1,4}(?=\s|$)|[ \n]|[#|]{1,6} |(?<=\n)> |(?<=\n)[-+] (?=\S))+")


@dataclass(frozen=True, slots=True)
class Marked:
    """A marked answer.

    Attributes:
        text: What the mark points at, to its end: the inside of a box or tag, else all that follows the mark.
        how: The kind of mark.
        is_complete: Whether the text that is still to come could not change it.
    """

    text: str
    how: How
    is_complete: bool


@dataclass(frozen=True, slots=True)
class Located:
    """Where a text's answer is.

    Attributes:
        marked: The last mark; None if there is none.
        rest: The text in which an unmarked answer may be looked for.
    """

    marked: Marked | None
    rest: str


def locate(visible: str) -> Located:
    """Find the last marked answer of a text. The work is linear in its length.

    Args:
        visible: What the model wrote, without its thinking, in plain characters.
    """
    visible = visible.replace("\\boxed{}", "")  # words about the format
    if "</" in visible:
        visible = _HTML.sub("", visible)
    visible = _CONFIDENCE.sub("", visible)
    text = visible.rstrip()
    if (field := _field(text.lstrip())) is not None:
        return Located(Marked(field, "tag", is_complete=True), text)
    marks = sorted(_marks(text))
    is_line_ended = "\n" in visible[len(text) :]
    denied: Marked | None = None
    for start, end, how in reversed(marks[-_MOST_MARKS:]):
        marked = _read(text, start, end, how, is_line_ended)
        if marked is None:
            continue
        if how not in ("said", "box") or not begins_denied(marked.text):
            return Located(marked, text)
        denied = denied or marked  # what the answer is not, unless the text says elsewhere what it is
    if denied is not None and denied.how == "said":
        later = _SENTENCE_END.split(denied.text, maxsplit=1)[1:]
        if later and later[0].strip():
            return Located(None, later[0])
    return Located(denied, text)


def _field(text: str) -> str | None:
    """Return the answer of a text that is a JSON object with one."""
    if not (text.startswith("{") and text.endswith("}") and len(text) <= _LONGEST_OBJECT):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    held = {
        name.lower().replace(" ", "_"): inside
        for name, inside in value.items()
        if isinstance(inside, str | int | float)
    }
    found = [held[name] for name in _FIELDS if name in held] or list(held.values() if len(value) == 1 else ())
    return str(found[0]) if found else None


def _marks(text: str) -> Iterator[tuple[int, int, How]]:
    """Yield (start, end, kind) of whatever may be a mark."""
    begin = 0
    for line in text.split("\n"):
        lowered = line.lower()
        if any(hint in lowered for hint in _HINTS):
            for found in _SAID.finditer(line):
                if not found["void"]:
                    yield begin + found.start(), begin + found.end(), "said"
        begin += len(line) + 1
    if "####" in text:
        for found in _HASH.finditer(text):
            yield found.start(), found.start("rest"), "hash"
    if "\\" in text:
        for found in _BOX.finditer(text):
            yield found.start(), found.end(), "box"
    if "<" in text:
        for found in _TAG.finditer(text):
            yield found.start(), found.end(), "tag"


def _read(text: str, start: int, end: int, how: How, is_line_ended: bool) -> Marked | None:
    if how == "box":
        inside, is_closed = (
            _braced(text, end + 1) if text[end] == "{" else (re.split(r"[\s$]", text[end:], maxsplit=1)[0], False)
        )
        if is_denied(text[max(0, start - _LONGEST_CLAUSE) : start]):
            inside = f"not {inside}"
        return Marked(inside.strip(), how, is_closed) if inside.strip(" ${}") else None
    if how == "tag":
        inside, tag, _ = text[end:].partition(f"</{text[start + 1 : end]}")
        return Marked(inside.strip(), how, bool(tag)) if inside.strip() else None
    line_end = text.find("\n", end)
    if how == "hash":
        if not _is_result(text, end):
            return None
        return Marked(text[end : line_end if line_end >= 0 else None].strip(), how, line_end >= 0 or is_line_ended)
    said = text[end:]
    if is_denied(text[max(0, start - _LONGEST_CLAUSE) : start]):
        said = f"not {said.lstrip()}"
    tail = after_denial(said)
    if tail is said and text[start:end].rstrip()[-1] not in ":=" and _ABOUT.match(said):
        return None
    if text[start:end].rstrip()[-1] not in ":=" and (surely := _SURELY.match(tail)):
        tail = tail[surely.end() :]
    corrected = _CORRECTED.split(tail.partition("\n")[0])
    if len(corrected) > 1 and corrected[-1].strip(" .!*"):
        tail = corrected[-1]
    beside = _BESIDE.match(tail)
    tail = tail[beside.end() if beside else 0 :]
    return Marked(tail, how, "\n" in tail.lstrip() or (is_line_ended and bool(tail.strip())))


def _is_result(text: str, end: int) -> bool:
    """Tell the mark of a result from a heading: it is the last line, or holds a number or a letter and hardly more."""
    line, _, rest = text[end : end + 2_000].partition("\n")
    return not rest.strip() or _SHORT_RESULT.fullmatch(line.strip()) is not None


def _braced(text: str, start: int) -> tuple[str, bool]:
    depth = 1
    for position in range(start, len(text)):
        character = text[position]
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:position], True
    return text[start:].partition("\n")[0], False
