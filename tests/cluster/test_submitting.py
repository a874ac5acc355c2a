"""The commands of docs/cluster.md, as they stand there, against a head with a token and ports of its own.

What the test puts in for the guide's placeholders: the address of the dashboard, a folder for the bucket, and recorded
rollouts for the model.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from clear_ray.batch.run import RunResult
from clear_ray.report.summary import RunReport
from tests.cluster.heads import ROOT, Head, clean_environment, ray_head, wait_for
from tests.conftest import ROLLOUTS
from tests.ray.test_run import check_account

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

SLOW_SECONDS = 300.0


def blocks(section: str) -> list[list[str]]:
    """Return the commands of each block of a section of the guide."""
    text = (ROOT / "docs/cluster.md").read_text(encoding="utf-8").partition(f"\n{section}\n")[2].partition("\n## ")[0]
    found = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [[line for line in block.replace("\\\n", " ").splitlines() if line] for block in found]


class Laptop:
    """A terminal on which the guide's commands are typed."""

    def __init__(self, environment: dict[str, str], bucket: Path, overrides: list[str]) -> None:
        self.environment, self.bucket, self.overrides = dict(environment), bucket, overrides

    def type(self, line: str, *more: str, url: str = "") -> subprocess.CompletedProcess[str]:
        """Run one line; a submission is tried for a minute, as the guide says."""
        line = line.replace("http://127.0.0.1:8265", url).replace("s3://BUCKET", str(self.bucket))
        if line.startswith("export "):
            self.environment |= dict(part.split("=", 1) for part in shlex.split(line)[1:])
            return subprocess.CompletedProcess(line, 0, "", "")
        if line.startswith("ray job submit"):
            line += "".join(f" --set {shlex.quote(override)}" for override in (*self.overrides, *more))
        deadline = time.monotonic() + 60
        while True:
            ended = subprocess.run(
                ["bash", "-c", line],
                env=self.environment,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=SLOW_SECONDS,
            )
            if "No available agent" not in ended.stdout + ended.stderr or time.monotonic() > deadline:
                return ended
            time.sleep(2)


@pytest.fixture
def overrides() -> list[str]:
    """About two minutes of two engines, with recorded rollouts for the model."""
    engine: dict[str, Any] = {
        "kind": "replay",
        "rollouts": f"{ROLLOUTS}/rollouts.parquet",
        "features": f"{ROLLOUTS}/features.parquet",
    }
    engine |= {"max_batch": 8, "tokens_per_second": 15.0, "workers": 2}
    return [
        f"engine={json.dumps(engine)}",
        f"budget={96 * 199}",
        "allocation.max_tokens=400",
        "allocation.smallest_grant_tokens=4",
        "dispatch.rows_per_file=4",
        "scoring.scorer=clear_ray.tasks.recorded:score_recorded",
    ]


def test_a_batch_is_submitted_stopped_and_gone_on_with_as_the_guide_says(tmp_path: Path, overrides: list[str]) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    queries = pq.read_table(ROLLOUTS / "queries.parquet").to_pylist()
    (bucket / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    home = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token"}
    environment = clean_environment(**home)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    laptop = Laptop(environment, bucket, overrides)
    once = next(line for block in blocks("### Up, and where it is") for line in block if "get-auth-token" in line)
    assert laptop.type(once).returncode == 0
    token = (tmp_path / ".ray/auth_token").read_text().strip()
    assert len(token) >= 32

    with ray_head(environment, "--num-cpus=4") as head:
        first, second = blocks("## Submitting")
        export, submit, status, logs = first
        stop, again, exit_code = second
        laptop.type(export, url=head.dashboard)
        stranger = Laptop(laptop.environment | {"RAY_AUTH_MODE": "disabled"}, bucket, overrides)
        refused = stranger.type(submit)
        assert refused.returncode != 0
        assert "batch-1' submitted successfully" not in refused.stdout

        submitted = laptop.type(submit)
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        run_dir = bucket / "runs/batch-1"
        wait_for(lambda: len(list(run_dir.glob("rounds/*/*.parquet"))) >= 2, "answers in two files", SLOW_SECONDS)
        assert "RUNNING" in laptop.type(status).stdout
        with subprocess.Popen(["bash", "-c", logs], env=laptop.environment, cwd=ROOT, stdout=subprocess.PIPE) as follow:
            assert laptop.type(stop).returncode == 0
            follow.communicate(timeout=SLOW_SECONDS)
        client = client_of(head, token)
        assert client.get_job_status("batch-1") == JobStatus.STOPPED
        kept = {path: path.stat().st_mtime_ns for path in run_dir.glob("rounds/*/*.parquet")}
        assert not (run_dir / "summary.json").exists()

        ended = laptop.type(again)
        assert "batch-1-again" in ended.stdout, ended.stderr
        found = laptop.type(exit_code)
        assert found.stdout.strip().splitlines()[-1] in ("0", "3"), (found, ended.stdout[-3_000:])
        report = RunReport.model_validate_json((run_dir / "summary.json").read_bytes())
        check_account(RunResult(report, str(run_dir)))
        assert {path: path.stat().st_mtime_ns for path in kept} == kept, "answers that were on disk are kept"

        bad = laptop.type(again.replace("batch-1-again", "batch-1-changed"), "budget=77")
        assert bad.returncode == 1
        assert client.get_job_info("batch-1-changed").driver_exit_code == 2
        assert "Refused" in client.get_job_logs("batch-1-changed")
        check_what_the_dashboard_shows(client, queries, token, head)


def client_of(head: Head, token: str) -> JobSubmissionClient:
    return JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {token}"})


def check_what_the_dashboard_shows(
    client: JobSubmissionClient, queries: list[dict[str, Any]], token: str, head: Head
) -> None:
    """Jobs are shown to whoever may see the dashboard: no prompt, no answer, no token; and little was uploaded."""
    jobs = [job.model_dump_json() if hasattr(job, "model_dump_json") else job.json() for job in client.list_jobs()]
    assert len(jobs) >= 3
    shown = "\n".join([*jobs, *(client.get_job_logs(f"batch-1{name}") for name in ("", "-again", "-changed"))])
    assert token not in shown
    assert not [row["query_id"] for row in queries if row["prompt"][:40] in shown or json.dumps(row["prompt"]) in shown]
    uploaded = list(head.folder.glob("session_latest/runtime_resources/working_dir_files/_ray_pkg_*"))
    assert uploaded
    assert sum(path.stat().st_size for folder in uploaded for path in folder.rglob("*") if path.is_file()) < 200_000
