"""What a model thinks before it answers is not its answer: a guess inside does not count."""

from __future__ import annotations

import re

_TAGS = "think|thinking|thought|thoughts|reasoning|reflection|seed:think|scratchpad|analysis|cot"
_CLOSING = re.compile(rf"</(?:{_TAGS})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>", re.IGNORECASE)
_OPENING = re.compile(rf"<(?:{_TAGS})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>", re.IGNORECASE)
_FINAL_CHANNEL, _ANY_CHANNEL = "<|channel|>final<|message|>", "<|channel|>"
_END_OF_MESSAGE = re.compile(r"<\|(?:end|return|im_end|eot_id|endoftext)\|>|</s>\s*(?:\Z|(?=<s>|\[INST\]))")
_SOLUTION = re.compile(r"<\|(?:begin|end)_of_solution\|>")
_BARE_ANALYSIS, _BARE_FINAL = "analysis", "assistantfinal"


def without_thinking(text: str) -> str | None:
    """Return what a text says after its thinking, or None if the thinking does not end.

    A template that begins the thinking itself leaves only its end in the text: whatever stands before the last end of
    thinking is cut. Known are `<think>` and words like it, `[THINK]`, and the channels of gpt-oss, with and without their
    special tokens.

    Args:
        text: What the model wrote.
    """
    if _FINAL_CHANNEL in text:
        text = text.rpartition(_FINAL_CHANNEL)[2]
    elif _ANY_CHANNEL in text:
        return None
    elif text.startswith((_BARE_ANALYSIS, "assistantanalysis")) and _BARE_FINAL in text:
        text = text.rpartition(_BARE_FINAL)[2]
    end = 0
    for found in _CLOSING.finditer(text):
        end = found.end()
    visible = text[end:]
    if _OPENING.search(visible):
        return None
    return _SOLUTION.sub("", _END_OF_MESSAGE.split(visible, maxsplit=1)[0])
