"""Where a model's own answer stands in what it wrote: after its thinking, and before the next question that it asks itself.

A base model that was shown worked examples goes on with another question after its answer, and answers that, too. What comes
first counts: a line that opens a new turn (`Question:`, `Q:`, `Problem:`, `Human:`, `### Instruction`) ends the answer, if an
answer may stand before it. Nothing at all is no answer, nor is a sentence that leads to a repeated question (`Let me see:`).
"""

from __future__ import annotations

import itertools
import re

from clear_ray.tasks.thinking import without_thinking

_COLON = r"[*_]{0,2} ?[:\uff1a]"
_TEXTS = "Passage|Context|Text|Document|Premise|Review|Tweet|Sentence|Story|Article|Input"
_TURN = re.compile(
    rf"^(?P<dressed>[ *#>]{{0,8}})(?:(?:Question|Problem|Exercise|Query|Q)(?:(?: ?#?\d{{1,4}})?{_COLON}| ?\d{{1,4}}\. )"
    rf"|(?P<person>(?:Human|User|Instruction)s?{_COLON}|\[INST\]|<\|(?:im_start|start_header_id)\|>(?:user|human)))"
    r"|^(?P<heading>#{1,6} (?:Question|Problem|Instruction)s?[*_ ]*$)"
    rf"|(?<=\n\n)(?P<premise>(?:{_TEXTS}) ?\d{{0,3}}{_COLON})",
    re.MULTILINE,
)
_MOST_TURNS = 20
_FEW_WORDS = 3
_PREMISE = re.compile(rf"\W{{0,4}}(?:{_TEXTS}|Hypothesis|Table) ?\d{{0,3}}{_COLON}")
_ANSWERED = re.compile(
    r"\banswer\b[^\n:=]{0,60}(?:[:=]|\bis\b)[\s*_]{0,5}[^\s*_]|\\boxed|####|</answer>|答案|答え"
    r"|^[ *#]{0,8}(?:A|Solution|Assistant|Antwort|Réponse|Respuesta|Ответ)[*_]{0,2} ?:",
    re.IGNORECASE | re.MULTILINE,
)
_CHECK = re.compile(
    r"(?<=\S)\n[\s*_#]*(?:check|verification|verify|note)\b[^\n:]{0,30}:(?![^\n]*\banswer\b)[^\n]*(?:\n(?!\n)[^\n]*){0,5}\s*\Z",
    re.IGNORECASE,
)
_RULE = re.compile(r"(?<=\S)\s*\n[ \t]*(?:-{3,}|\*{3,}|_{3,})\Z")
_SHORT = 200
_EXPLAINS = re.compile(
    r"\n[\s#*_]*(?:explanation|reasoning|justification|rationale|working|solution)[*_]*:?[*_]*\s", re.IGNORECASE
)
_MOST_COURTESIES = 3
_COURTESY = re.compile(
    r"[\s*_]*(?:let me know|i hope|hope (?:this|that|it)|feel free|"
    r"if you (?:have|need|would|want|'d|are|like)|is there anything"
    r"|would you like|do you (?:want|need|have)|please (?:let|feel|note that i)|thank you|thanks for|happy to|glad to)\b",
    re.IGNORECASE,
)
_LEADS_ON = re.compile(
    r"\W*(?:sure|ok|okay|certainly|of course|great|let|here|first|to (?:solve|answer|find|begin|determine)|i(?:'ll| will|'d)"
    r"|we (?:need|are|will|want)|(?:the|this|your|my) (?:question|problem|task)|given|restating|solution|explanation)\b"
    r"[^\d]*\Z",
    re.IGNORECASE,
)


def own_answer(text: str) -> str | None:
    """Return what a model says after its thinking and before a next question of its own; None if the thinking does not end.

    Args:
        text: What the model wrote.
    """
    visible = without_thinking(text)
    if visible is None:
        return None
    return without_courtesy(before_explanation(_CHECK.sub("", before_next_turn(visible))))


def before_explanation(visible: str) -> str:
    """Return the short answer before a heading that explains it: of `42` and `### Explanation` the 42.

    A text without one, and one that answers again under it, is returned as it is.

    Args:
        visible: The text without its thinking.
    """
    found = _EXPLAINS.search(visible[:_SHORT])
    before = visible[: found.start()] if found and not _ANSWERED.search(visible, found.end()) else ""
    return before if 0 < len(before.split()) <= _FEW_WORDS and "\n" not in before.strip() else visible


def without_courtesy(visible: str) -> str:
    """Return a text without the offers and wishes on which it ends: `Let me know if you need anything else!`.

    Args:
        visible: The text without its thinking.
    """
    for _ in range(_MOST_COURTESIES):
        end = _RULE.sub("", visible.rstrip())
        begin = max(end.rfind("\n"), *(end.rfind(stop, 0, len(end) - 1) for stop in (". ", "! ", "? "))) + 1
        if begin == 0 or _COURTESY.match(end, begin) is None:
            return visible if end == visible.rstrip() or not end.strip() else end
        visible = end[:begin]
    return visible


def before_next_turn(visible: str) -> str:
    """Return a text without the turns that a model goes on with after its answer.

    Args:
        visible: The text without its thinking.
    """
    asked = None
    for found in itertools.islice(_TURN.finditer(visible), _MOST_TURNS):
        before = visible[: found.start()]
        if before.count("```") % 2:
            continue
        is_dressed = not found["person"] and bool((found["dressed"] or "").strip())
        is_sure = asked is not None or is_dressed or bool(found["premise"] or found["heading"])
        if _is_answer(before[asked or 0 :], is_sure=is_sure):
            return _without_premise(before)
        asked = found.start() if asked is None else asked
    return visible


def _is_answer(before: str, *, is_sure: bool) -> bool:
    """Tell whether a text holds an answer: a marked or very short one, or, if it need not be sure, any that ends there."""
    if not before.strip():
        return False
    if _ANSWERED.search(before):
        return True
    paragraph = before.rstrip().rpartition("\n\n")[2].strip()
    if is_sure:
        return not paragraph.endswith(":") and len(before.split(maxsplit=_FEW_WORDS)) <= _FEW_WORDS
    return not paragraph.endswith(":") and _LEADS_ON.match(paragraph) is None


def _without_premise(before: str) -> str:
    """Return a text without a last paragraph that already belongs to the next question: `Passage: …`."""
    head, gap, paragraph = before.rpartition("\n\n")
    return head + gap if head.strip() and _PREMISE.match(paragraph) else before
