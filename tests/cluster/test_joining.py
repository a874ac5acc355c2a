"""A Ray that cannot be had: one line that says what, where and what to do, within half a minute, and the exit code for it.

One head for all: it asks for a token, and has two CPUs and two GPUs that are none (a logical resource).
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.heads import Head, clean_environment, free_ports, head_of_another_version, ray_head

PYTHON = [sys.executable, "-c"]
TOKEN = "0123456789abcdef" * 2


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command came to."""

    code: int
    said: str
    seconds: float


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    environment = clean_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    with ray_head(environment, "--num-cpus=2", "--num-gpus=2") as found:
        yield found


def ended(
    settings: dict[str, Any], folder: Path, environment: Mapping[str, str], *more: str, command: str = "run"
) -> Ended:
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    words = ["run", "--quiet"] if command == "run" else [command]
    command_line = [sys.executable, "-m", "clear_ray.cli", *words, "--config", str(folder / "run.yaml"), *more]
    started = time.monotonic()
    done = subprocess.run(command_line, env=dict(environment), capture_output=True, text=True, check=False, timeout=200)
    assert done.stdout == ""
    return Ended(done.returncode, done.stderr, time.monotonic() - started)


def check_one_line(end: Ended, *, code: int, words: tuple[str, ...]) -> None:
    assert end.code == code, end.said
    assert end.said.startswith("Refused: " if code == 2 else "Failed: ")
    assert end.said.count("\n") == 1
    for word in words:
        assert word in end.said
    assert end.seconds < 60  # 30 s, on a machine that is not busy with other tests


def at(address: str, **more: str) -> dict[str, str]:
    return clean_environment(RAY_ADDRESS=address, **more)


def test_an_address_at_which_nothing_listens(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    end = ended(replay_settings, tmp_path, at(address))
    check_one_line(end, code=1, words=(address, "nothing answers", "refused", "ray start --head", "RAY_ADDRESS"))
    assert not (Path(replay_settings["run_dir"]) / "manifest.json").exists()
    validated = ended(replay_settings, tmp_path, at(address), command="validate")
    assert (validated.code, validated.said) == (end.code, end.said)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:port", "ray://127.0.0.1:1", "no.such.host.invalid:6379"])
def test_an_address_that_is_none(replay_settings: dict[str, Any], tmp_path: Path, address: str) -> None:
    end = ended(replay_settings, tmp_path, at(address))
    check_one_line(end, code=1, words=(address, "RAY_ADDRESS"))


def test_a_listener_that_says_nothing(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        end = ended(replay_settings, tmp_path, at(address))
    check_one_line(end, code=1, words=(address, "no Ray head"))


def test_a_head_of_another_version(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    with head_of_another_version() as address:
        end = ended(replay_settings, tmp_path, at(address, RAY_AUTH_MODE="disabled"))
    check_one_line(end, code=1, words=(address, "another version", "1.13.0 there", "Install ray==1.13.0"))


def test_a_local_ray_that_does_not_start(replay_settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    end = ended(replay_settings, tmp_path, clean_environment(RAY_TMPDIR=str(tmp_path / "file")))
    check_one_line(end, code=1, words=("Ray on this machine", "did not start"))


@pytest.mark.parametrize(
    "access",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "HOME": "/nonexistent"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN[::-1]},
    ],
    ids=["no token", "none found", "another token"],
)
def test_a_head_that_asks_for_a_token(
    head: Head, replay_settings: dict[str, Any], tmp_path: Path, access: dict[str, str]
) -> None:
    end = ended(replay_settings, tmp_path, at(head.address, **access))
    check_one_line(end, code=1, words=(head.address, "token", "RAY_AUTH_MODE=token"))


def test_more_gpus_than_the_cluster_has(head: Head, replay_settings: dict[str, Any], tmp_path: Path) -> None:
    more = ("--set", "engine.num_gpus=2", "--set", "engine.workers=2")
    end = ended(replay_settings, tmp_path, head.environment | at_head(head), *more)
    check_one_line(end, code=2, words=("2 engines of 2 GPU each", "2 GPUs, room for 1", "engine.workers"))
    validated = ended(replay_settings, tmp_path, head.environment | at_head(head), *more, command="validate")
    assert (validated.code, validated.said) == (end.code, end.said)


def at_head(head: Head) -> dict[str, str]:
    return {"RAY_ADDRESS": head.address}


@contextmanager
def holding(head: Head, **resources: float) -> Iterator[None]:
    """Hold some of a head's resources in an actor of another driver."""
    code = f"""
import ray
ray.init(log_to_driver=False)
@ray.remote(**{resources!r})
class Holder:
    def ready(self):
        return True
holder = Holder.remote()
ray.get(holder.ready.remote())
print("held", flush=True)
input()
"""
    environment = head.environment | at_head(head)
    with subprocess.Popen(
        [*PYTHON, code],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        while "held" not in (line := driver.stdout.readline()):
            assert line, "the holder has failed"
        yield
        driver.communicate("\n", timeout=60)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"num_gpus": 1, "num_cpus": 0}, ("2 engines of 1 GPU each", "1 of 2 GPUs free")),
        pytest.param({"num_cpus": 2}, ("the readers of queries", "0 of 2 CPUs free"), marks=pytest.mark.slow),
    ],
    ids=["GPUs", "CPUs"],
)
def test_a_cluster_that_is_full(
    head: Head, replay_settings: dict[str, Any], tmp_path: Path, held: dict[str, float], words: tuple[str, ...]
) -> None:
    with holding(head, **held):
        more = ("--set", "engine.num_gpus=1", "--set", "engine.workers=2")
        end = ended(replay_settings, tmp_path, head.environment | at_head(head), *more)
    check_one_line(end, code=1, words=(*words, "ray status"))


def test_engines_without_a_word_about_gpus_take_one_each_and_a_zero_is_said(head: Head) -> None:
    code = """
import json, os, ray
from clear_ray.config.run import RunConfig
from clear_ray.cluster.joining import joined_cluster
from clear_ray.cluster.room import settled, wait_for_room
def engine(**settings):
    return RunConfig.parse({"run_dir": "r", "budget": 1, "engine": settings}).engine
with joined_cluster():
    found = [settled(engine(**settings)) for settings in ({"workers": 2}, {"device": "cpu"}, {"num_gpus": 0})]
    wait_for_room(found[0])
    actor = ray.remote(num_gpus=found[0].num_gpus, num_cpus=0)(type("Engine", (), {"gpu": lambda self: ray.get_gpu_ids()}))
    engines = [actor.remote() for _ in range(2)]
    print(json.dumps([[one.num_gpus for one in found], sorted(ray.get([one.gpu.remote() for one in engines]))]))
"""
    done = subprocess.run(
        [*PYTHON, code], env=head.environment | at_head(head), capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[1, 0, 0], [[0], [1]]]
    (line,) = done.stderr.splitlines()
    assert line.startswith("engine.num_gpus is 0 and the cluster has 2 GPUs")
