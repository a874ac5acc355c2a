"""What summary, page and plan say of several engines, and of prompts that no model read."""

from __future__ import annotations

from clear_ray.report.page import write_page
from clear_ray.report.summary import EngineReport
from clear_ray.report.text import plan_text, summary_text
from clear_ray.storage import open_folder
from tests.unit.report.samples import plan_report, run_report

ENGINES = tuple(
    EngineReport(
        name=name,
        model=f"m-{name}",
        head="learn",
        calls=9,
        generated_tokens=70,
        spent_tokens=spent,
        answers=4,
        correct=right,
    )
    for name, spent, right in (("small", 1_250_000, 3.0), ("large", 40_000_000, None))
)


def test_each_engine_has_a_line(tmp_path: object) -> None:
    report = run_report(unit="USD", engines=ENGINES)
    lines = [line.split(None, 1)[1] for line in summary_text(report).splitlines() if line.startswith("  engine ")]
    assert lines == [
        "small: 9 calls for $0.0013, 4 answers, 3 correct (model m-small, head learn)",
        "large: 9 calls for $0.040, 4 answers (model m-large, head learn)",
    ]
    assert "attempts/, completions/" in summary_text(report)
    folder = open_folder(str(tmp_path))
    write_page(report, completions=iter(()), folder=folder)
    page = folder.read("report.html").decode()
    assert "m-small" in page
    assert "$0.04" in page
    assert "m-small" not in summary_text(run_report())


def test_a_plan_says_what_would_be_asked_of_each() -> None:
    assert "asked first: small 40, large 2" in plan_text(plan_report(engines={"small": 40, "large": 2}))
    assert "asked first" not in plan_text(plan_report())


def test_of_an_endpoint_nothing_is_said_to_have_been_probed() -> None:
    nothing = {"prefill_tokens": 0}
    plan = plan_text(plan_report(is_probed=False, **nothing))
    assert "probe" not in plan
    assert "no model loaded" in plan
    assert "by no probe" in summary_text(run_report(**nothing))
