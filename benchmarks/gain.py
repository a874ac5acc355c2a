"""Does a plan tell beforehand what a run that learns will gain over equal ceilings?

Batches are drawn from recordings: a model's answers to some queries, at some budget. What a plan would say, from answers
sampled for a hundredth of the budget, or from what an earlier run of other queries has left in a store, is held beside
what a replay of the whole run gains, its exploration charged. Counted are batches whose gain lies in the interval, and those
of which "a gain is expected" or "no gain is expected" came true. The constants of `clear_ray.estimation.gain` were chosen on
the batches of `--part tuning`; those of `--part held` are of other models or other queries.

    python benchmarks/gain.py --part held [--traces DIR]     DIR holds reasoning_gym.parquet and zeroeval_math.parquet

Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from learning import Drawn, read_traces
from numpy.typing import NDArray

from clear_ray.engine.base import ModelCard
from clear_ray.estimation.curves import curves_from_incidence, token_grid
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.estimation.factors import Observed
from clear_ray.estimation.feature_sets import read_for
from clear_ray.estimation.gain import Gain, SampledAnswer, gain_by_curves, gain_by_sample, least_gain
from clear_ray.estimation.head_store import HeadStore, KeptLesson, StoredLessons, fit_stored_head
from clear_ray.rounds.batch import Batch, uniform_ceiling
from clear_ray.rounds.clearing import clear
from clear_ray.rounds.learning_offers import Stages
from clear_ray.storage import open_folder
from clear_ray.sweep.policies import equal_ceilings
from clear_ray.sweep.recording import Recording

ROLLOUTS = Path(__file__).parents[1] / "tests" / "data" / "rollouts" / "rollouts.parquet"
SETS = ("text", "ngrams")
SAMPLED_SHARE, MOST_SAMPLED, SAMPLED_CEILING = 0.01, 64, 2.0
CEILING = 4_096


@dataclass(frozen=True)
class Case:
    """One batch: a recording, a model, which of its queries, how many, and the budget as a share of ample spend."""

    file: str
    model: str | None
    kind: str
    queries: int
    share: float
    has_store: bool = False
    draw: int = 1


TUNING = [
    Case("rollouts", None, "", 199, 0.12),
    Case("rollouts", None, "", 100, 0.3, True),
    Case("rollouts", None, "", 100, 1.2),
    Case("reasoning_gym", "claude-sonnet-4", "", 400, 0.05),
    Case("reasoning_gym", "claude-sonnet-4", "", 1000, 0.2),
    Case("reasoning_gym", "claude-sonnet-4", "", 400, 0.3, True),
    Case("reasoning_gym", "claude-sonnet-4", "", 400, 0.6),
    Case("reasoning_gym", "claude-sonnet-4", "", 2000, 0.5),
    Case("reasoning_gym", "claude-sonnet-4", "arithmetic", 250, 0.4),
    Case("reasoning_gym", "claude-sonnet-4", "algorithmic", 300, 0.2, True),
    Case("zeroeval_math", "Meta-Llama-3.1-8B-Instruct", "math", 300, 0.3),
    Case("zeroeval_math", "Meta-Llama-3.1-8B-Instruct", "gsm", 400, 0.5),
    Case("zeroeval_math", "Meta-Llama-3.1-8B-Instruct", "gsm", 400, 1.1),
    Case("reasoning_gym", "llama-4-maverick", "", 400, 0.05),
    Case("reasoning_gym", "llama-4-maverick", "", 400, 0.15),
    Case("reasoning_gym", "llama-4-maverick", "", 2000, 0.4),
    Case("reasoning_gym", "llama-4-maverick", "", 400, 0.7),
    Case("reasoning_gym", "llama-4-maverick", "", 400, 0.2, True),
    Case("reasoning_gym", "llama-4-maverick", "arithmetic", 250, 0.3),
    Case("reasoning_gym", "llama-4-maverick", "games", 200, 0.3),
    Case("reasoning_gym", "gemma-3-27b-it", "", 400, 0.1),
    Case("reasoning_gym", "gemma-3-27b-it", "", 400, 0.3),
    Case("reasoning_gym", "gemma-3-27b-it", "", 400, 0.3, True),
    Case("reasoning_gym", "gemma-3-27b-it", "algorithmic", 300, 0.4, True),
    Case("reasoning_gym", "gemma-3-27b-it", "", 2000, 1.2),
    Case("zeroeval_math", "gpt-4o-mini-2024-07-18", "math", 300, 0.2),
    Case("zeroeval_math", "gpt-4o-mini-2024-07-18", "math", 700, 1.0),
    Case("zeroeval_math", "gpt-4o-mini-2024-07-18", "math", 300, 0.5, True),
    Case("zeroeval_math", "gpt-4o-mini-2024-07-18", "gsm", 500, 0.5),
    Case("zeroeval_math", "gpt-4o-mini-2024-07-18", "gsm", 500, 0.8),
    Case("zeroeval_math", "gpt-4o-mini-2024-07-18", "gsm", 500, 1.1),
    Case("zeroeval_math", "gpt-4o-mini-2024-07-18", "gsm", 500, 0.9, True),
    Case("reasoning_gym", "llama-4-maverick", "logic", 250, 0.8, True),
    Case("zeroeval_math", "Qwen2-7B-Instruct", "math", 700, 0.2),
    Case("zeroeval_math", "Qwen2-7B-Instruct", "gsm", 1200, 0.4),
    Case("zeroeval_math", "gemma-2-9b-it", "math", 300, 0.5, True),
    Case("zeroeval_math", "gemma-2-9b-it", "gsm", 1200, 1.2),
    Case("zeroeval_math", "gpt-4o-2024-08-06", "math", 300, 0.4),
    Case("zeroeval_math", "gpt-4o-2024-08-06", "gsm", 600, 0.6, True),
    Case("zeroeval_math", "Meta-Llama-3.1-70B-Instruct", "math", 700, 0.8),
    Case("zeroeval_math", "Meta-Llama-3.1-70B-Instruct", "gsm", 600, 0.3),
    Case("zeroeval_math", "Qwen2-72B-Instruct", "math", 300, 0.3, True),
    Case("zeroeval_math", "Qwen2-72B-Instruct", "gsm", 1200, 0.9),
    Case("zeroeval_math", "gemma-2-2b-it", "gsm", 600, 0.5),
    Case("zeroeval_math", "gemma-2-2b-it", "math", 300, 1.5),
    Case("reasoning_gym", "claude-sonnet-4", "games", 300, 0.2),
    Case("reasoning_gym", "claude-sonnet-4", "logic", 150, 0.3, True),
    Case("reasoning_gym", "claude-sonnet-4", "graphs", 200, 0.5),
    Case("reasoning_gym", "llama-4-maverick", "algorithmic", 800, 0.2),
    Case("reasoning_gym", "llama-4-maverick", "algebra", 150, 0.3, True),
    Case("reasoning_gym", "gemma-3-27b-it", "arithmetic", 400, 0.3),
    Case("reasoning_gym", "gemma-3-27b-it", "logic", 300, 0.5),
    Case("reasoning_gym", "claude-sonnet-4", "", 4000, 0.3),
]
HELD = [
    Case("zeroeval_math", "Qwen2.5-72B-Instruct", "math", 350, 0.2, draw=2),
    Case("zeroeval_math", "Qwen2.5-72B-Instruct", "math", 350, 0.4, True, draw=2),
    Case("zeroeval_math", "Qwen2.5-32B-Instruct", "math", 700, 0.6, draw=2),
    Case("zeroeval_math", "Qwen2.5-32B-Instruct", "math", 700, 1.1, draw=2),
    Case("zeroeval_math", "Qwen2.5-7B-Instruct", "math", 350, 0.1, draw=2),
    Case("zeroeval_math", "Qwen2.5-7B-Instruct", "math", 350, 2.0, draw=2),
    Case("zeroeval_math", "Qwen2.5-3B-Instruct", "math", 350, 0.3, True, draw=2),
    Case("zeroeval_math", "Qwen2.5-3B-Instruct", "math", 350, 0.8, draw=2),
    Case("zeroeval_math", "Meta-Llama-3.1-70B-Instruct", "gsm", 1000, 1.3, draw=2),
    Case("zeroeval_math", "gemma-2-9b-it", "gsm", 600, 0.6, draw=2),
    Case("zeroeval_math", "Qwen2-7B-Instruct", "gsm", 600, 0.7, True, draw=2),
    Case("reasoning_gym", "claude-sonnet-4", "algebra", 150, 0.2, True, draw=2),
    Case("reasoning_gym", "claude-sonnet-4", "cognition", 300, 0.3, draw=2),
    Case("reasoning_gym", "claude-sonnet-4", "", 800, 0.15, draw=2),
    Case("reasoning_gym", "llama-4-maverick", "cognition", 300, 0.4, draw=2),
    Case("reasoning_gym", "llama-4-maverick", "", 800, 0.25, True, draw=2),
    Case("reasoning_gym", "llama-4-maverick", "", 600, 1.5, draw=2),
    Case("reasoning_gym", "gemma-3-27b-it", "algebra", 200, 0.2, draw=2),
    Case("reasoning_gym", "gemma-3-27b-it", "cognition", 300, 0.4, draw=2),
    Case("reasoning_gym", "gemma-3-27b-it", "", 800, 0.2, True, draw=2),
]


@cache
def recording_of(file: str, model: str | None, traces: str) -> Recording:
    """Return a whole recording of one model."""
    if file == "rollouts":
        return read_traces([str(ROLLOUTS)], None)
    whole = read_traces([f"{traces}/{file}.parquet"], model)
    # Under the ceiling that a user would set; a recording's own is its longest answer.
    is_cut_NS = whole.length_NS > CEILING
    return replace(
        whole,
        cap_tokens=min(whole.cap_tokens, CEILING),
        length_NS=np.minimum(whole.length_NS, CEILING),
        is_stopped_NS=whole.is_stopped_NS & ~is_cut_NS,
        is_right_NS=whole.is_right_NS & ~is_cut_NS,
    )


def drawn(recording: Recording, case: Case, *, is_earlier: bool) -> Recording:
    """Return one sample of some of the queries of a case; what an earlier run had are others."""
    named = (case.file, case.model, case.kind, case.queries, case.share, case.has_store, case.draw)
    rng = np.random.default_rng(zlib.crc32(repr(named).encode()))
    wanted = [n for n, task in enumerate(recording.task_N.tolist()) if case.kind.lower() in str(task).lower()]
    order = rng.permutation(wanted)
    rows = np.sort(order[case.queries :][: case.queries] if is_earlier else order[: case.queries])
    sample = rng.integers(0, recording.samples, len(rows))
    prompts = [recording.rollouts.prompts[row] for row in rows.tolist()]
    return replace(
        recording,
        rollouts=replace(recording.rollouts, prompts=tuple(prompts)),
        features=replace(
            recording.features,
            prompt_tokens_N=recording.features.prompt_tokens_N[rows],
            entropy_N=recording.features.entropy_N[rows],
            hidden_last_ND=recording.features.hidden_last_ND[rows],
            hidden_mean_ND=recording.features.hidden_mean_ND[rows],
        ),
        length_NS=recording.length_NS[rows, sample][:, None],
        is_stopped_NS=recording.is_stopped_NS[rows, sample][:, None],
        is_right_NS=recording.is_right_NS[rows, sample][:, None],
        task_N=recording.task_N[rows],
    )


def said(batch: Recording, earlier: Recording, case: Case, average: float) -> Gain:
    """Return what a plan says of a batch."""
    queries = len(batch)
    if case.has_store:
        return _by_store(batch, earlier, average)
    order = np.random.default_rng(queries).permutation(queries)[:MOST_SAMPLED]
    ceiling = min(int(SAMPLED_CEILING * average), batch.cap_tokens)
    left, sampled = SAMPLED_SHARE * average * queries, list[SampledAnswer]()
    for whole in (batch.cap_tokens, ceiling):  # whole answers while they surely fit, then cut ones
        while len(sampled) < len(order) and whole <= left:
            query = int(order[len(sampled)])
            tokens = min(int(batch.length_NS[query, 0]), whole)
            is_ended = bool(batch.is_stopped_NS[query, 0]) and int(batch.length_NS[query, 0]) <= whole
            sampled.append(SampledAnswer(tokens, is_ended, float(batch.is_right_NS[query, 0]) if is_ended else None))
            left -= tokens
    return gain_by_sample(sampled, queries=queries, average=average, cap=float(batch.cap_tokens))


def _by_store(batch: Recording, earlier: Recording, average: float) -> Gain:
    grid, queries = token_grid(batch.cap_tokens), len(batch)
    # As an earlier run leaves it that had half of what its answers take.
    met = _half_seen(earlier)
    readings = read_for(SETS, earlier.features, earlier.rollouts.prompts)
    store = HeadStore(open_folder("/tmp/none"), ModelCard("recorded", "recorded", 1, 0), SETS)  # noqa: S108 - not touched
    head = fit_stored_head(
        StoredLessons((KeptLesson(readings, met),), (), ()), store, tokens_K=grid, label="verdict", seed=0
    )
    found = head.incidence_of(read_for(SETS, batch.features, batch.rollouts.prompts))
    one_N = np.ones(queries)
    curves = curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=grid)
    priced = Batch(curves, one_N, np.full(queries, batch.cap_tokens), np.arange(queries, dtype=np.uint64), one_N)
    drawn = np.random.default_rng(0).permutation(len(met))[:MOST_SAMPLED]
    some = [
        SampledAnswer(
            float(met.tokens_M[n]), bool(met.is_ended_M[n]), float(met.right_M[n]) if met.is_ended_M[n] else None
        )
        for n in drawn.tolist()
    ]
    return gain_of(priced, int(average * queries), some)


def gain_of(batch: Batch, budget_tokens: int, earlier: Sequence[SampledAnswer]) -> Gain:
    """Return what the curves of a batch promise, and the answers behind them."""
    queries = len(batch.weight_N)
    none_N, all_N = np.zeros(queries, np.int64), np.ones(queries, bool)
    clearing = clear(
        batch, generated_tokens_N=none_N, is_open_N=all_N, available_tokens=budget_tokens, basis="expected_spend"
    )
    _, even = uniform_ceiling(batch, budget_tokens)
    told = {"average": budget_tokens / queries, "cap": float(batch.max_tokens_N.mean())}
    return gain_by_curves(float(clearing.expected_utility_M.sum()), even, earlier, queries=queries, **told)


def _half_seen(earlier: Recording) -> Observed:
    rng = np.random.default_rng(len(earlier))
    length_N, ceiling_N = earlier.length_NS[:, 0], rng.exponential(earlier.length_NS.mean(), len(earlier))
    is_ended_N = earlier.is_stopped_NS[:, 0] & (length_N <= ceiling_N)
    right_N = np.where(is_ended_N, earlier.is_right_NS[:, 0].astype(float), np.nan)
    tokens_N = np.maximum(np.minimum(length_N, ceiling_N.astype(np.int64)), 1)
    return Observed(np.arange(len(earlier)), np.where(is_ended_N, length_N, tokens_N), is_ended_N, right_N)


def gained(batch: Recording, average: float) -> tuple[float, float]:
    """Return what equal ceilings answer, and what a run that learns answers more, right answers a query."""
    x_NP = fit_coordinates(batch.features, batch.rollouts.prompts, sets=SETS)(batch.features, batch.rollouts.prompts)
    rows: NDArray[np.int64] = np.arange(len(batch))
    played = Drawn(batch, rows, x_NP, rows % 5, False, 0).learning(average, label="verdict", stages=Stages())
    even = float(equal_ceilings(batch, average).right_N.mean())
    return even, float(played.is_right_N.mean()) - even


def row_of(case: Case, traces: str) -> dict[str, Any]:
    """Return what was said of one batch and what came."""
    whole = recording_of(case.file, case.model, traces)
    batch, earlier = drawn(whole, case, is_earlier=False), drawn(whole, case, is_earlier=True)
    average = case.share * float(batch.length_NS.mean())
    told = said(batch, earlier, case, average)
    even, more = gained(batch, average)
    is_worth = more >= float(least_gain(even))
    found = {
        "file": case.file, "model": case.model, "kind": case.kind, "queries": len(batch),
        "share": case.share, "store": case.has_store, "low": round(told.low, 4), "expected": round(told.expected, 4),
        "high": round(told.high, 4), "chance": round(told.chance, 3), "uniform": round(even, 4), "gain": round(more, 4),
        "covers": told.low <= more <= told.high, "came_true": told.is_expected == is_worth,
    }  # fmt: skip
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("tuning", "held"), default="held")
    parser.add_argument("--traces", default=str(Path(__file__).parents[2] / "shared" / "data" / "traces"))
    arguments = parser.parse_args()
    rows = [row_of(case, arguments.traces) for case in (HELD if arguments.part == "held" else TUNING)]
    counts = {name: sum(row[name] for row in rows) for name in ("covers", "came_true")}
    print(json.dumps({"figure": "gain", "part": arguments.part, "batches": len(rows), **counts, "rows": rows}))


if __name__ == "__main__":
    main()
