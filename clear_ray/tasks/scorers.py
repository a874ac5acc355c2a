"""Scorers: how much an answer is worth, from 0 to 1, and why.

The named kinds (`kinds`) extract an answer and compare it with the gold answer. `exact`, `number`, `choice` and `json` do so
in this process. `math` and `reasoning_gym` ask the referee's process, `code` a sandbox: the same answer always gets the same
score, and one that cannot be judged within their limits gets 0. A scorer of the user's own is any function with the
signature of `Scorer`, named `package.module:function`; it is called in a process of its own, too.

A scorer sees text only. What an unfinished generation is worth is decided by its caller; see `has_complete_answer`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from clear_ray.errors import ClearRayError, ConfigError
from clear_ray.tasks.answers import extract_answer
from clear_ray.tasks.code_scorer import CODE_MEMORY_MIB, CODE_SECONDS, judge_code
from clear_ray.tasks.kinds import COMPARED_HERE, as_kind, judge_here
from clear_ray.tasks.referee import shared_referee
from clear_ray.tasks.user_scorer import UserScorer
from clear_ray.tasks.verdict import NO_ANSWER, NO_GOLD, PARTLY, RIGHT, TIMED_OUT, WRONG, Verdict

EXTRA = "Install it with pip install 'clear_ray[tasks]'."
_WHERE = "scoring.scorer"
AUTO = "auto"
"""Names the scorer that fits the gold answers of a batch; see `survey`."""
SCORERS = ("exact", "number", "choice", "math", "regex", "json", "code", AUTO, "math_verify", "reasoning_gym")
_PACKAGES = {"math_verify": "math-verify", "reasoning_gym": "reasoning-gym"}
_RIGHT_FROM = 0.99  # below lie reasoning-gym's rewards for form, such as 0.01 for trying: not answers


class Scorer(Protocol):
    """What every scorer is called like; it can be pickled and called from any thread."""

    def __call__(self, text: str, gold: str | None, metadata: str | None, /) -> float | None:
        """Return the worth of an answer from 0 to 1, or None if there is nothing to compare it with.

        Args:
            text: What the model wrote.
            gold: The query's reference answer, if it has one.
            metadata: JSON text of the query's own for the scorer, if it has any.
        """


def load_scorer(
    name: str,
    *,
    timeout_seconds: float = 60.0,
    code_seconds: float = CODE_SECONDS,
    code_memory_mib: int = CODE_MEMORY_MIB,
) -> Scorer:
    """Return the scorer of a name.

    Args:
        name: One of the kinds of docs/scoring.md: `exact`, `number`, `choice`, `math` (also by its older name `math_verify`),
            `regex`, `json`, `code`. `auto` without a batch to choose by is `exact`.
            `reasoning_gym`: reasoning-gym's own check of the final answer, 1 if it gives (nearly) full marks, else 0; needs
            the metadata that `generate_queries` writes.
            `package.module:function`: a function of yours, called as `function(text, gold, metadata)`. The module must be
            importable in every worker; the working folder is searched last. Whatever it raises, or returns other than
            None or a number from 0 to 1, becomes that query's error; so does the death of the process it is called in.
        timeout_seconds: How long one call of a function of yours may take; then its process is ended.
        code_seconds: Processor time of one program of `code` with all its tests.
        code_memory_mib: Its memory.

    Raises:
        ConfigError: No such scorer, the package it needs is missing, or the function cannot be imported.
    """
    if name == "code":
        return _named("code", code_seconds, code_memory_mib)
    if name in SCORERS:
        needed = "math_verify" if name == "math" else name
        if needed in _PACKAGES:
            require(needed, where=_WHERE)
        return _named({AUTO: "exact", "math_verify": "math"}.get(name, name), CODE_SECONDS, CODE_MEMORY_MIB)
    if ":" in name:
        return UserScorer(name, timeout_seconds)
    raise ConfigError("no such scorer", _WHERE, name, f"Use {', '.join(SCORERS)} or package.module:function.")


def require(module: str, *, where: str) -> None:
    """Refuse to go on without one of the packages of the `tasks` extra.

    Raises:
        ConfigError: The package is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"the package {_PACKAGES[module]} is not installed", where, "", EXTRA)


class NamedScorer:
    """A scorer of a name; made by `load_scorer`.

    Args:
        name: A kind, or `reasoning_gym`.
        code_seconds: See `load_scorer`.
        code_memory_mib: See `load_scorer`.
    """

    def __init__(self, name: str, code_seconds: float, code_memory_mib: int) -> None:
        self.name, self._code_seconds, self._code_memory_mib = name, code_seconds, code_memory_mib

    def __call__(self, text: str, gold: str | None, metadata: str | None, /) -> float | None:
        """Return the score alone; `judge` also says why."""
        return self.judge(text, gold, metadata).score

    def judge(
        self, text: str, gold: str | None, metadata: str | None, *, prompt: str = "", is_conversation: bool = False
    ) -> Verdict:
        """Return the verdict on an answer.

        Args:
            text: What the model wrote.
            gold: The query's reference answer, if it has one.
            metadata: JSON text of the query's own, if it has any.
            prompt: The question, for options, for a program that goes on with it, and for `any order`.
            is_conversation: Whether `prompt` is JSON messages.

        Raises:
            ClearRayError: The metadata is not what `generate_queries` wrote, or the process that judges does not start.
        """
        asked: dict[str, Any] = {"prompt": prompt, "is_conversation": is_conversation}
        if self.name == "code":
            limits: dict[str, Any] = {"seconds": self._code_seconds, "memory_mib": self._code_memory_mib}
            return judge_code(text, gold, metadata, **asked, **limits)
        kind = as_kind(self.name)
        return _judge_gym(text, metadata) if kind is None else judge_here(kind, text, gold, prove=prove_equal, **asked)

    def __reduce__(self) -> tuple[Callable[..., NamedScorer], tuple[str, float, int]]:
        return _named, (self.name, self._code_seconds, self._code_memory_mib)


@functools.cache
def _named(name: str, code_seconds: float, code_memory_mib: int) -> NamedScorer:
    return NamedScorer(name, code_seconds, code_memory_mib)


def judged_by(
    scorer: Callable[..., float | None],
    text: str,
    gold: str | None,
    metadata: str | None,
    *,
    prompt: str = "",
    is_conversation: bool = False,
) -> Verdict:
    """Return a scorer's verdict; of a function of the user's, what its number says.

    Args:
        scorer: As `load_scorer` returns it.
        text: What the model wrote.
        gold: The query's reference answer, if it has one.
        metadata: JSON text of the query's own, if it has any.
        prompt: The question.
        is_conversation: Whether `prompt` is JSON messages.
    """
    if isinstance(scorer, NamedScorer):
        return scorer.judge(text, gold, metadata, prompt=prompt, is_conversation=is_conversation)
    score = scorer(text, gold, metadata)
    if score is None:
        return Verdict(None, NO_GOLD if gold is None else "")
    return Verdict(score, {1.0: RIGHT, 0.0: WRONG}.get(score, PARTLY))


def prove_equal(answer: str, gold: str) -> bool | None:
    """Ask math-verify whether two formulas are equal; None if the referee's limits were broken over it."""
    value = _judged({"do": "math", "answer": answer, "gold": gold})
    return None if value is None else value >= 0.5


def _judge_gym(text: str, metadata: str | None) -> Verdict:
    if metadata is None:
        return Verdict(None, NO_GOLD)
    answer = extract_answer(text)
    score = _judged({"do": "gym", "answer": answer, "metadata": metadata})
    if score is None:
        return Verdict(0.0, TIMED_OUT, answer or None)
    if score >= _RIGHT_FROM:
        return Verdict(1.0, RIGHT, answer)
    return Verdict(0.0, WRONG, answer) if answer else Verdict(0.0, NO_ANSWER)


def scores_at_once(scorer: Callable[..., float | None]) -> bool:
    """Tell a scorer that computes in this process, in microseconds, from one that may wait for another process."""
    if isinstance(scorer, NamedScorer):
        return scorer.name in COMPARED_HERE
    return isinstance(scorer, UserScorer) and scorer.is_ours


def get_ready(scorer: Callable[..., float | None], metadata: str | None) -> None:
    """Have the process that judges started before there is an answer to judge, which takes a second.

    A function of the user's is not called, and what keeps the process from starting is told with the first answer.

    Args:
        scorer: As `load_scorer` returns it.
        metadata: That of a query, by which it sees what it needs.
    """
    if not isinstance(scorer, NamedScorer):
        return
    with suppress(ClearRayError):
        if scorer.name == "math":
            prove_equal("1", "1")
        elif scorer.name == "reasoning_gym":
            scorer.judge("", None, metadata)


def _judged(request: dict[str, str]) -> float | None:
    """Return the referee's score; None if the answer broke its limits."""
    reply = shared_referee().ask(request)
    if reply is None:
        return None
    if "error" in reply:
        raise ClearRayError("the answer cannot be scored", _WHERE, str(reply["error"]), "Check the metadata column.")
    return min(max(float(reply["value"]), 0.0), 1.0)
