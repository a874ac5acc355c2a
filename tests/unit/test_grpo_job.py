"""The worked example of a trainer's rollout loop, run as its guide says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_trl_samples_the_groups_that_are_asked_for_and_keeps_the_budget() -> None:
    command = [sys.executable, "jobs/grpo_trl.py", "--budget", "1500", "--queries", "8", "--max-tokens", "32"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert 0 < told["spent_tokens"] <= told["budget_tokens"] == 1_500
    assert told["groups"] >= 2
    assert told["rollouts"] == 4 * told["groups"]
