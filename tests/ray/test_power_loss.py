"""What the driver says to be whole is on disk by then, also what workers of Ray have written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clear_ray.batch.checking import check_run
from clear_ray.calibrate import UNSCORED, calibrate
from clear_ray.config.run import RunConfig

FOLDER_OF = {"features.json": "features", "estimates.json": "estimates", "summary.json": "completions"}
"""The file that says so, and the folder beside it that is whole."""


def test_what_is_said_to_be_whole_has_been_synced(
    replay_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "few.parquet"
    pq.write_table(pq.read_table(replay_settings["input"]["path"]).slice(0, 40), few)
    config = RunConfig.parse(replay_settings | {"input": {"path": str(few)}, "budget": 400 * 40, "scoring": {}})
    synced: set[int] = set()
    unsynced: dict[str, list[Path]] = {}

    def noted(descriptor: int) -> None:
        sync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if (name := path.name.removesuffix(".partial")) in FOLDER_OF:
            folder = path.with_name(FOLDER_OF[name])
            parts = [folder, *folder.rglob("*")]
            assert len(parts) > 1
            unsynced[name] = [each for each in parts if each.stat().st_ino not in synced]

    sync = os.fsync
    monkeypatch.setattr(os, "fsync", noted)
    made = calibrate(config, head_dir=str(tmp_path / "head"), samples=1)
    assert unsynced == {"estimates.json": [], "summary.json": [], "features.json": []}
    # Nothing is scored here, so the head knows what ends, and a run with it says so.
    assert (made.head.card.label, made.queries, made.warnings) == ("ended", 40, (UNSCORED,))
    informed = RunConfig.parse(
        replay_settings | {"run_dir": str(tmp_path / "informed"), "estimate": {"head": str(tmp_path / "head")}}
    )
    assert any("which answers end by themselves" in notice for notice in check_run(informed).digest.notices)
