"""What all tests share: where the recorded rollouts are, and settings that replay them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

# A shell that starts pytest in the background has it ignore Ctrl-C, and all that tests start would ignore it, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
ROLLOUTS = Path(__file__).parent / "data" / "rollouts"


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
        "allocation": {"max_tokens": 400, "max_rounds": 3},
        "scoring": {"scorer": "clear_ray.tasks.recorded:score_recorded"},
        "dispatch": {"rows_per_file": 16},
    }
