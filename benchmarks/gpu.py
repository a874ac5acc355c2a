"""What limits the engine on a GPU, and what could be won next? One script of a few minutes, with weights made on the spot.

Prints one JSON line. Needs no network: the model has 1.5 billion random weights in the shape of Qwen2.5-1.5B. Where the
embedded model's package is missing, a tokenizer is trained on recorded prompts; where reasoning-gym is, these are asked. What
has to be there beside torch and transformers is pydantic, and Ray for the runs of the last part.

    python benchmarks/gpu.py                    on a machine with CUDA: about five minutes
    python benchmarks/gpu.py --minutes 8 --into $OUT/gpu.json      ends by then; the file has each part as soon as it is there
    python benchmarks/gpu.py --only ahead compiled
    python benchmarks/gpu.py --small            a tiny model on any machine: shows in a minute that all of it runs

What is in the line, each part with its `seconds`; one that fails, or runs out of time, says why and ends no other:
    throughput  as `benchmarks/throughput.py` has it: slots with and without graphs, over padded `generate`, a decoding step
                over what the memory of the device permits, the probe by some layers and by all of them
    shapes      passes that read prompts: the first of a shape over the second of the same, for lengths that were not met
                before. What is above 1 is what fixed shapes would save, pass by pass
    ahead       a decoding step on the wall, over the time in which the device works for it. What is above 1 is what the
                launch of a step before the last one's tokens are read could save
    compiled    a decoding step by `torch.compile` over one by CUDA graphs, and the seconds that compiling takes
    stage_two   tokens a second of the second stage of a run over those of the engine driven directly
                (`benchmarks/stage_two.py`), with vLLM, where it is installed, and with slots
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from throughput import measure, random_model, slot_batch

from clear_ray.config.engine import TransformersConfig
from clear_ray.engine import Grant, TransformersEngine
from clear_ray.engine.batch import RunningGrant
from clear_ray.engine.slot_cache import SlotCache, SlotRunner

STEPS = 64
PROMPT_TOKENS = 128


def shapes(engine: TransformersEngine, *, rows: int) -> dict[str, Any]:
    """Time the first and the second pass of shapes that were not met before."""
    model, found = engine._model, []
    runner = SlotRunner(model)
    for length in (197, 233, 269, 317, 383, 449):
        cache = SlotCache()
        cache.reserve(rows, length + 1, kept_rows=0)
        ids = [[1 + (row + place) % 200 for place in range(length)] for row in range(rows)]
        found.append([waited(model, lambda: runner.prefill(cache, 0, ids, length)) for _ in range(3)])  # noqa: B023
    first, second, third = np.array(found).T
    return {
        "first_ms": round(1e3 * float(np.median(first)), 1),
        "again_ms": round(1e3 * float(np.median(np.minimum(second, third))), 1),
        "first_over_again": round(float(np.median(first / np.minimum(second, third))), 2),
    }


def ahead(engine: TransformersEngine, *, rows: int) -> dict[str, Any]:
    """Time steps on the wall and on the device."""
    model = engine._model
    batch = full_batch(model, rows)
    for _ in range(8):
        batch.step()
    if model.device.type != "cuda":
        return {"step_ms": round(1e3 * float(np.median([waited(model, batch.step) for _ in range(STEPS)])), 2)}
    spans = []
    for _ in range(STEPS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        started = time.perf_counter()
        begin.record()
        batch.step()
        end.record()
        torch.cuda.synchronize()
        spans.append((1e3 * (time.perf_counter() - started), begin.elapsed_time(end)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(8):
            batch.step()
        torch.cuda.synchronize()
    busy_ms = sum(event.self_device_time_total for event in profile.key_averages()) / 8e3
    wall_ms = float(np.median([wall for wall, _ in spans]))
    batch.close()
    return {
        "step_ms": round(wall_ms, 3),
        "device_ms": round(busy_ms, 3),
        "wall_over_device": round(wall_ms / busy_ms, 2),
    }


def compiled(engine: TransformersEngine, *, rows: int) -> dict[str, Any]:
    """Time decoding passes of the model as it is, with graphs, and compiled."""
    model = engine._model
    batch = full_batch(model, rows)
    graphs = float(np.median([waited(model, batch.step) for _ in range(STEPS)][STEPS // 2 :]))
    batch.close()
    runner, cache = SlotRunner(model), SlotCache()
    cache.reserve(rows, PROMPT_TOKENS + 2 * STEPS, kept_rows=0)
    mode = "reduce-overhead" if model.device.type == "cuda" else "default"
    started = time.perf_counter()
    runner._model = torch.compile(model, mode=mode, dynamic=False)
    positions = [PROMPT_TOKENS] * rows
    with torch.inference_mode():
        for _ in range(3):
            runner.next_logits(cache, [1] * rows, positions)
        compiling = time.perf_counter() - started
        seconds = [waited(model, lambda: runner.next_logits(cache, [1] * rows, positions)) for _ in range(STEPS)]
    median = float(np.median(seconds))
    return {
        "graphs_ms": round(1e3 * graphs, 3),
        "compiled_ms": round(1e3 * median, 3),
        "compiled_over_graphs": round(median / graphs, 2),
        "compile_seconds": round(compiling, 1),
    }


def stage_two(model: str, *, kind: str, queries: int) -> dict[str, Any]:
    """Run `benchmarks/stage_two.py` in a process of its own, and return what it says; it is ended when time runs out."""
    engine = {"kind": kind, "model": model, "max_batch": 128}
    command = [
        sys.executable,
        str(Path(__file__).with_name("stage_two.py")),
        "--queries",
        str(queries),
        "--ceiling",
        "96",
    ]
    ended = subprocess.run([*command, "--engine", json.dumps(engine)], capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError((ended.stderr.strip().splitlines() or ["no word"])[-1])
    said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return said


def full_batch(model: Any, rows: int) -> Any:
    """Return a batch all of whose slots run, for long."""
    batch = slot_batch(model, rows=rows, positions=PROMPT_TOKENS + 8 * STEPS)
    for row in range(rows):
        ids = [1 + (row + place) % 200 for place in range(PROMPT_TOKENS)]
        batch.add(RunningGrant(Grant(str(row), "", 4 * STEPS), ids, on_end=lambda _: None))
    batch.step()
    return batch


def waited(model: Any, action: Callable[[], Any]) -> float:
    """Return the seconds on the wall until the device has done what an action asks of it."""
    is_cuda = model.device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


@dataclass
class Said:
    """What was found so far, kept in a file part by part.

    Attributes:
        found: The line.
        into: The file, if there is one.
        until: When time has run out, on the monotonic clock.
        only: The parts that are wanted; all if empty.
    """

    found: dict[str, Any]
    into: Path | None
    until: float
    only: list[str] = field(default_factory=list)

    def part(self, name: str, measured: Callable[[], dict[str, Any]]) -> None:
        """Measure one part, if it is wanted, and say at once what came of it."""
        if self.only and name.partition(" ")[0] not in self.only:
            return
        started = time.perf_counter()
        try:
            with no_longer_than(self.until - time.monotonic()):
                said = measured()
        except Exception as error:
            said = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        self.note(name, said | {"seconds": round(time.perf_counter() - started, 1)})

    def note(self, name: str, said: Any) -> None:
        """Add something to the line, and write it."""
        self.found[name] = said
        print(json.dumps({name: said}), file=sys.stderr, flush=True)
        if self.into is not None:
            self.into.write_text(json.dumps(self.found) + "\n", encoding="utf-8")


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what runs so long; a call into torch or a process is let end first, or ended itself."""

    def end(*_: Any) -> None:
        raise TimeoutError("no time was left for it")

    if seconds <= 0:
        end()
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def by_itself(folder: str, queries: int, rows: int, said: Said) -> None:
    """Measure the engine without a run around it."""
    engine = TransformersEngine(TransformersConfig(model=folder, threads=1, max_batch=rows))
    device = engine._model.device
    said.note("device", torch.cuda.get_device_name() if device.type == "cuda" else platform.machine())
    said.note("dtype", str(engine._model.dtype).removeprefix("torch."))
    layers = max(1, engine._model.config.num_hidden_layers // 4)
    options = argparse.Namespace(
        queries=queries, batch=rows, prompts=None, paged=False, padded_batches=1, probe_layers=layers
    )
    said.part("ahead", partial(ahead, engine, rows=rows))
    said.part("shapes", partial(shapes, engine, rows=min(rows, 16)))
    said.part("throughput", partial(measure, engine, options))
    said.part("compiled", partial(compiled, engine, rows=rows))
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model, few queries")
    parser.add_argument("--queries", type=int, default=1_024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=15.0, help="when to stop, whatever is missing")
    parser.add_argument("--into", type=Path, help="file that holds the line so far after each part")
    parser.add_argument("--only", nargs="+", default=[], help="parts, such as `ahead` or `stage_two`")
    chosen = parser.parse_args()
    queries, rows = (24, 4) if chosen.small else (chosen.queries, chosen.batch)
    line = {
        "benchmark": "gpu",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": " ".join(sys.argv),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }
    said = Said(line, chosen.into, time.monotonic() + 60 * chosen.minutes, chosen.only)
    with tempfile.TemporaryDirectory() as folder:
        random_model(Path(folder), is_small=chosen.small)
        by_itself(folder, queries, rows, said)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the engines of the runs need the room
        for kind in [*(["vllm"] if importlib.util.find_spec("vllm") else []), "transformers"]:
            asked = 24 if chosen.small else 512
            said.part(f"stage_two {kind}", partial(stage_two, folder, kind=kind, queries=asked))
        print(json.dumps(said.found))


if __name__ == "__main__":
    main()
