"""How much shorter are the passes of a model on a CPU whose linear layers multiply from packed weights?

Prints one JSON line. The embedded model's passes are timed in one process, with plain and with packed weights: one that
decodes some answers, and one that reads prompts.

    python benchmarks/passes.py                       about 20 seconds on one core
    python benchmarks/passes.py --threads 2

What is in the line, in milliseconds, each the least of some passes:
    decode      by rows: `plain`, `packed`, and `ratio`, plain over packed
    read        the same for four prompts of 100 tokens
    packing     what it takes to pack all weights, once
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import transformers

from clear_ray.engine.packed import pack_linears
from clear_ray.engine.slot_cache import SlotCache, SlotRunner
from clear_ray.engine.smollm2 import EMBEDDED_MODEL, resolve_model

_ROWS, _POSITION, _PASSES = (1, 4, 32), 180, 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        resolve_model(EMBEDDED_MODEL), dtype=torch.float32
    ).eval()
    plain = passes_of(model)
    packing_ms = least_ms(lambda: pack_linears(model, free_bytes=1 << 40), times=1)
    packed = passes_of(model)
    both = {
        name: {"plain": plain[name], "packed": packed[name], "ratio": round(plain[name] / packed[name], 2)}
        for name in plain
    }
    line = {
        "benchmark": "passes",
        "date": datetime.now(UTC).date().isoformat(),
        "threads": threads,
        "decode": {rows: both[str(rows)] for rows in _ROWS},
        "read": both["read"],
        "packing": packing_ms,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "torch": torch.__version__,
    }
    print(json.dumps(line))


@torch.inference_mode()
def passes_of(model: Any) -> dict[str, float]:
    """Return the milliseconds of each kind of pass."""
    took = {}
    for rows in _ROWS:
        cache, runner = SlotCache(), SlotRunner(model)
        cache.reserve(rows, _POSITION + _PASSES + 16, kept_rows=0)
        took[str(rows)] = least_ms(lambda: runner.next_logits(cache, [5] * rows, [_POSITION] * rows))  # noqa: B023
    cache, runner = SlotCache(), SlotRunner(model)
    cache.reserve(4, 100, kept_rows=0)
    prompts = [[7 * place + row for place in range(100)] for row in range(4)]
    took["read"] = least_ms(lambda: runner.prefill(cache, 0, prompts, 512), times=3)
    return took


def least_ms(work: Callable[[], object], *, times: int = _PASSES) -> float:
    """Return the least milliseconds that some work took."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return round(1e3 * min(seconds), 1)


def processor() -> str:
    """Return what the machine says its processor is."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
