"""What does continuous batching buy over padded `generate`, and what does the probe cost beside the generation?

Prints one JSON line. Every ratio compares two things measured in the same process, one after the other, on the embedded
model or on `--model`, with the demo's kinds of prompts. CPU seconds are the figure of merit on a machine that may be
shared; wall seconds stand beside them, and are the ones that mean something on a GPU.

    python benchmarks/throughput.py                   about 5 minutes on one of two shared cores
    python benchmarks/throughput.py --device cuda --dtype bfloat16 --queries 2048 --batch 128 --random-weights

What is in the line:
    slots       the engine's own continuous batch on heavy-tailed grants (mean 96, most 512), longest first; no answer
                stops by itself, so that all ways do the same useful work. On CUDA with its graphs, their capture included
    eager       on CUDA, the same without graphs, a free slot filled at once
    paged       with --paged, transformers' own continuous batch
    padded      transformers' `generate` on the first batches in order of arrival, each until its longest grant is used up
    steps       how many passes each way needs for all grants: counted, not measured
    over_padded seconds that padded takes for all grants over those of slots: the measured seconds of a step times all
                steps; also with the grants sorted beforehand
    probe       a prefill of every prompt, over the generation under `slots`, by the layers that the demo's head reads and by
                all of them; also for prompts that share nothing but the chat template, at the same grants
    decode      on CUDA, one step of a full batch, with and without graphs, beside the time that reading all weights and the
                cache once takes at the bandwidth of a large copy on the same device
    idle        share of all steps that come after the queue is empty, for longest grants first and for order of arrival,
                over many queries; counted, not measured
"""

from __future__ import annotations

import argparse
import heapq
import importlib.util
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from paged_batch import PagedBatch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from clear_ray.config.engine import TransformersConfig, WorkersConfig
from clear_ray.config.run import RunConfig
from clear_ray.engine import Grant, Prompt, TransformersEngine
from clear_ray.engine.base import read_prompt
from clear_ray.engine.batch import AnswerBatch, RunningGrant
from clear_ray.engine.grouping import PREFILL_TOKENS
from clear_ray.engine.shallow import first_layers
from clear_ray.engine.slot_cache import SlotRunner
from clear_ray.engine.slots import SlotBatch, refill_rows
from clear_ray.engine.smollm2 import EMBEDDED_MODEL, resolve_model
from clear_ray.engine.trial import measure_footprint
from clear_ray.errors import ConfigError
from clear_ray.tasks import generate_queries

WORDS = ["river", "stone", "winter", "copper", "engine", "garden", "planet", "summer", "bridge", "candle", "forest"]
WAYS = ("padded", "padded_sorted")
MEAN_TOKENS, MOST_TOKENS = 96, 512
CHECKOUT = Path(__file__).resolve().parents[1]
DEMO, ROLLOUTS = CHECKOUT / "jobs" / "configs" / "demo.yaml", CHECKOUT / "tests" / "data" / "rollouts"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Seconds(NamedTuple):
    """Of the processor and of the clock on the wall."""

    cpu: float
    wall: float


def heavy_tailed_grants(queries: int) -> list[int]:
    """Return log-normal lengths, cut at the most and scaled to the mean, with the most among them."""
    drawn = np.random.default_rng(7).lognormal(0.0, 1.1, queries)
    scale = 1.0
    for _ in range(200):
        lengths = np.clip(drawn * scale, 1, MOST_TOKENS)
        scale *= MEAN_TOKENS / lengths.mean()
    whole = np.maximum(1, np.round(lengths)).astype(int)
    whole[int(np.argmax(whole))] = MOST_TOKENS
    return [int(tokens) for tokens in whole]


def timed(model: Any, action: Callable[[], Any]) -> tuple[Any, Seconds]:
    """Return the result of an action and the seconds it took."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    result = action()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return result, Seconds(time.process_time() - cpu, time.perf_counter() - wall)


def cache_options(model: Any, rows: int, positions: int) -> dict[str, Any]:
    """Return what any batch is made with: room for that many rows and positions, and no answer stops by itself."""
    return {
        "cache_tokens": rows * positions,
        "prefill_tokens": PREFILL_TOKENS[model.device.type],
        "end_token_ids": frozenset(),
    }


def slot_batch(model: Any, *, rows: int, positions: int, eager: bool = False) -> SlotBatch:
    """Return a batch as the engine makes it, but with a cache for that many rows and positions."""
    return SlotBatch(
        model,
        WorkersConfig(max_batch=rows),
        graphs=model.device.type == "cuda" and not eager,
        refill_rows=1 if eager else refill_rows(rows, model.device),
        **cache_options(model, rows, positions),
    )


def most_positions(inputs: Sequence[list[int]]) -> int:
    return max(map(len, inputs)) + 2 * MOST_TOKENS


def run_through(batch: AnswerBatch, inputs: Sequence[list[int]], grants: Sequence[int]) -> tuple[int, int]:
    """Run the grants through a batch and close it; return the tokens generated and the steps taken."""
    for i, (ids, tokens) in enumerate(zip(inputs, grants, strict=True)):
        batch.add(RunningGrant(Grant(str(i), "", tokens), list(ids), on_end=lambda _: None))
    generated = steps = 0
    while not batch.is_idle:
        ended = batch.step()
        generated += sum(len(answer.generated) for answer in ended)
        steps += 1
    batch.close()
    return generated, steps


def run_slots(
    model: Any, inputs: Sequence[list[int]], grants: Sequence[int], rows: int, *, eager: bool = False
) -> tuple[int, int]:
    return run_through(slot_batch(model, rows=rows, positions=most_positions(inputs), eager=eager), inputs, grants)


def run_paged(model: Any, inputs: Sequence[list[int]], grants: Sequence[int], rows: int) -> tuple[int, int]:
    return run_through(
        PagedBatch(model, WorkersConfig(max_batch=rows), **cache_options(model, rows, most_positions(inputs))),
        inputs,
        grants,
    )


def copied_bytes_per_second(device: torch.device) -> float:
    """Return the bytes that a large copy on the device reads and writes in a second."""
    source = torch.ones(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.numel() / float(np.median(seconds))


def decode_steps(model: Any, rows: int, prompt_tokens: int = 128, steps: int = 96) -> dict[str, Any]:
    """Time steps of a full batch beside what the memory of the device permits."""
    vocabulary, rng = model.get_input_embeddings().num_embeddings, np.random.default_rng(11)
    medians = {}
    for name, eager in (("graphs", False), ("eager", True)):
        batch = slot_batch(model, rows=rows, positions=prompt_tokens + 4 * steps, eager=eager)
        for i in range(rows):
            ids = [int(token) for token in rng.integers(0, vocabulary, prompt_tokens)]
            batch.add(RunningGrant(Grant(str(i), "", 2 * steps), ids, on_end=lambda _: None))
        seconds = [timed(model, batch.step)[1].wall for _ in range(steps)]
        batch.close()
        medians[name] = float(np.median(seconds[steps // 2 :]))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    cache = rows * (prompt_tokens + 3 * steps // 4) * measure_footprint(model, "slots").position_bytes
    roof = (weights + cache) / copied_bytes_per_second(model.device)
    return {
        "rows": rows,
        **{f"{name}_ms": round(1e3 * median, 3) for name, median in medians.items()},
        "memory_limit_ms": round(1e3 * roof, 3),
        "eager_over_graphs": round(medians["eager"] / medians["graphs"], 2),
        "graphs_over_limit": round(medians["graphs"] / roof, 2),
    }


def random_model(folder: Path, *, is_small: bool = False) -> None:
    """Save a model of 1.5 billion random weights, in the shape of Qwen2.5-1.5B, with some tokenizer.

    Args:
        folder: Where to.
        is_small: A few million weights in its place, to try a script.
    """
    torch.manual_seed(0)
    few = {"vocab_size": 49_152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    sizes = {"vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    config = Qwen2Config(
        **(few | {"num_attention_heads": 4} if is_small else sizes | {"num_attention_heads": 12}),
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = Qwen2ForCausalLM(config)
        model.to(torch.bfloat16).save_pretrained(folder)
    try:
        embedded = Path(resolve_model(EMBEDDED_MODEL))
    except (ConfigError, ImportError):  # its package, or what reads its weights, is not installed
        trained_tokenizer(recorded_prompts()).save_pretrained(folder)
        return
    for file in (*embedded.glob("*token*"), *embedded.glob("*template*")):
        shutil.copy(file, folder)


def trained_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a small tokenizer with a chat template on some texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=8_192,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1])
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def recorded_prompts() -> list[str]:
    """Return what was asked of a model in the recorded rollouts, without the chat template."""
    rows = pq.read_table(ROLLOUTS / "queries.parquet", columns=["prompt"])["prompt"].to_pylist()
    return [row.partition("<|im_start|>user\n")[2].partition("<|im_end|>")[0] for row in rows]


@torch.inference_mode()
def run_padded(model: Any, inputs: Sequence[list[int]], grants: Sequence[int], batch_size: int) -> int:
    """Run padded `generate` a batch at a time, each to its longest grant; return the useful tokens."""
    for start in range(0, len(inputs), batch_size):
        rows = inputs[start : start + batch_size]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
        most = max(grants[start : start + batch_size])
        model.generate(ids, attention_mask=mask, max_new_tokens=most, do_sample=False, eos_token_id=-1, pad_token_id=0)
    return sum(grants)


def plain_prompts(queries: int) -> list[str]:
    """Return prompts that share nothing but what the chat template puts around them."""
    rng = np.random.default_rng(3)
    return [" ".join(rng.choice(WORDS, size=int(rng.integers(8, 40)))) + "?" for _ in range(queries)]


def file_prompts(path: Path, queries: int) -> list[Prompt]:
    """Return prompts from the lines of a file, in turn."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    read = [read_prompt(row.get("prompt") or row["messages"], is_conversation=not row.get("prompt")) for row in rows]
    return [read[i % len(read)] for i in range(queries)]


def demo_prompts(queries: int) -> list[Prompt]:
    """Return prompts of the demo's kinds, one kind after the other in turn; without reasoning-gym the recorded ones."""
    if importlib.util.find_spec("reasoning_gym") is None:
        recorded = recorded_prompts()
        return [recorded[i % len(recorded)] for i in range(queries)]
    sources = RunConfig.load(DEMO).input.tasks
    each = -(-queries // len(sources))
    rows = list(generate_queries([source.model_copy(update={"count": each}) for source in sources]))
    mixed = [rows[kind * each + k] for k in range(each) for kind in range(len(sources))]
    return [read_prompt(row["prompt"] or row["messages"], is_conversation=not row["prompt"]) for row in mixed][:queries]


def schedule_steps(grants: Sequence[int], slots: int) -> tuple[int, int]:
    """Return how many steps the grants take in this order, and how many of them after the queue is empty."""
    ends = [0] * slots
    heapq.heapify(ends)
    for tokens in grants:
        heapq.heappush(ends, heapq.heappop(ends) + tokens)
    return max(ends), max(ends) - min(ends)


def idle(queries: int, slots: int) -> dict[str, Any]:
    grants = heavy_tailed_grants(queries)
    orders = {"longest_first": sorted(grants, reverse=True), "arrival": grants}
    steps = {name: schedule_steps(ordered, slots) for name, ordered in orders.items()}
    return {"queries": queries, **{name: round(tail / whole, 4) for name, (whole, tail) in steps.items()}}


def padded_steps(grants: Sequence[int], rows: int) -> int:
    return sum(max(grants[start : start + rows]) for start in range(0, len(grants), rows))


def per_second(tokens: int, seconds: Seconds) -> dict[str, float]:
    return {"cpu": round(tokens / seconds.cpu, 1), "wall": round(tokens / seconds.wall, 1)}


def ratios(slots: Seconds, padded: Seconds, times: float) -> dict[str, float]:
    return {"cpu": round(times * padded.cpu / slots.cpu, 2), "wall": round(times * padded.wall / slots.wall, 2)}


def probe_seconds(
    engine: TransformersEngine, layers: int, prompts: Sequence[Prompt], plain: Sequence[Prompt]
) -> dict[str, Seconds]:
    """Return what reading takes by the first layers, of both kinds of prompts as if there were as many of each."""
    engine._runner = SlotRunner(first_layers(engine._model, layers))
    found = {}
    for kind, asked in (("demo_prompts", prompts), ("plain_prompts", plain)):
        names = [str(i) for i in range(len(asked))]
        _, seconds = timed(engine._model, partial(engine.prefill, names, asked))
        found[kind] = Seconds(*(len(prompts) / len(asked) * figure for figure in seconds))
    return found


def measure(engine: TransformersEngine, options: argparse.Namespace) -> dict[str, Any]:
    model, grants, rows = engine._model, heavy_tailed_grants(options.queries), options.batch
    own = file_prompts(options.prompts, options.queries) if options.prompts else demo_prompts(options.queries)
    prompts, plain = own, plain_prompts(options.queries // 4)
    inputs = engine._rendering.token_ids(prompts)
    longest_first = sorted(range(len(grants)), key=lambda i: -grants[i])
    ordered = [grants[i] for i in longest_first]
    engine.prefill(["warm"], ["up"])
    run_slots(model, inputs[:2], [4, 4], 2)
    (useful, slot_steps), slots = timed(
        model, lambda: run_slots(model, [inputs[i] for i in longest_first], ordered, rows)
    )
    is_cuda = model.device.type == "cuda"
    on_cuda: dict[str, Any] = {}
    if is_cuda:
        _, eager = timed(model, lambda: run_slots(model, [inputs[i] for i in longest_first], ordered, rows, eager=True))
        on_cuda["over_eager"] = ratios(slots, eager, 1.0)
        on_cuda["decode"] = [decode_steps(model, count) for count in sorted({1, 32, rows})]
    if options.paged:
        _, paged = timed(model, lambda: run_paged(model, [inputs[i] for i in longest_first], ordered, rows))
        on_cuda["over_paged"] = ratios(slots, paged, 1.0)
    few = rows * options.padded_batches
    padded_useful, padded = timed(model, lambda: run_padded(model, inputs[:few], grants[:few], rows))
    depth = model.config.num_hidden_layers
    probes = {
        f"{layers} of {depth} layers": probe_seconds(engine, layers, prompts, plain)
        for layers in sorted({options.probe_layers, depth})
    }
    steps = {
        "slots": slot_steps,
        "padded": padded_steps(grants, rows),
        "padded_sorted": padded_steps(ordered, rows),
        "padded_measured": padded_steps(grants[:few], rows),
    }
    return {
        "useful_tokens": useful,
        "tokens_per_second": {"slots": per_second(useful, slots), "padded": per_second(padded_useful, padded)},
        "steps": steps,
        **{f"over_{way}": ratios(slots, padded, steps[way] / steps["padded_measured"]) for way in WAYS},
        "probe_over_generation": {
            name: {kind: round(seconds[is_cuda] / slots[is_cuda], 4) for kind, seconds in of_kind.items()}
            for name, of_kind in probes.items()
        },
        "mean_prompt_tokens": {
            "demo_prompts": round(sum(map(len, inputs)) / len(inputs), 1),
            "plain_prompts": round(sum(engine.prompt_tokens(plain)) / len(plain), 1),
        },
        **on_cuda,
        "idle": idle(max(2000, options.queries), rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--queries", type=int, default=96)
    parser.add_argument("--probe-layers", type=int, default=8, help="layers that a probe runs beside one of all layers")
    parser.add_argument("--padded-batches", type=int, default=1)
    parser.add_argument(
        "--prompts", type=Path, help="JSONL with `prompt` or `messages`, in place of the demo's queries"
    )
    parser.add_argument("--paged", action="store_true", help="also measure transformers' own continuous batch")
    parser.add_argument("--random-weights", action="store_true", help="a model of 1.5 billion random weights")
    options = parser.parse_args()
    folder = tempfile.TemporaryDirectory() if options.random_weights else None
    if folder is not None:
        random_model(Path(folder.name))
        options.model = folder.name
    engine = TransformersEngine(
        TransformersConfig(model=options.model, device=options.device, dtype=options.dtype, threads=options.threads)
    )
    is_cuda = engine._model.device.type == "cuda"
    machine = {
        "device": torch.cuda.get_device_name() if is_cuda else platform.machine(),
        "dtype": str(engine._model.dtype).removeprefix("torch."),
        **{name: getattr(options, name) for name in ("threads", "batch", "queries")},
        "load": round(os.getloadavg()[0], 1),
    }
    try:
        print(json.dumps({**machine, **measure(engine, options)}))
    finally:
        engine.close()
        if folder is not None:
            folder.cleanup()


if __name__ == "__main__":
    main()
