"""Cheap scalar features of a query: what its text and the probe's two numbers say without a hidden state.

No task label is read. The numbers in a question get room because their size and count decide how hard arithmetic is
for a small model; for other text these features are simply constant, and a constant tells a fit nothing.

Shapes: N queries, T scalar features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features, Prompt, TokenIds

TEXT_NAMES = (
    "log_prompt_tokens", "entropy_nats", "log_characters", "log_words", "log_lines", "log_brackets",
    "log_numbers", "mean_log_number", "max_log_number", "log_sum_log_number", "signed_sum",
    "log_minus", "log_plus", "log_times", "log_over",
)  # fmt: skip

# The last user message of the usual chat templates; the template itself says nothing about the query.
_USER_TURN = re.compile(r"<\|im_start\|>user|<\|user\|>|<start_of_turn>user|\[INST\]|<\|start_header_id\|>user")
_TURN_END = re.compile(r"<\|im_end\|>|<\|end\|>|<end_of_turn>|\[/INST\]|<\|eot_id\|>")
_SIGNED = re.compile(r"(-\s*)?(\d{1,300}(?:\.\d{1,300})?)")
_OPERATORS = (
    re.compile(r"(?<=[\d\s(])-\s*(?=[\d(-])"),
    re.compile(r"[\d)]\s*\+"),
    re.compile("[\\d)]\\s*[*\u00d7]"),
    re.compile(r"[\d)]\s*/"),
)


def question_text(prompt: Prompt) -> str:
    """Return the last user message of a prompt, rendered or as a conversation; all of it if no turn is marked."""
    if isinstance(prompt, TokenIds):
        return ""
    if not isinstance(prompt, str):
        turns = [content for role, content in prompt if role == "user"]
        return turns[-1] if turns else ""
    starts = [match.end() for match in _USER_TURN.finditer(prompt)]
    return _TURN_END.split(prompt[starts[-1] :])[0].strip() if starts else prompt


def text_features(features: Features, prompts: Sequence[Prompt]) -> NDArray[np.float64]:
    """Return the scalar features named in `TEXT_NAMES`, one row a query; a missing entropy is NaN."""
    rows = np.array([_row(question_text(prompt)) for prompt in prompts]).reshape(len(prompts), len(TEXT_NAMES) - 2)
    probed = np.stack([np.log(np.maximum(features.prompt_tokens_N, 1)), features.entropy_N], axis=1)
    return np.concatenate([probed.astype(np.float64), rows], axis=1)


def _row(text: str) -> list[float]:
    found = [(sign, float(digits)) for sign, digits in _SIGNED.findall(text)]
    logs = [float(np.log10(1 + number)) for _, number in found]
    # asinh keeps the sign and tames the size; an answer below zero is harder than its mirror image.
    signed_sum = float(np.arcsinh(sum(-number if sign else number for sign, number in found)))
    lengths = (len(text), len(text.split()), text.count("\n"), text.count("("), len(found))
    operators = (len(pattern.findall(text)) for pattern in _OPERATORS)
    mean_log, max_log = (float(np.mean(logs)), max(logs)) if logs else (0.0, 0.0)
    return [
        *(float(np.log1p(length)) for length in lengths),
        mean_log, max_log, float(np.log1p(sum(logs))), signed_sum,
        *(float(np.log1p(operator)) for operator in operators),
    ]  # fmt: skip
