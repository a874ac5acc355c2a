r"""The final answer inside a generated text.

One rule for every scorer, in this order:

1. The last mark wins: `Answer: …` (also `answer is …`, `Answer = …`; the rest of that line, or the next line if
   nothing follows) or `\boxed{…}` (what is inside the braces).
2. Without a mark, the last line that is not empty: as it is if it has at most three words, else the last number in it,
   else the whole line.

Markup around the answer is taken off: `**…**`, backticks, dollar signs, quotation marks, one full stop at the end.
"""

from __future__ import annotations

import re
import unicodedata

_MARK = re.compile(r"\banswer(?:\s{1,3}is\b)?\s{0,3}[:=]|\banswer\s{1,3}is\b", re.IGNORECASE)
_BOX = "\\boxed{"
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)", re.ASCII)
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PAIRS = (("**", "**"), ("`", "`"), ("$", "$"), ("\\(", "\\)"), ("\\text{", "}"), ('"', '"'), ("“", "”"))
_FEW_WORDS = 3


def extract_answer(text: str) -> str:
    """Return the final answer of a generated text, without markup; empty if there is none.

    The rule is in the module's docstring. The work is linear in the length of the text, whatever it holds.

    Args:
        text: What the model wrote, finished or not.
    """
    marked = _last_marked(text)
    if marked is not None:
        return tidy(marked[0])
    line = text.rstrip().rpartition("\n")[2].strip()
    if len(line.split(maxsplit=_FEW_WORDS)) > _FEW_WORDS:
        numbers = _NUMBER.findall(line)
        if numbers:
            return str(numbers[-1]).rstrip(",")
    return tidy(line)


def has_complete_answer(text: str) -> bool:
    r"""Say whether the last marked answer of a text can no longer change.

    A generation that was cut off may still hold its answer. It is complete if the mark's line has ended (`Answer: 12`
    and a line break) or its box is closed; `Answer: 12` at the very end may have been on the way to 125. clear_ray counts
    an unfinished generation as wrong; this is for users that want to count such answers.

    Args:
        text: What the model wrote before it was cut off.
    """
    marked = _last_marked(text)
    return marked is not None and marked[1]


def tidy(answer: str) -> str:
    """Return an answer without the markup around it and without one full stop at its end."""
    answer = answer.strip()
    for _ in range(3):  # markup nests: **$12$**.
        before = answer
        if answer.endswith(".") and not answer.endswith(".."):
            answer = answer[:-1].rstrip()
        for opening, closing in _PAIRS:
            if len(answer) > len(opening + closing) and answer.startswith(opening) and answer.endswith(closing):
                inner = answer[len(opening) : -len(closing)]
                answer = answer if closing in inner else inner.strip()
        if answer == before:
            break
    return answer


def normalise(answer: str) -> str:
    """Return an answer in the form in which equal answers are equal: case, spaces, digit groups and 12.0 levelled."""
    answer = " ".join(unicodedata.normalize("NFKC", tidy(answer)).casefold().split())
    grouped = _GROUPED.sub("", answer)
    if not _PLAIN_NUMBER.fullmatch(grouped):
        return answer
    whole, _, fraction = grouped.lstrip("+-").partition(".")
    digits = (whole.lstrip("0") or "0") + ("." + fraction.rstrip("0")).rstrip(".")
    return f"-{digits}" if grouped.startswith("-") and digits != "0" else digits


def _last_marked(text: str) -> tuple[str, bool] | None:
    """Return what follows the last mark and whether it is complete; None without a mark."""
    mark = -1
    for found in _MARK.finditer(text):
        mark = found.end()
    box = text.rfind(_BOX)
    if box >= 0 and box + len(_BOX) > mark:
        return _braced(text, box + len(_BOX))
    if mark < 0:
        return None
    line, line_break, _ = _after_mark(text, mark).partition("\n")
    return line, bool(line_break) and bool(line.strip())


def _after_mark(text: str, mark: int) -> str:
    rest = text[mark:]
    # The mark itself may be bold, `**Answer:** 12`: what closes it is no part of the answer.
    return rest.removeprefix("**").lstrip()


def _braced(text: str, start: int) -> tuple[str, bool]:
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position], True
    return text[start:].partition("\n")[0], False
