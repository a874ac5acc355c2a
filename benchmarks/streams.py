"""What do streams of mixed difficulty bring under the paper's policy and under ours, nothing known at the start?

The streams are those of the paper's figure: balanced, mostly easy, mostly hard, u-shaped; 500 queries each, half from
ZeroEval (MATH level 5, GSM8K) and half from reasoning-gym, drawn by measured difficulty: the share of right answers of all
*other* models in the same file. A fifth holds reasoning-gym's code and algorithmic tasks, as they come. The draw was
committed before any policy was played on it: `streams.json`.

    python benchmarks/streams.py draw DIR                make the draw again and write it to benchmarks/streams.json
    python benchmarks/streams.py play DIR [--seeds 5]    play the draw that is committed; prints one JSON line

DIR holds zeroeval_math.parquet and reasoning_gym.parquet. Policies: `uniform`, the equal ceiling that spends the budget
exactly; `paper`, thresholds regressed on the prompts, fitted on up to 1,500 answers to other queries that are not charged;
`learning`, ours, without a head, its exploration charged, over several seeds; `oracle`, which knows how long each recorded
answer is, and whether it is right.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.estimation.curves import token_grid
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.estimation.fit import fit_head
from clear_ray.sweep.estimates import untaught
from clear_ray.sweep.policies import Contest
from clear_ray.sweep.recording import Recording, read_recording

DRAW = Path(__file__).with_name("streams.json")
MODELS = {"zeroeval_math": "Meta-Llama-3.1-8B-Instruct", "reasoning_gym": "llama-4-maverick"}
STREAMS: Mapping[str, tuple[float, float, float]] = {
    "balanced": (1 / 3, 1 / 3, 1 / 3),
    "mostly_easy": (0.7, 0.2, 0.1),
    "mostly_hard": (0.1, 0.2, 0.7),
    "u_shaped": (0.45, 0.1, 0.45),
}
"""Shares of easy, middling and hard queries."""
CODE = ("code/", "algorithmic/")
QUERIES, SEED = 500, 20_261_129
BUDGETS = (32.0, 64.0, 128.0, 256.0, 384.0, 512.0)
_EASY, _HARD = 2 / 3, 1 / 3
_MOST_TRAINED = 1_500


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each file."""
    columns = ["query_id", "task", "sample", "prompt", "prompt_tokens", "output_tokens", "finish_reason", "correct"]
    return {name: pq.read_table(folder / f"{name}.parquet", columns=[*columns, "model"]).to_pylist() for name in MODELS}


def difficulty(rows: list[dict[str, Any]], model: str) -> dict[str, float]:
    """Return the share of right answers of all other models to each query that the model has answered."""
    right: dict[str, list[bool]] = {row["query_id"]: [] for row in rows if row["model"] == model}
    for row in rows:
        if row["model"] != model and row["query_id"] in right:
            right[row["query_id"]].append(bool(row["correct"]))
    return {query_id: float(np.mean(seen)) for query_id, seen in right.items() if seen}


def draw(files: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    """Return the ids of each stream, with the name of their file before them."""
    rng = np.random.default_rng(SEED)
    found: dict[str, list[str]] = {}
    easy = {name: difficulty(rows, MODELS[name]) for name, rows in files.items()}
    for stream, shares in STREAMS.items():
        ids: list[str] = []
        for name, share_right in easy.items():
            known = sorted(share_right)
            value = np.array([share_right[query_id] for query_id in known])
            bins = (value >= _EASY, (value < _EASY) & (value > _HARD), value <= _HARD)
            half = QUERIES // len(easy)
            counts = np.diff(np.rint(np.cumsum([0.0, *shares]) * half).astype(int))
            for is_in, count in zip(bins, counts, strict=True):
                chosen = rng.choice(np.flatnonzero(is_in), min(count, int(is_in.sum())), replace=False)
                ids += [f"{name}/{known[place]}" for place in np.sort(chosen)]
        found[stream] = ids
    tasks = {row["query_id"]: row["task"] for row in files["reasoning_gym"]}
    code = sorted(query_id for query_id, task in tasks.items() if task.startswith(CODE))
    chosen = np.sort(rng.choice(len(code), min(QUERIES, len(code)), replace=False))
    found["code"] = [f"reasoning_gym/{code[place]}" for place in chosen]
    return found


def answers(files: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the first answer of the replayed models to every query, by its id."""
    return {
        f"{name}/{row['query_id']}": {**row, "query_id": f"{name}/{row['query_id']}", "model": "both", "sample": 0}
        for name, rows in files.items()
        for row in rows
        if row["model"] == MODELS[name] and row["sample"] == 0
    }


def recorded(rows: list[dict[str, Any]]) -> tuple[pa.Table, Recording]:
    """Return rows as a table and as a recording."""
    table = pa.Table.from_pylist(rows)
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table, f"{folder}/rows.parquet")
        return table, read_recording(f"{folder}/rows.parquet")


def play(ids: list[str], pool: Mapping[str, dict[str, Any]], *, sets: list[str], seeds: int) -> list[dict[str, Any]]:
    """Return one row a budget."""
    _, recording = recorded([pool[query_id] for query_id in ids])
    asked = set(ids)
    others = [row for query_id, row in sorted(pool.items()) if query_id not in asked]
    rng = np.random.default_rng(SEED)
    trained, training = recorded([others[place] for place in np.sort(rng.permutation(len(others))[:_MOST_TRAINED])])
    head = fit_head(
        trained, training.features, kind="regressed_threshold", seed=0, cap_tokens=recording.cap_tokens,
        diagnostic_folds=0,
    )  # fmt: skip
    known = recording.features, recording.rollouts.prompts
    curves = untaught(recording) | {"regressed_threshold": head.curves(*known, recording.rollouts.query_ids)}
    assert np.array_equal(curves["competing_risks"].tokens_K, token_grid(recording.cap_tokens))
    x_NP = fit_coordinates(*known, sets=sets)(*known)
    rows = []
    for average in BUDGETS:
        contest = Contest(recording, curves, x_NP=x_NP)
        played = [
            float(Contest(recording, curves, seed=seed, x_NP=x_NP).play("learning", average).right_N.mean())
            for seed in range(seeds)
        ]
        row: dict[str, Any] = {"average_budget": average}
        for policy in ("uniform", "paper", "oracle"):
            row[policy] = round(float(contest.play(policy, average).right_N.mean()), 4)
        row["learning"] = round(float(np.mean(played)), 4)
        row["learning_error"] = round(float(np.std(played, ddof=1) / np.sqrt(seeds)), 4) if seeds > 1 else None
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "play"))
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--features", default="text,ngrams")
    parser.add_argument("--streams", default=",".join([*STREAMS, "code"]))
    arguments = parser.parse_args()
    files = read(Path(arguments.folder))
    if arguments.what == "draw":
        drawn = {"seed": SEED, "models": MODELS, "shares": STREAMS, "streams": draw(files)}
        DRAW.write_text(json.dumps(drawn) + "\n", encoding="utf-8")
        return
    streams, pool = json.loads(DRAW.read_text(encoding="utf-8"))["streams"], answers(files)
    sets = arguments.features.split(",")
    found = {name: play(streams[name], pool, sets=sets, seeds=arguments.seeds) for name in arguments.streams.split(",")}
    print(json.dumps({"figure": "streams", "queries": QUERIES, "features": sets, "seeds": arguments.seeds, **found}))


if __name__ == "__main__":
    main()
