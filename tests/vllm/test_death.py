"""What ends when a vLLM engine dies, and when its owner does. Each test has an engine of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clear_ray.config.engine import VllmConfig
from clear_ray.engine import Grant, VllmEngine
from clear_ray.errors import EngineError
from tests.unit.engine.conftest import run_grants

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
SETTINGS = VllmConfig(dtype="float32", max_batch=4, max_context_tokens=512, enforce_eager=True, cpu_cache_gib=0.5)
OWNER = f"""
import os, signal
from clear_ray.config.engine import VllmConfig
from clear_ray.engine import VllmEngine
if __name__ == "__main__":
    engine = VllmEngine(VllmConfig.model_validate_json({SETTINGS.model_dump_json()!r}))
    import psutil
    print("processes", *(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_engine_that_dies_fails_what_is_open_and_what_comes() -> None:
    others = set(psutil.Process().children(recursive=True))  # those of the engine that other tests share
    engine = VllmEngine(SETTINGS)
    processes = set(psutil.Process().children(recursive=True)) - others

    async def killed() -> None:
        before = engine.progress

        async def kill() -> None:
            while engine.progress == before:
                await asyncio.sleep(0.01)
            for process in processes:
                process.send_signal(signal.SIGKILL)

        killer = asyncio.ensure_future(kill())
        async for _ in engine.generate([Grant("q", "Write a long story.", 400)]):
            pass
        await killer

    with pytest.raises(EngineError, match="the language model failed"):
        asyncio.run(killed())
    with pytest.raises(EngineError):
        run_grants(engine, [Grant("later", "Hi", 2)])
    with pytest.raises(EngineError):
        engine.prefill(["later"], ["Hi"])
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.prefill(["later"], ["Hi"])


def test_no_process_of_vllm_outlives_its_owner(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == -signal.SIGKILL
    told = next(line for line in done.stdout.splitlines() if line.startswith("processes"))  # vLLM says more
    left = [int(pid) for pid in told.split()[1:]]
    assert left
    for _ in range(600):
        left = [pid for pid in left if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not left:
            break
        time.sleep(0.1)
    assert left == []
