"""`run` called from somebody else's program: what it leaves behind is the run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = """
import json, os, signal, sys, threading
from clear_ray import RunConfig, run

def own(number, frame):
    heard.append(number)

def state():
    handlers = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)}
    return dict(os.environ), handlers

class Display:
    def update(self, snapshot):
        if snapshot.stage not in ("start", "read") and not heard:
            signal.raise_signal(signal.SIGTERM) if threading.current_thread() is threading.main_thread() else None
    def close(self):
        pass

heard, told = [], {}
os.environ["RAY_ADDRESS"] = ""  # as a shell script leaves it
signal.signal(signal.SIGTERM, own)
for name, settings in json.loads(sys.argv[1]).items():
    before = state()
    try:
        told[name] = run(None, RunConfig.parse(settings), display=Display()).report.completed
    except Exception as error:
        told[name] = type(error).__name__
    after = state()
    changed = {key for key in before[0].keys() | after[0].keys() if before[0].get(key) != after[0].get(key)}
    assert not changed, (name, changed)
    assert after[1] == before[1], (name, after[1])
print(json.dumps({"told": told, "heard": len(heard)}))
"""


def test_a_run_changes_neither_environment_nor_signal_handlers(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    few = replay_settings | {"budget": 2_000}
    broken = few | {"run_dir": str(tmp_path / "broken"), "engine": few["engine"] | {"rollouts": str(tmp_path / "none")}}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps({"whole": few, "broken": broken})],
        env=environment | {"HOME": str(tmp_path)},  # where Ray keeps the token of a cluster that it starts
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["told"]["whole"] > 0
    assert said["told"]["broken"] == "SchemaError", "it fails once Ray is up"
    assert said["heard"] == 1, "the program's own handler stays in force"
