"""How long does a batch take with clearings that overlap, and how long with a barrier after each round?

Prints one JSON line. The real law and order of dispatch in virtual time (`clear_ray.sweep.overlapped`): a step is a token
of each answer that runs, and nothing else takes time.

    python benchmarks/makespan.py                                            log-normal lengths
    python benchmarks/makespan.py --rollouts epoch_gpqa_aime.parquet --model gpt-5-mini-2025-08-07@effort=high
    python benchmarks/makespan.py --learns tests/data/rollouts [--draws 16]    runs that teach themselves: minutes
    python benchmarks/makespan.py --learns tests/data/demo/rollouts.parquet    likewise, as the demo: 1,400 tokens, 32 slots
    python benchmarks/makespan.py --learns tests/data/rollouts --copies 5 --tokens 24 --a-slot 25     a batch of 995
    python benchmarks/makespan.py --streamed [--rollouts FILE --model NAME]    priced while it is read, or when all is read
    python benchmarks/makespan.py --streamed --queries 20000 --held 2000 --a-slot 250     few curves held meanwhile

Log-normal: each query has a median of its own, itself log-normal about 1,500 tokens, and its lengths spread about that, up to
16,384; what is known of a query is its median, the spread and its chance of a right answer. Recorded: each answer is a query;
what is known of it is what the other answers to the same query did, with one more that is the mean of all. Learning: batches
drawn as in `benchmarks/learning.py`, one recorded answer to each query, of which nothing is known before the first answers;
here all figures are means over the draws, with the error of the difference in right answers. With copies, so many answers of
each query are queries of their own, and none is believed what another one of them has taught. A recording without features is
read by the text and the ngrams of its prompts.

What is in the line, for each case, share of the budget and number of queries a slot:
    steps, barrier_steps    wall time in steps
    ratio                   the first over the second
    over_least              the first over the larger of work / slots and the longest answer
    barrier_over_least      the same with a barrier
    right, barrier_right    right answers
    clearings               with overlap
With `--streamed`, where reading all prompts takes a tenth of the work, and an engine that reads has no step for its answers,
for each order of the input: `read_first`, where all is read before the first clearing; `streamed`, in the order that a run
reads in, mean of some seeds; `as_it_stands`, in the order of the input, which no run does. Of each:
    first_steps             when the first answer ended, over that of `read_first`
    steps                   likewise, when the last did
    right                   right answers
    clearings               how many
With `--held`, as of a batch that is priced from sketches: `read_first` has a barrier after each clearing, `windowed` prices
what was read last while it reads and then has a barrier, and `streamed` holds everything. Of `windowed` also:
    price_off               its prices over those of `streamed` where as many were known: median, and the farthest from 1
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from learning import Drawn, draw
from scipy.stats import norm

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import Curves, curves_from_incidence, token_grid
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.learning_beside import OverlappingLearningOffers
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS
from clear_ray.rounds.offers import BatchOffers
from clear_ray.stages.homes import Homes
from clear_ray.sweep.overlapped import Reading, Timed, timed_run
from clear_ray.sweep.recording import read_recording
from clear_ray.sweep.replayed import Answers

QUERIES_A_SLOT = (2, 5, 25)
MEDIAN_TOKENS, CAP_TOKENS, BUDGET_TOKENS = 1_500, 16_384, 400
SPREADS = ((0.7, 0.7), (1.2, 0.5))
"""Of the medians about the median, and of an answer about its query's: standard deviations of the logarithm."""
SHARES = (0.2, 0.5)
STREAMED_A_SLOT, STREAMED_SEEDS = (25,), 3
READING_SHARE, STRETCHES = 0.1, 256
"""Of the work, what reading all prompts takes; and stretches of queries, by which the order of reading is made."""
LEARNING_BUDGETS, LEARNING_QUERIES_A_SLOT = (24.0, 48.0), (2, 5)
DEMO_BUDGETS, DEMO_QUERIES_A_SLOT = (1_400 / 104,), (104 / 32,)


def log_normal(queries: int, between: float, within: float) -> tuple[Answers, Curves]:
    rng = np.random.default_rng(0)
    center_N = np.log(MEDIAN_TOKENS) + between * rng.standard_normal(queries)
    length_N = np.rint(np.exp(center_N + within * rng.standard_normal(queries))).astype(np.int64).clip(1)
    chance_N = rng.beta(1.0, 0.6, queries)
    is_stopped_N = length_N <= CAP_TOKENS
    is_right_N = is_stopped_N & (rng.random(queries) < chance_N)
    tokens_K = token_grid(CAP_TOKENS)
    ended_NK = norm.cdf((np.log(tokens_K) - center_N[:, None]) / within)
    curves = curves_from_incidence(chance_N[:, None] * ended_NK, survival_NK=1 - ended_NK, tokens_K=tokens_K)
    return Answers(length_N.clip(max=CAP_TOKENS), is_stopped_N, is_right_N), curves


def recorded(path: str, model: str) -> tuple[Answers, Curves]:
    columns = ["query_id", "output_tokens", "finish_reason", "correct"]
    rows = pq.read_table(path, columns=columns, filters=[("model", "=", model)])
    if not len(rows):
        raise SystemExit(f"{path} holds no answers of {model}")
    length_N = rows["output_tokens"].to_numpy().astype(np.int64)
    is_stopped_N = np.array(rows["finish_reason"].to_pylist()) == "stop"
    is_right_N = rows["correct"].to_numpy(zero_copy_only=False).astype(bool) & is_stopped_N
    tokens_K = token_grid(int(length_N.max()))
    is_ended_NK = (length_N[:, None] <= tokens_K) & is_stopped_N[:, None]
    _, query_N = np.unique(rows["query_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    right_NK, running_NK = (by_others(table, query_N) for table in (is_ended_NK & is_right_N[:, None], ~is_ended_NK))
    curves = curves_from_incidence(right_NK, survival_NK=running_NK, tokens_K=tokens_K)
    return Answers(length_N, is_stopped_N, is_right_N), curves


def by_others(outcome_NK: np.ndarray, query_N: np.ndarray) -> np.ndarray:
    """Return the mean of the other answers to each one's query and of one more, the mean of all."""
    total = np.zeros((query_N.max() + 1, outcome_NK.shape[1]))
    np.add.at(total, query_N, outcome_NK)
    others_N = np.bincount(query_N)[query_N][:, None] - 1
    shares: np.ndarray = (total[query_N] - outcome_NK + outcome_NK.mean(axis=0)) / (others_N + 1)
    return shares


def compared(answers: Answers, curves: Curves, budget_tokens: int, queries_a_slot: int) -> dict[str, float]:
    queries = len(curves)
    tie_break_N = np.random.default_rng(1).permutation(queries).astype(np.uint64)
    cap_N = np.full(queries, int(curves.tokens_K[-1]))
    offers = BatchOffers(Batch(curves, np.ones(queries), cap_N, tie_break_N, np.ones(queries)))
    here, barrier = (
        timed_run(offers, answers, budget_tokens=budget_tokens, slots=queries // queries_a_slot, overlaps=overlaps)
        for overlaps in (True, False)
    )
    return {
        "queries_a_slot": queries_a_slot,
        "steps": here.steps,
        "barrier_steps": barrier.steps,
        "ratio": round(here.steps / barrier.steps, 3),
        "over_least": round(here.steps / here.least_steps, 2),
        "barrier_over_least": round(barrier.steps / barrier.least_steps, 2),
        "right": int(here.is_right_N.sum()),
        "barrier_right": int(barrier.is_right_N.sum()),
        "clearings": here.clearings,
    }


def streamed(
    answers: Answers, curves: Curves, budget_tokens: int, queries_a_slot: float, held: int | None = None
) -> dict[str, Any]:
    """Return what becomes of a batch in each order, priced while it is read and after."""
    queries = len(curves)
    orders = {
        "shuffled": np.random.default_rng(2).permutation(queries),
        "longest first": np.argsort(-answers.length_N, kind="stable"),
        "shortest first": np.argsort(answers.length_N, kind="stable"),
    }
    slots = max(int(queries / queries_a_slot), 1)
    rate = queries / (READING_SHARE * budget_tokens / slots)
    found: dict[str, Any] = {}
    for name, order in orders.items():
        columns = (answers.length_N, answers.is_stopped_N, answers.is_right_N)
        batch = Answers(*(column[order] for column in columns)), curves.take(order)
        in_place, stretch = np.arange(queries), max(queries // STRETCHES, 1)
        spread = [Homes(stretch, 1).spread(queries, seed=seed) for seed in range(STREAMED_SEEDS)]
        how = (*batch, budget_tokens, slots)
        first = timed_reading(*how, Reading(rate, in_place, is_streamed=False), overlaps=held is None)
        ways = {
            "streamed": [timed_reading(*how, Reading(rate, one)) for one in spread],
            "as_it_stands": [timed_reading(*how, Reading(rate, in_place, most_held=held))],
        }
        if held is not None:
            ways["windowed"] = [timed_reading(*how, Reading(rate, one, most_held=held)) for one in spread]
        found[name] = {"read_first": {"right": int(first.is_right_N.sum()), "clearings": first.clearings}} | {
            way: {
                "first_steps": round(float(np.mean([one.first_steps for one in runs])) / first.first_steps, 3),
                "steps": round(float(np.mean([one.steps for one in runs])) / first.steps, 3),
                "right": round(float(np.mean([one.is_right_N.sum() for one in runs])), 1),
                "clearings": round(float(np.mean([one.clearings for one in runs])), 1),
            }
            for way, runs in ways.items()
        }
        if held is not None:
            found[name]["windowed"]["price_off"] = price_off(ways["windowed"], ways["streamed"], held)
    return {"queries_a_slot": queries_a_slot, "orders": found}


def price_off(windowed: list[Timed], streamed: list[Timed], held: int) -> list[float]:
    """Return how prices of a window differ from those over all that was known: the median, and the farthest from 1."""
    ratios: list[float] = []
    for one, other in zip(windowed, streamed, strict=True):
        known_P, price_P = np.array(other.prices).T
        amid = [(known, price) for known, price in one.prices if held < known < known_P[-1]]
        ratios += [price / float(np.interp(known, known_P, price_P)) for known, price in amid]
    return [round(float(np.median(ratios)), 3), round(max(ratios, key=lambda ratio: abs(np.log(ratio))), 3)]


def timed_reading(
    answers: Answers, curves: Curves, budget_tokens: int, slots: int, reading: Reading, *, overlaps: bool = True
) -> Timed:
    queries = len(curves)
    tie_break_N = np.random.default_rng(1).permutation(queries).astype(np.uint64)
    cap_N = np.full(queries, int(curves.tokens_K[-1]))
    offers = BatchOffers(Batch(curves, np.ones(queries), cap_N, tie_break_N, np.ones(queries)))
    return timed_run(offers, answers, budget_tokens=budget_tokens, slots=slots, overlaps=overlaps, reading=reading)


def learners(
    path: Path, draws: int, *, copies: int, tokens: list[float] | None, a_slot: list[float] | None
) -> tuple[int, dict[str, list[dict[str, float]]]]:
    """Return how many queries there are, and one row for each number of them a slot, of each budget."""
    is_demo = path.is_file()
    files = [str(path)] if is_demo else [str(path / "rollouts.parquet"), str(path / "features.parquet")]
    recording = read_recording(*files)
    budgets, queries_a_slot = (
        (DEMO_BUDGETS, DEMO_QUERIES_A_SLOT) if is_demo else (LEARNING_BUDGETS, LEARNING_QUERIES_A_SLOT)
    )
    known, tasks = (recording.features, recording.rollouts.prompts), recording.task_N.tolist()
    sets = ["text", "ngrams"] if is_demo else ["hidden", "text"]
    x_NP = fit_coordinates(*known, sets=sets, tasks=tasks)(*known, tasks)
    batches = [draw(recording, x_NP, copies=copies, queries=None, shuffled=False, seed=seed) for seed in range(draws)]
    queries = copies * len(recording)
    return queries, {
        f"learning, {queries} recorded queries, {budget:.4g} tokens a query": [
            learned(batches, budget, each) for each in a_slot or queries_a_slot
        ]
        for budget in tokens or budgets
    }


def learned(batches: list[Drawn], average: float, queries_a_slot: float) -> dict[str, float]:
    pairs = [
        [
            timed_learning(drawn, average, int(len(drawn.recording) / queries_a_slot), overlaps=way)
            for way in (True, False)
        ]
        for drawn in batches
    ]
    steps_D2 = np.array([[timed.steps for timed in pair] for pair in pairs], float)
    right_D2 = np.array([[timed.is_right_N.sum() for timed in pair] for pair in pairs], float)
    over_D2 = np.array([[timed.steps / timed.least_steps for timed in pair] for pair in pairs])
    difference_D = right_D2[:, 0] - right_D2[:, 1]
    return {
        "queries_a_slot": queries_a_slot,
        "draws": len(batches),
        "steps": round(float(steps_D2[:, 0].mean())),
        "barrier_steps": round(float(steps_D2[:, 1].mean())),
        "ratio": round(float(steps_D2[:, 0].sum() / steps_D2[:, 1].sum()), 3),
        "over_least": round(float(over_D2[:, 0].mean()), 2),
        "barrier_over_least": round(float(over_D2[:, 1].mean()), 2),
        "right": round(float(right_D2[:, 0].mean()), 2),
        "barrier_right": round(float(right_D2[:, 1].mean()), 2),
        "right_error": round(float(difference_D.std(ddof=1) / np.sqrt(len(batches))), 2),
        "clearings": round(float(np.mean([pair[0].clearings for pair in pairs])), 1),
        "barrier_clearings": round(float(np.mean([pair[1].clearings for pair in pairs])), 1),
    }


def timed_learning(
    drawn: Drawn, average: float, slots: int, *, overlaps: bool = True, reading: Reading | None = None
) -> Timed:
    """Run a batch that learns, of so many tokens a query, in virtual time."""
    queries, cap = len(drawn.recording), drawn.recording.cap_tokens
    one_N = np.ones(queries)
    offers = OverlappingLearningOffers(
        x_NP=drawn.x_NP,
        tokens_K=token_grid(cap),
        weight_N=one_N,
        max_tokens_N=np.full(queries, cap),
        tie_break_N=np.random.default_rng(drawn.seed).permutation(queries).astype(np.uint64),
        cost_N=one_N,
        budget_tokens=round(average * queries),
        seed=drawn.seed,
        fold_N=drawn.fold_N if drawn.has_copies else None,
    )
    return timed_run(
        offers,
        drawn.answers.of_attempt(np.ones(queries, np.int64)),
        budget_tokens=offers.budget_tokens,
        slots=slots,
        overlaps=overlaps,
        allocation=AllocationConfig(max_rounds=100 if overlaps else LEARNING_ROUNDS),
        reading=reading,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", help="recorded answers: query_id, output_tokens, finish_reason, correct, model")
    parser.add_argument("--model")
    parser.add_argument("--queries", type=int, default=2_000, help="of the log-normal cases")
    parser.add_argument("--streamed", action="store_true", help="compare batches that are priced while they are read")
    parser.add_argument(
        "--learns", type=Path, help="folder of a recording with features, for runs that teach themselves"
    )
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--tokens", type=float, nargs="+", help="average budgets of those runs")
    parser.add_argument("--a-slot", type=float, nargs="+", help="queries a slot")
    parser.add_argument("--held", type=int, help="of how many queries curves are held while prompts are read")
    chosen = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    compare, a_slot = compared, QUERIES_A_SLOT
    if chosen.streamed:
        compare, a_slot = partial(streamed, held=chosen.held), chosen.a_slot or STREAMED_A_SLOT
    queries = chosen.queries
    if chosen.learns:
        own = {name: getattr(chosen, name) for name in ("copies", "tokens", "a_slot")}
        queries, found = learners(chosen.learns, chosen.draws, **own)
    elif chosen.rollouts:
        answers, curves = recorded(chosen.rollouts, chosen.model or parser.error("--rollouts needs a --model"))
        for share in SHARES:
            budget = int(share * answers.length_N.sum())
            name = f"{Path(chosen.rollouts).stem} {chosen.model}, {share:g} of what uncapped answers take"
            found[name] = [compare(answers, curves, budget, each) for each in a_slot]
    else:
        for between, within in SPREADS:
            answers, curves = log_normal(chosen.queries, between, within)
            name = (
                f"log-normal, spread {between:g} of medians and {within:g} of answers, {BUDGET_TOKENS} tokens a query"
            )
            found[name] = [compare(answers, curves, BUDGET_TOKENS * chosen.queries, each) for each in a_slot]
        queries = len(curves)
    said = {"benchmark": "makespan", "date": f"{datetime.now(UTC):%Y-%m-%d}", "queries": queries, "cases": found}
    said |= {"command": " ".join(sys.argv), "load": round(os.getloadavg()[0], 1)}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
