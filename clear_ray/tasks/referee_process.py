"""The far end of the referee: run as a program of its own, importing nothing of clear_ray.

Reads one JSON request a line, writes one JSON reply a line. Requests:

    {}                                                      -> ready
    {"do": "generate", task, params, seed, count, skip}     -> entries of reasoning-gym, no two with the same question
    {"do": "gym", answer, metadata}                         -> reasoning-gym's score of the answer
    {"do": "math", answer, gold}                            -> 1 if math-verify finds them equal, else 0

A check may use five seconds of processor time, counted as such so that a busy machine changes no score, and two gigabytes
more than it found. Breaking the first limit ends the process at once: the alarm is left to the kernel, because neither a
power of large integers nor a regular expression can be interrupted from Python.

Some checks of reasoning-gym evaluate the answer as a Python program. `_is_harmless` lets only arithmetic and literals
through to those. It narrows what a model's text can do on this machine; it is no sandbox for an attacker's.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CHECK_SECONDS = 5.0
CHECK_BYTES = 2 << 30
WALL_SECONDS = 120.0
LONGEST_ANSWER = 20_000
# The tasks of reasoning-gym 0.1.25 whose check hands the answer to eval() or to sympy.parse_expr(), which calls it.
EVALUATING = frozenset(
    {
        "binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24",
        "simple_integration", "spiral_matrix", "string_insertion",
    }
)  # fmt: skip
_ARITHMETIC = re.compile(r"[A-Za-z0-9\s+\-*/^().,=\[\]]*", re.ASCII)
_WORD = re.compile(r"[A-Za-z]+")
_FUNCTIONS = frozenset(
    {
        "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "ln",
        "sqrt", "pi", "Abs", "erf",
    }
)  # fmt: skip


def generate(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Return `count` entries with questions that differ from each other and from those in `skip`."""
    task, count, seen = request["task"], request["count"], set(request["skip"])
    draws = max(10_000, 20 * count)
    dataset = _dataset(task, json.dumps(request["params"]), request["seed"], draws)
    entries: list[dict[str, Any]] = []
    for k in range(draws):
        entry = dataset[k]
        if entry["question"] in seen:
            continue
        seen.add(entry["question"])
        kept = json.loads(json.dumps(entry, default=str))
        gold = entry["answer"]
        # Some checks need the very objects that JSON loses; better no query than one that nothing can answer.
        if gold is not None and dataset.score_answer(gold, kept) < dataset.score_answer(gold, entry):
            raise ValueError("this task's answers cannot be scored from JSON")
        entries.append(kept)
        if len(entries) == count:
            return entries
    raise ValueError(f"it has no {count} different questions with these params: {len(entries)} found in {draws} draws")


def score_gym(request: dict[str, Any]) -> float:
    """Return reasoning-gym's score of an answer."""
    metadata = json.loads(request["metadata"])
    task, entry, answer = metadata["task"], metadata["entry"], request["answer"]
    dataset = _dataset(task, json.dumps(metadata["params"]), 0, 1)
    if len(answer) > LONGEST_ANSWER:
        return 0.0
    # The full stop that ends a sentence is part of some answers: extraction took it off, so both are tried.
    return max(_score_one(dataset, task, text, entry) for text in (answer, answer + "."))


def _score_one(dataset: Any, task: str, answer: str, entry: dict[str, Any]) -> float:
    if task in EVALUATING and answer != entry["answer"] and not _is_harmless(answer):
        return 0.0
    with _limits():
        try:
            return float(dataset.score_answer(answer, entry))
        except Exception:  # no check of a text may fail: what it cannot read is wrong
            return 0.0


def score_math(request: dict[str, Any]) -> float:
    """Return 1 if math-verify finds answer and gold equal."""
    import math_verify

    if len(request["answer"]) > LONGEST_ANSWER:
        return 0.0
    with _limits():
        try:
            # Its own timeouts are switched off: they need the main thread's signals, which are in use here.
            parsed = [
                math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=None)
                for text in (request["gold"], request["answer"])
            ]
            return float(
                math_verify.verify(*parsed, timeout_seconds=None)
                or math_verify.verify(parsed[0], _with_constants(*parsed), timeout_seconds=None)
            )
        except Exception:
            return 0.0


def _with_constants(gold: list[Any], answer: list[Any]) -> list[Any]:
    """Return a parsed answer with its e and i as numbers, if they are no variables of the gold answer: e^{i pi} is -1."""
    import sympy

    known = {name.name for part in gold for name in getattr(part, "free_symbols", ())}
    constants = {name: value for name, value in (("e", sympy.E), ("i", sympy.I)) if name not in known}
    return [
        part.subs({name: constants[name.name] for name in part.free_symbols if name.name in constants})
        if isinstance(part, sympy.Expr)
        else part
        for part in answer
    ]


@functools.lru_cache(maxsize=64)
def _dataset(task: str, params: str, seed: int, size: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(task, **json.loads(params), seed=seed, size=size)


def _is_harmless(answer: str) -> bool:
    try:
        ast.literal_eval(answer.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    else:
        return True
    if not _ARITHMETIC.fullmatch(answer) or re.search(r"\.\s*[A-Za-z]", answer):
        return False
    return all(len(word) == 1 or word in _FUNCTIONS for word in _WORD.findall(answer))


@contextmanager
def _limits() -> Iterator[None]:
    """Limit processor time, wall time and memory of the block; breaking a time limit ends the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = _address_space_bytes()
    if used is not None:
        most = used + CHECK_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, CHECK_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space_bytes() -> int | None:
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux: no memory limit
        return None


def main() -> None:
    """Answer requests until the input ends."""
    doing: dict[str, Callable[[dict[str, Any]], Any]] = {"generate": generate, "gym": score_gym, "math": score_math}
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # some generators print; the pipe is for replies alone
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"value": doing[request["do"]](request) if request else "ready"}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
