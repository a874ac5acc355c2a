"""A finished run, written down by hand after a replay of recorded rollouts under ceilings; plain and hostile."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from clear_ray.report.plan import PlanReport
from clear_ray.report.summary import BudgetPoint, ProgressSnapshot, RoundReport, RunReport, TaskReport

HOSTILE = (
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "</style></svg></table><script src=//evil.example/x.js></script>",
    "javascript:alert(3)",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{2}$ $unclosed",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe \N{HEBREW LETTER ALEF}\N{ARABIC LETTER BEH}",
    "\x1b[2J\x1b]0;title\x07 \x00 \r\n <b>bold</b>",
    "\ud800 lone \udfff",
    "&amp;lt;script&gt; &#60;script&#62;",
)

# task, queries, funded, spent, expected, correct: the recorded mix at 32 tokens a query
_TASKS = (
    ("chain_sum", 42, 31, 1_904, 11.2, 12.0),
    ("basic_arithmetic", 36, 22, 1_311, 8.9, 8.0),
    ("number_sorting", 30, 14, 902, 4.1, 5.0),
    ("letter_counting", 29, 18, 744, 5.6, 4.0),
    ("leg_counting", 26, 5, 512, 1.3, 1.0),
    ("bitwise_arithmetic", 22, 0, 0, 0.0, 0.0),
    ("word_ladder", 14, 2, 995, 0.4, 0.0),
)


def round_report(number: int = 1, **changes: Any) -> RoundReport:
    """Return one clearing; later rounds are smaller."""
    fields: dict[str, Any] = {
        "number": number,
        "shadow_price": 0.0031 / number,
        "available_tokens": 6_368 // number**2,
        "fresh": 81 // number**2,
        "continued": 4 * (number - 1),
        "granted_tokens": 6_350 // number**2,
        "expected_tokens": 6_300.0 / number**2,
        "expected_utility": 28.4 / number**2,
        "dual_bound": 28.52 / number**2,
        "gap": 0.12 / number**2,
        "spent_tokens": 4_600 // number**2,
        "finished": 74 // number**2,
        "correct": 27.0 // number**2,
        "seconds": 21.3 / number,
    }
    return RoundReport(**fields | changes)


def run_report(**changes: Any) -> RunReport:
    """Return the report of a run of 199 queries under a scarce budget."""
    curve = [
        (1_592, 0.0078, 12.0, 9.0, 31),
        (3_184, 0.0052, 22.3, 11.7, 58),
        (6_368, 0.0031, 31.5, 15.1, 92),
        (9_552, 0.0019, 37.8, 19.2, 121),
        (12_736, 0.0011, 41.0, 25.7, 146),
        (19_104, 0.0004, 44.2, 38.0, 180),
        (25_472, 0.0, 46.0, 45.1, 199),
    ]
    fields: dict[str, Any] = {
        "run_dir": "/data/runs/demo",
        "model": "smollm2-135m-instruct",
        "head": "demo",
        "policy": "clear_ray",
        "budget_tokens": 6_368,
        "spent_tokens": 6_341,
        "generated_tokens": 6_341,
        "wasted_tokens": 112,
        "prefill_tokens": 24_310,
        "shadow_price": 0.0031,
        "queries": 199,
        "completed": 90,
        "stopped": 79,
        "truncated": 11,
        "abandoned": 107,
        "failed": 2,
        "scored": 199,
        "correct": 30.0,
        "expected_utility": 31.5,
        "uniform_max_tokens": 33,
        "uniform_expected_utility": 15.1,
        "rounds": tuple(round_report(number) for number in (1, 2, 3)),
        "tasks": tuple(
            TaskReport(
                task=task, queries=queries, funded=funded, spent_tokens=spent, expected_utility=expected, correct=right
            )
            for task, queries, funded, spent, expected, right in _TASKS
        ),
        "budget_curve": tuple(
            BudgetPoint(
                budget_tokens=budget, shadow_price=price, utility=utility, uniform_utility=uniform, funded=funded
            )
            for budget, price, utility, uniform, funded in curve
        ),
        "seconds": 193.0,
        "stopped_early": "",
    }
    return RunReport(**fields | changes)


def completions(queries: int = 199) -> Iterator[dict[str, Any]]:
    """Yield rows of `completions/`: of nine queries four are abandoned, and every hundredth fails."""
    draw = random.Random(7)
    for index in range(queries):
        task = _TASKS[index % len(_TASKS)][0]
        granted = draw.choice((38, 52, 71, 96, 140))
        spent = min(granted, int(draw.gammavariate(4.0, 14.0)) + 9)
        row: dict[str, Any] = {
            "index": index,
            "query_id": f"{task}-{index:04d}",
            "status": "completed",
            "finish_reason": "length" if spent == granted else "stop",
            "text": f"First, add the two numbers.\n{index} + 17 = {index + 17}\n\nAnswer: {index + 17}",
            "max_tokens": granted,
            "spent_tokens": spent,
            "rounds": 1 + index % 3 // 2,
            "price": 0.0031,
            "expected_utility": 0.42,
            "surplus": 0.18,
            "reservation_price": 0.02,
            "prompt_tokens": 40,
            "reason": f"Funded: {granted} tokens are worth more than they cost.",
            "error": None,
            "weight": 1.0,
            "cost": 1.0,
            "task": task,
            "gold": str(index + 17),
            "correct": float(spent < granted and draw.random() < 0.5),
        }
        if index % 9 < 4:
            row |= {"status": "abandoned", "finish_reason": None, "text": None, "max_tokens": 0, "spent_tokens": 0}
            row |= {"rounds": 0, "price": None, "expected_utility": 0.0, "surplus": 0.0, "correct": None}
            row |= {"reservation_price": (1 - draw.random()) / 500}
            row |= {"reason": "Abandoned: its reservation price of 0.0021 is below the price of 0.0031."}
        elif index % 100 == 97:
            row |= {
                "status": "failed",
                "finish_reason": None,
                "text": None,
                "error": "prompt: longer than the context.",
            }
            row |= {"correct": None, "reason": "Failed while it was generated."}
        yield row


def hostile_report() -> RunReport:
    """Return a run whose every string wants to be something else than text."""
    tasks = tuple(
        TaskReport(task=text, queries=20 - at, funded=9, spent_tokens=400, expected_utility=3.0, correct=2.0)
        for at, text in enumerate(_without_surrogates(HOSTILE))
    )
    one, two, three, four, *_ = HOSTILE
    return run_report(tasks=tasks, run_dir=one, model=two, head=three, stopped_early=four, policy=one)


def hostile_completions() -> Iterator[dict[str, Any]]:
    """Yield rows whose every string is hostile, some of them 50 kB long."""
    for row in completions(60):
        text = HOSTILE[row["index"] % len(HOSTILE)]
        row |= {"query_id": f"{text}#{row['index']}", "task": text, "reason": text, "gold": text}
        row["text"] = text * (1 + 50_000 // len(text)) if row["status"] == "completed" else None
        row["error"] = text * 100 if row["status"] == "failed" else None
        row["finish_reason"] = text if row["status"] == "completed" else None
        yield row


def _without_surrogates(texts: tuple[str, ...]) -> list[str]:
    """A report is JSON and cannot hold them; a row that was made in memory can."""
    return [text.encode("utf-8", "replace").decode() for text in texts]


def plan_report(**changes: Any) -> PlanReport:
    """Return the plan of the same batch."""
    report = run_report()
    fields: dict[str, Any] = {
        "head": "competing_risks",
        "queries": 199,
        "budget_tokens": 6_368,
        "low_tokens": 4_010.0,
        "expected_tokens": 6_300.0,
        "worst_tokens": 9_840,
        "funded": 92,
        "abandoned": 107,
        "shadow_price": 0.0031,
        "expected_utility": 31.5,
        "uniform_expected_utility": 15.1,
        "budget_curve": report.budget_curve,
        "prefill_tokens": 24_310,
        "is_probed": True,
    }
    return PlanReport(**fields | changes)


def snapshot(**changes: Any) -> ProgressSnapshot:
    """Return one moment in the generate stage."""
    fields: dict[str, Any] = {
        "stage": "generate",
        "round": 1,
        "queries": 199,
        "probed": 199,
        "granted": 92,
        "ended": 41,
        "budget_tokens": 6_368,
        "spent_tokens": 2_010,
        "reserved_tokens": 880,
        "shadow_price": 0.0031,
        "correct": 14.0,
        "scored": 41,
        "seconds": 20.0,
        "recent": ("chain_sum-0041 stopped after 38 of 52 tokens",),
    }
    return ProgressSnapshot(**fields | changes)
