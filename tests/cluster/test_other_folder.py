"""Projects that join a head which was started from another folder: each keeps its own files and its own account."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from clear_ray.batch.run import RunResult
from clear_ray.ledger.journal import read_journal
from clear_ray.report.summary import RunReport
from clear_ray.storage import open_folder
from tests.cluster.heads import ROOT, clean_environment, ray_head
from tests.ray.test_identity import relative_project
from tests.ray.test_run import check_account

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

SCORER = "def score(text, gold, metadata):\n    return 0.5\n"


def typed(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clear_ray.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_two_projects_with_one_relative_run_folder_on_a_head_of_elsewhere(
    replay_settings: dict[str, Any], tmp_path: Path
) -> None:
    environment = clean_environment(PYTHONPATH=str(ROOT), RAY_AUTH_MODE="disabled", HOME=str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    with ray_head(environment, "--num-cpus=4", started_in=tmp_path / "elsewhere") as head:
        joined = environment | {"RAY_ADDRESS": head.address}
        for name, queries in (("a", slice(0, 12)), ("b", slice(12, 24))):
            folder = tmp_path / name
            settings = relative_project(folder, replay_settings, queries)
            (folder / "own_scorer.py").write_text(SCORER)
            settings["scoring"] = {"scorer": "own_scorer:score"}
            (folder / "run.yaml").write_text(yaml.safe_dump(settings))
            ended = typed(folder, joined, "run", "--config", "run.yaml", "--quiet")
            assert ended.returncode == 0, ended.stderr
            check(folder / "runs/batch", queries=12)
        shutil.rmtree(folder / "runs/batch")
        ended = typed(folder, joined, "run", "--config", "run.yaml", "--quiet")
        assert ended.returncode == 0, ended.stderr
        check(folder / "runs/batch", queries=12)
        assert not list((tmp_path / "elsewhere").iterdir()), "nothing was written where the head was started"


def check(run_dir: Path, *, queries: int) -> None:
    report = RunReport.model_validate_json((run_dir / "summary.json").read_bytes())
    check_account(RunResult(report, str(run_dir)))
    assert (report.queries, report.failed, report.wasted_tokens) == (queries, 0, 0)
    assert report.run_dir == str(run_dir)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    first, *rest = read_journal(open_folder(str(run_dir)))
    assert first == {"run": manifest["run_id"]}
    assert not [record for record in rest if "run" in record]
