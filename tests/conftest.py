"""What all tests share: where the recorded rollouts are, and settings that replay them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.no_skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401  hooks of every session

# A shell that starts pytest in the background has it ignore Ctrl-C, and all that tests start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Before torch is imported: threads of one test that spin while they wait take the cores from those of all others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")  # a busy machine says nothing of the code
ROLLOUTS = Path(__file__).parent / "data" / "rollouts"


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Have the tests go on hearing Ctrl-C, which a command that has ended does not."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The URI of a bucket of moto's server, which speaks S3."""
    from moto.server import ThreadedMotoServer  # not on every machine that runs some of the tests

    from clear_ray.storage import open_folder

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    uri = (
        f"s3://key:word@bucket?endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    )
    open_folder(uri).make()
    yield uri
    server.stop()


@pytest.fixture
def replay_settings(tmp_path: Path) -> dict[str, Any]:
    """Settings of a run that replays the recorded rollouts under the uncalibrated prior."""
    return {
        "run_dir": str(tmp_path / "run"),
        "input": {"path": str(ROLLOUTS / "queries.parquet")},
        "budget": 32 * 199,
        "engine": {
            "kind": "replay",
            "rollouts": str(ROLLOUTS / "rollouts.parquet"),
            "features": str(ROLLOUTS / "features.parquet"),
            "max_batch": 64,
        },
        "estimate": {"head": "prior"},
        "allocation": {"max_tokens": 400, "max_rounds": 3},
        "scoring": {"scorer": "clear_ray.tasks.recorded:score_recorded"},
        "dispatch": {"rows_per_file": 16},
    }
