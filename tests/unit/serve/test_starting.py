from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from clear_ray.cli import REFUSED, main
from clear_ray.errors import ClearRayError, ConfigError
from clear_ray.serve.app import _is_serve_run
from clear_ray.serve.settings import ServeConfig
from clear_ray.serve.starting import check_start
from tests.unit.serve.local_server import REPLAY


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    return number


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": {"kind": "transformers", "model": "/absent/model"}}, "/absent/model"),
        ({"engine": REPLAY | {"rollouts": "/absent/rollouts.parquet"}}, "/absent/rollouts.parquet"),
        ({"engine": REPLAY, "estimate": {"head": "/absent/head"}}, "/absent/head"),
    ],
)
def test_what_is_not_there_is_named_before_anything_starts(changes: dict[str, Any], said: str, port: int) -> None:
    with pytest.raises(ClearRayError, match=said):
        check_start(ServeConfig.parse({"port": port} | changes))


def test_what_is_there_may_start(port: int) -> None:
    check_start(ServeConfig.parse({"engine": REPLAY, "port": port}))


def test_a_port_that_is_taken_is_named_in_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "serve.yaml"
    files = "".join(f"  {name}: {value}\n" for name, value in REPLAY.items())
    config.write_text(f"engine:\n{files}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(SystemExit) as caught:
            main(["serve", "--config", str(config), "--port", str(number)])
    assert caught.value.code == REFUSED
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert f"127.0.0.1:{number}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("command", "is_it"),
    [
        (["/usr/bin/serve", "run", "clear_ray.serve:build_app", "config=a.yaml"], True),
        (["/usr/bin/serve", "run", "-a", "auto", "clear_ray.serve:build_app"], False),
        (["/usr/bin/serve", "build", "clear_ray.serve:build_app"], False),
        (["pytest"], False),
    ],
)
def test_serve_run_alone_starts_serve_where_the_file_says(
    command: list[str], is_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", command)
    assert _is_serve_run() is is_it


def test_origins_of_any_page_want_keys() -> None:
    with pytest.raises(ConfigError, match="must be named"):
        ServeConfig.parse({"cors_origins": ["*"]})
