"""The near end of the `code` scorer: reads program and tests here, and has them run by `code_process` in a sandbox."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from clear_ray.errors import ConfigError
from clear_ray.tasks.child import Child
from clear_ray.tasks.gold import unwrapped_gold
from clear_ray.tasks.programs import completed, read_program, tests_of
from clear_ray.tasks.turns import own_answer
from clear_ray.tasks.verdict import BAD_GOLD, NO_ANSWER, NO_GOLD, RIGHT, TIMED_OUT, WRONG, Verdict
from clear_ray.tasks.writing import asked_last

CODE_SECONDS = 10.0
CODE_MEMORY_MIB = 1_024
_PROGRAM = Path(__file__).with_name("code_process.py")
_SETTINGS = {"PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore", "PYTHONDONTWRITEBYTECODE": "1"}
_WHERE = "scoring.scorer"
_SPARE_SECONDS = 60.0


def judge_code(
    text: str,
    gold: str | None,
    metadata: str | None,
    *,
    prompt: str = "",
    is_conversation: bool = False,
    seconds: float = CODE_SECONDS,
    memory_mib: int = CODE_MEMORY_MIB,
) -> Verdict:
    """Score a program by the tests that are its gold answer.

    Args:
        text: What the model wrote.
        gold: The tests; see `programs`.
        metadata: JSON that may name the tests' `entry_point` and `test_setup_code`.
        prompt: The question; a program may go on with the function that it begins.
        is_conversation: Whether `prompt` is JSON messages, of which the last one counts.
        seconds: Processor time of the program with all its tests, and three times as much wall time.
        memory_mib: Its address space.

    Raises:
        ConfigError: The sandbox's process does not start.
    """
    if gold is None:
        return Verdict(None, NO_GOLD)
    asked = asked_last(prompt, is_conversation=is_conversation)
    tests = tests_of(unwrapped_gold(gold), metadata, asked)
    if tests is None:
        return Verdict(None, BAD_GOLD)
    visible = own_answer(text)
    program = completed(read_program(visible), visible, asked, tests.entry_point) if visible else ""
    if not program.strip():
        return Verdict(0.0, NO_ANSWER)
    cases = [list(case) for case in tests.cases]
    limits = {"seconds": seconds, "memory_bytes": memory_mib << 20}
    reply = _ask(
        {"program": program, "tests": tests.source, "cases": cases, **limits}, 4 * seconds * max(len(cases), 1)
    )
    return Verdict(float(reply["reason"] == RIGHT), reply["reason"], reply["said"] or None)


def sandbox_in_force() -> dict[str, bool]:
    """Return which parts of the sandbox this machine has: `network`, `files`, `processes`; see `sandbox`.

    Raises:
        ConfigError: The sandbox's process does not start.
    """
    return _ask({}, 0.0)


def sandbox_warning() -> str:
    """Return what a program of `code` could do on this machine that it should not; empty if there is nothing of the kind.

    Raises:
        ConfigError: The sandbox's process does not start.
    """
    in_force = sandbox_in_force()
    would_be = {"network": "use the network", "files": "read and write your files"}
    free = [said for part, said in would_be.items() if not in_force[part]]
    return f"programs that a model wrote can {' and '.join(free)} on this machine (docs/scoring.md)" if free else ""


def _ask(request: dict[str, Any], seconds: float) -> dict[str, Any]:
    try:
        reply = _child_of(os.getpid()).ask(request, seconds=seconds + _SPARE_SECONDS)
    except TimeoutError:
        return {"reason": TIMED_OUT, "said": "it took too long"}
    except ConnectionError as error:  # only a program that is no good ends the process that runs it
        return {"reason": WRONG, "said": f"it ended its sandbox: {error}"}
    except ChildProcessError as error:
        remedy = f"Run it by hand to see why: {_PROGRAM}."
        raise ConfigError("the process that runs programs does not start", _WHERE, str(error), remedy) from error
    if reply.get("reason") == "failed":
        raise ConfigError("programs cannot be run", _WHERE, str(reply["said"]), "Free space in the temporary folder.")
    return reply


@functools.cache
def _child_of(process_id: int) -> Child:
    """Return this process's child; a forked process gets one of its own, as with the referee."""
    return Child(_PROGRAM, settings=_SETTINGS, is_bare=True)
