"""One vLLM engine for all tests of this folder: its processes take half a minute to start, far more on a busy machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from clear_ray.config.engine import TransformersConfig, VllmConfig
from clear_ray.engine import TransformersEngine, VllmEngine

CONTEXT = 640
THINKING = ("<repo_name>", "<file_sep>")  # the embedded model does not think; any two of its tokens will do


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/vllm/" in item.nodeid:
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # vLLM's own
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def engine() -> Iterator[VllmEngine]:
    # One process fewer, and so a faster start; one thread, as threads that wait for each other crawl on a busy machine.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    engine = VllmEngine(
        VllmConfig(
            dtype="float32",
            max_batch=8,
            max_context_tokens=CONTEXT,
            enforce_eager=True,
            cpu_cache_gib=1,
            thinking_tokens=6,
            thinking_start=THINKING[0],
            thinking_end=THINKING[1],
        )
    )
    with decoding(engine, thinking_tokens=None):
        yield engine
    engine.close()


@pytest.fixture(scope="session")
def reference() -> Iterator[TransformersEngine]:
    engine = TransformersEngine(TransformersConfig(device="cpu", max_batch=8, max_context_tokens=CONTEXT, threads=1))
    yield engine
    engine.close()


@pytest.fixture
def cluster() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=500_000_000)
    yield
    ray.shutdown()


@contextlib.contextmanager
def decoding(engine: VllmEngine, **changes: Any) -> Iterator[None]:
    """Have the engine decode otherwise for a while, which spares a test an engine of its own."""
    thread = engine._thread
    before = thread._decoding
    thread._decoding = replace(before, **changes)
    try:
        yield
    finally:
        thread._decoding = before
