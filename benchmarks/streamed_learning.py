"""What does a run that learns lose if it answers before its last prompt is read, and how much sooner does it answer?

Prints one JSON line. Recorded answers through the real law, pace, order of reading and order of dispatch, in virtual time
(`clear_ray.sweep.overlapped`): a step is a token of each answer that runs, an engine that reads has no step for its
answers, and nothing else takes time. Each batch is run twice with the same answers: all read first, and streamed.

    python benchmarks/streamed_learning.py recorded tests/data/rollouts --copies 20 [--draws 8] [--tokens 24 48]
    python benchmarks/streamed_learning.py traces reasoning_gym.parquet --model NAME --shares 0.1 0.3
    ... --shuffled      the coordinates of other queries, which say nothing
    ... --reading 0.1   of the work, what reading all prompts takes

Batches are drawn as in `benchmarks/learning.py`: where a query is in one more than once, no copy is believed anything that
another one has taught. They lie in the order of the recording, a kind of query after the other. A streamed run fits the map
of its coordinates while the lengths of its first part alone are known.

What is in the line, for each budget, means over the draws:
    first_steps, steps            first answer and last one of the streamed run, over those of the other
    right, read_first_right       right answers
    difference, error             of the two, with the standard error of the mean over draws
    clearings, read_first_clearings
    first_queries                 how many were known at the first clearing
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from learning import draw, read_traces
from makespan import timed_learning

from clear_ray.batch.part_coordinates import guessed_tokens
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.rounds.widening import Widening
from clear_ray.stages.homes import Homes
from clear_ray.sweep.overlapped import Reading, Timed
from clear_ray.sweep.recording import Recording, read_recording

STRETCHES = 256
"""Stretches of queries, by which the order of reading is made."""
Array = np.ndarray


def coordinates(recording: Recording, sets: list[str], known: Array) -> Array:
    """Return coordinates of all queries, by a map for which the lengths of some prompts are known and others are guessed."""
    prompts, tasks, every = recording.rollouts.prompts, recording.task_N.tolist(), np.arange(len(recording))
    letters_N, tokens_N = np.array(list(map(len, prompts))), recording.features.prompt_tokens_N
    guessed = replace(recording.features, prompt_tokens_N=guessed_tokens(letters_N, every, known, tokens_N[known]))
    found: Array = fit_coordinates(guessed, prompts, sets=sets, tasks=tasks)(recording.features, prompts, tasks)
    return found


def compared(
    recording: Recording, sets: list[str], average: float, chosen: argparse.Namespace, seed: int
) -> list[Timed]:
    """Return a batch that is read first, and the same one streamed."""
    every = np.arange(len(recording))
    whole = draw(
        recording,
        coordinates(recording, sets, every),
        copies=chosen.copies,
        queries=chosen.queries,
        shuffled=chosen.shuffled,
        seed=seed,
    )
    queries = len(whole.recording)
    slots = max(int(queries / chosen.a_slot), 1)
    order_N = Homes(max(queries // STRETCHES, 1), 1).spread(queries, seed=seed)
    rate = queries / (chosen.reading * average * queries / slots)
    first = np.unique(whole.row_N[order_N[: Widening(queries, slots).wanted]])
    of_first = coordinates(recording, sets, first)
    # The same draw, by the other map: where coordinates are those of other queries, of the same ones.
    place = draw(
        recording, every[:, None].astype(float), copies=chosen.copies, queries=chosen.queries,
        shuffled=chosen.shuffled, seed=seed,
    ).x_NP[:, 0].astype(np.int64)  # fmt: skip
    part = replace(whole, x_NP=of_first[place])
    return [
        timed_learning(whole, average, slots, reading=Reading(rate, np.arange(queries), is_streamed=False)),
        timed_learning(part, average, slots, reading=Reading(rate, order_N)),
    ]


def row(pairs: list[list[Timed]]) -> dict[str, Any]:
    right_D2 = np.array([[timed.is_right_N.sum() for timed in pair] for pair in pairs], float)
    difference_D = right_D2[:, 1] - right_D2[:, 0]

    def over(name: str) -> float:
        return round(float(np.mean([getattr(pair[1], name) / getattr(pair[0], name) for pair in pairs])), 3)

    def mean(place: int, name: str) -> float:
        return round(float(np.mean([getattr(pair[place], name) for pair in pairs])), 1)

    return {
        "draws": len(pairs),
        "first_steps": over("first_steps"),
        "steps": over("steps"),
        "right": round(float(right_D2[:, 1].mean()), 1),
        "read_first_right": round(float(right_D2[:, 0].mean()), 1),
        "difference": round(float(difference_D.mean()), 1),
        "error": round(float(difference_D.std(ddof=1) / np.sqrt(len(pairs))), 1) if len(pairs) > 1 else None,
        "clearings": mean(1, "clearings"),
        "read_first_clearings": mean(0, "clearings"),
        "first_queries": mean(1, "first_queries"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("recorded", "traces"))
    parser.add_argument("path")
    parser.add_argument("--model")
    parser.add_argument("--features", default="")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--tokens", type=float, nargs="+", help="average budgets")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.2], help="or these shares of what whole answers take"
    )
    parser.add_argument("--a-slot", type=float, default=25.0, help="queries a slot")
    parser.add_argument("--reading", type=float, default=0.1)
    parser.add_argument("--shuffled", action="store_true")
    chosen = parser.parse_args()
    folder, is_recorded = Path(chosen.path), chosen.kind == "recorded"
    if is_recorded:
        recording = read_recording(str(folder / "rollouts.parquet"), str(folder / "features.parquet"))
    else:
        recording = read_traces(chosen.path.split(","), chosen.model)
    sets = (chosen.features or "text,ngrams").split(",")
    ample = float(recording.length_NS.mean())
    found = {}
    for average in chosen.tokens or [share * ample for share in chosen.shares]:
        seeds = range(chosen.first, chosen.first + chosen.draws)
        found[f"{average:.4g} tokens a query"] = row(
            [compared(recording, sets, average, chosen, seed) for seed in seeds]
        )
    said = {"benchmark": "streamed_learning", "date": f"{datetime.now(UTC):%Y-%m-%d}", "cases": found}
    said |= {"queries": (chosen.queries or len(recording)) * chosen.copies, "features": sets}
    said |= {"command": " ".join(sys.argv), "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
