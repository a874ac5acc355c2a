"""The guide on asking again: its settings are taken, and its command compares attempts on recorded answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from clear_ray.config.run import RunConfig

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "attempts.md").read_text()
DATA = ROOT / "tests" / "data" / "rollouts"


def test_the_settings_of_the_guide_are_those_of_a_run() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    given = {"run_dir": "run", "budget": 1_000, "input": {"path": "q.jsonl"}}
    solved, vote = (RunConfig.parse(given | yaml.safe_load(block)) for block in blocks)
    assert (solved.allocation.objective, solved.allocation.most_attempts, solved.votes_by) == ("solved", 8, None)
    assert (vote.allocation.objective, vote.allocation.most_attempts, vote.votes_by) == ("vote", 8, "number")


def test_the_command_of_the_guide_compares_attempts_with_settings_in_hindsight(tmp_path: Path) -> None:
    (command,) = re.findall(r"^python (benchmarks/attempts\.py .*)$", GUIDE, re.MULTILINE)
    words = re.sub(r"\[--train FOLDER\] \[--model NAME\]", "", command).replace("[", "").replace("]", "")
    given = {"FILE": str(DATA / "rollouts.parquet"), "FOLDER": str(tmp_path), "16,32,48": "48"}
    arguments = [given.get(word, word) for word in words.split()]
    features = arguments.index("--features") + 1
    arguments[features] = str(DATA / "features.parquet")
    few = ["--draws", "2", "--policies", "clear_ray_once,clear_ray"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments, *few], cwd=ROOT, env=environment, check=True, timeout=240)
    (written,) = tmp_path.glob("*.jsonl")
    rows = {row["policy"]: row for row in map(json.loads, written.read_text().splitlines())}
    baselines = ("fixed", "retry", "reset_and_discard", "blend_asc", "clear_ray_once")
    assert rows["clear_ray"]["solved"] > max(rows[name]["solved"] for name in baselines) + 0.02
    assert rows["clear_ray"]["spent"] <= 48
    assert rows["clear_ray"]["attempts"] > rows["clear_ray_once"]["attempts"]
