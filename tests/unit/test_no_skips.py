"""The rule that no test of the fast suite skips, on a suite that breaks it in every way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest

@pytest.mark.skip(reason="by a mark")
def test_skipped_by_a_mark():
    pass

@pytest.fixture
def absent():
    pytest.skip("by a fixture")

def test_skipped_by_a_fixture(absent):
    pass

def test_skipped_within():
    pytest.importorskip("no_such_module_anywhere")

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="no device")
def test_of_a_device():
    pass

@pytest.mark.xfail(reason="known")
def test_known_to_fail():
    raise AssertionError

def test_passes():
    pass
"""


def run_suite(folder: Path, text: str) -> str:
    (folder / "test_suite.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: a device\n")
    command = [sys.executable, "-m", "pytest", "-p", "tests.no_skips", "-p", "no:cacheprovider", "-q", "-ra"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout


def test_each_way_to_skip_fails_unless_it_is_marked(tmp_path: Path) -> None:
    said = run_suite(tmp_path, SUITE)
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors" in said
    for name in ("by_a_mark", "by_a_fixture", "within"):
        assert f"test_suite.py::test_skipped_{name}" in said
    assert said.count("a test of the fast suite skipped") >= 3


def test_a_module_that_skips_as_a_whole_fails(tmp_path: Path) -> None:
    said = run_suite(tmp_path, 'import pytest\n\npytest.importorskip("no_such_module_anywhere")\n')
    assert "1 error" in said
    assert "a test of the fast suite skipped" in said
