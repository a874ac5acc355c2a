"""What a command's end comes to: an exit code, and at most one line."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import clear_ray
from clear_ray.batch.run import run
from clear_ray.cli import app, guarded
from clear_ray.config.run import RunConfig
from clear_ray.errors import ClearRayError, EngineError, ResumeError


def ending(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ResumeError("another run is writing"), 2, "Refused: another run is writing."),
        (EngineError("engines died"), 1, "Failed: engines died."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (SystemExit(130), 130, "Interrupted."),
        (SystemExit(signal.SIGTERM), 130, "Interrupted."),
        (SystemExit(4), 4, ""),
        (SystemExit(None), 0, ""),
    ],
    ids=repr,
)
def test_every_end_has_its_code(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(ending(error)) == code
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == bool(said)


def test_ctrl_c_again_and_again_changes_nothing() -> None:
    code = "import atexit, time; from clear_ray.cli import guarded; atexit.register(time.sleep, 1)\n"
    code += "def command(): print('begun', flush=True); time.sleep(60)\n"
    code += "raise SystemExit(guarded(command))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(8):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        err = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert err.startswith("Interrupted.")
    assert err.count("\n") == 1


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    ("out", "code", "said"),
    [("/dev/full", 1, "Failed: standard output: the result cannot be written (got No space left"), ("gone", 0, "")],
)
def test_a_result_that_is_not_taken_is_no_traceback(
    replay_settings: dict[str, Any], tmp_path: Path, out: str, code: int, said: str, as_json: bool
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(replay_settings))
    reader, writer = os.pipe()
    os.close(reader)
    if out != "gone":
        os.close(writer)
        writer = os.open(out, os.O_WRONLY)
    command = [sys.executable, "-m", "clear_ray.cli", "validate", "--config", str(tmp_path / "run.yaml")]
    more = ["--json"] if as_json else []
    ended = subprocess.run([*command, *more], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == bool(said)


def test_an_error_that_is_not_taken_keeps_its_code() -> None:
    code = "from clear_ray.cli import main; main(['status', '/'])"
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", code], stderr=full, check=False).returncode == 2


@pytest.mark.parametrize(
    "run_dir", ["/", "http://x/y", "~nouser/x", "nul\0byte", "what?", "s3:/bucket", "runs/somebody", "runs/linked"]
)
def test_validate_refuses_the_run_folders_that_a_run_refuses(
    replay_settings: dict[str, Any],
    tmp_path: Path,
    run_dir: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/somebody", "runs/linked"):
        Path(name).mkdir(parents=True)
    Path("runs/somebody/thesis.txt").touch()
    Path("runs/linked/queries").symlink_to(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump(replay_settings | {"run_dir": run_dir}))
    assert guarded(lambda: app(args=["validate", "--config", "run.yaml"])) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Refused: ")
    with pytest.raises(ClearRayError) as refused:
        run(None, RunConfig.load("run.yaml"))
    assert err == f"Refused: {refused.value}\n"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: app(args=["--version"])) == 0
    said = capsys.readouterr().out
    project = tomllib.loads(Path(clear_ray.__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    assert said == f"clear-ray {project['version']}\n"
