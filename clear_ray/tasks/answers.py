r"""The final answer inside a generated text, where no kind is in mind: `reasoning_gym`, demonstrations, callers.

One rule, in this order, on the text after its thinking (`thinking`):

1. The last mark wins (`marks`): `Answer: …`, `answer is …` (the rest of that line, or the next line if nothing follows),
   `\boxed{…}`, `<answer>…</answer>`, `#### …`.
2. Without a mark, the last line that is not empty: as it is if it has at most three words, else the last number in it,
   else the whole line.

Markup around the answer is taken off: `**…**`, backticks, dollar signs, quotation marks, one full stop at the end.
"""

from __future__ import annotations

from clear_ray.tasks.marks import locate
from clear_ray.tasks.turns import own_answer
from clear_ray.tasks.wordings import line_answer
from clear_ray.tasks.writing import plain


def extract_answer(text: str) -> str:
    """Return the final answer of a generated text, without markup; empty if there is none.

    The rule is in the module's docstring. The work is linear in the length of the text, whatever it holds.

    Args:
        text: What the model wrote, finished or not.
    """
    visible = own_answer(text)
    return "" if visible is None else line_answer(locate(plain(visible)))


def has_complete_answer(text: str) -> bool:
    r"""Say whether the last marked answer of a text can no longer change.

    A generation that was cut off may still hold its answer. It is complete if the mark's line has ended (`Answer: 12`
    and a line break) or its box is closed; `Answer: 12` at the very end may have been on the way to 125. clear_ray counts
    an unfinished generation as wrong; this is for users that want to count such answers.

    Args:
        text: What the model wrote before it was cut off.
    """
    visible = own_answer(text)
    marked = None if visible is None else locate(plain(visible)).marked
    return marked is not None and marked.is_complete
