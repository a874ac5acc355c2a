"""A test of the fast suite that skips is a failure: on a fresh clone it would prove nothing, and say nothing either.

What needs a machine of its own kind is marked `slow`, `gpu` or `vllm`, and may skip.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

MAY_SKIP = ("slow", "gpu", "vllm")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that skipped, unless it is marked as one that may."""
    report = yield
    is_expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not is_expected_failure and not any(item.get_closest_marker(mark) for mark in MAY_SKIP):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a module that skipped as a whole: marks are not known yet."""
    report = yield
    if report.skipped:
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    report.outcome = "failed"
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.longrepr = f"a test of the fast suite skipped: {why}. Let it run anywhere, or mark it {', '.join(MAY_SKIP)}."
