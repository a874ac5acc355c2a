"""How many queries does one budget solve if they may be asked again, against fixed settings chosen in hindsight?

Replays of recorded answers through the real law (`Rounds`, ledger, offers). A draw is an order of each query's recorded
answers, in which attempts draw them, and an order of the queries.

    python benchmarks/attempts.py --rollouts FILE [--features FILE] [--train FOLDER] [--model NAME] --budgets 16,32,...
                                  --output FOLDER [--draws 10] [--shares] [--attempts 8]

FILE has one row an answer: query_id, sample, output_tokens, finish_reason, correct; task, model, prompt and answer texts are
used where they are there. Budgets are tokens a query, or with --shares parts of what one uncapped answer spends. The curves
come from a head fitted on the other folds (--features), on other rollouts (--train), or else from the task labels alone: one
curve a label, from all answers that bear it.

`fixed`, `retry`: the number of answers and the ceiling that are best in hindsight, over all draws; every query is asked so
often (fixed), or until it is solved, in rounds over all queries while tokens last (retry). `reset_and_discard` and
`blend_asc` are our readings of two published rules: whole answers, in rounds over the unsolved; and whole answers, the next
one to the query whose vote is the least certain. `oracle` knows each query's own recorded curve.

Writes one JSON row for each policy and budget to FOLDER/attempts.jsonl and prints them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import betainc, betaln

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import Curves, curves_from_incidence, token_grid
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.estimation.factors import Observed, fit_factors
from clear_ray.estimation.learning import by_fold
from clear_ray.estimation.likeness import Likeness
from clear_ray.rounds.attempt_offers import AttemptOffers
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers
from clear_ray.rounds.offers import BatchOffers, Offers
from clear_ray.sweep.recording import Recording, read_recording
from clear_ray.sweep.replayed import Replayed, SampledAnswers, replay_run

Array = NDArray[np.float64]
FOLDS = 5
CEILINGS = 160
GRID_POINTS = 48


@dataclass(frozen=True, eq=False)
class Drawn:
    """One order of the recorded answers, and of the queries."""

    answers: SampledAnswers
    order: NDArray[np.int64]
    sample_NS: NDArray[np.int64]
    tie_break_N: NDArray[np.uint64]


def draw(recording: Recording, seed: int) -> Drawn:
    """Draw one order."""
    rng = np.random.default_rng(seed)
    queries, samples = recording.length_NS.shape
    sample_NS, rows = np.argsort(rng.random((queries, samples)), axis=1), np.arange(queries)[:, None]
    columns = (recording.length_NS, recording.is_stopped_NS, recording.is_right_NS)
    answers = SampledAnswers(*(column[rows, sample_NS] for column in columns))
    return Drawn(answers, rng.permutation(queries), sample_NS, rng.permutation(queries).astype(np.uint64))


# Fixed settings, and our readings of published rules.


def fixed_settings(recording: Recording, drawn: Drawn, budgets: Sequence[float], most: int) -> tuple[Array, Array]:
    """Return what every setting solves: n answers under one ceiling each, and one ceiling with retries.

    Returns:
        Share solved, shapes (budgets, ceilings, most) and (budgets, ceilings); 0 where a setting spends more.
    """
    length, is_right = drawn.answers.length_NS[drawn.order, :most], drawn.answers.is_right_NS[drawn.order, :most]
    queries, samples = length.shape
    ceilings = ceilings_of(recording)
    fixed, retry = np.zeros((len(budgets), len(ceilings), samples)), np.zeros((len(budgets), len(ceilings)))
    for place, ceiling in enumerate(ceilings):
        solves, spend = is_right & (length <= ceiling), np.minimum(length, ceiling)
        solved_by = np.logical_or.accumulate(solves, axis=1)
        spent_by, share_by = np.cumsum(spend.sum(axis=0)), solved_by.mean(axis=0)
        is_due = np.ones_like(solves)
        is_due[:, 1:] = ~solved_by[:, :-1]
        spent = np.cumsum((spend * is_due).T.ravel())
        solved = np.cumsum((solves & is_due).T.ravel())
        for row, average in enumerate(budgets):
            fixed[row, place] = np.where(spent_by <= average * queries, share_by, 0.0)
            reach = int(np.searchsorted(spent, average * queries, side="right"))
            retry[row, place] = solved[reach - 1] / queries if reach else 0.0
    return fixed, retry


def ceilings_of(recording: Recording) -> NDArray[np.int64]:
    """Return the ceilings that fixed settings try, the largest last."""
    return np.unique(np.rint(np.geomspace(1, recording.cap_tokens, CEILINGS)).astype(np.int64))


def blend_asc(drawn: Drawn, vote_NS: NDArray[np.int64], budgets: Sequence[float], most: int) -> Array:
    """Return what our reading of Blend-ASC solves at each budget.

    After one whole answer to every query the next one goes to the query whose vote is the least certain. Certainty blends
    two ranks: the posterior chance that the runner-up is the more frequent answer, and the evidence of a sequential test of
    the two at one half; the weight moves from the first to the second as the budget is used up.
    """
    length, is_right = drawn.answers.length_NS[:, :most], drawn.answers.is_right_NS[:, :most]
    queries, samples = length.shape
    found = []
    for average in budgets:
        left, asked_N = average * queries, np.zeros(queries, np.int64)
        for query in drawn.order:
            if length[query, 0] > left:
                break
            left -= length[query, 0]
            asked_N[query] = 1
        doubt_N, weak_N = np.ones(queries), np.zeros(queries)
        for query in np.flatnonzero(asked_N):
            doubt_N[query], weak_N[query] = _vote_doubt(vote_NS[query, :1])
        is_open_N = (asked_N > 0) & (asked_N < samples)
        while is_open_N.any():
            share = 1.0 - left / (average * queries)
            rank_N = (1.0 - share) * _ranks(doubt_N) + share * _ranks(weak_N) + drawn.tie_break_N / (1e6 * queries)
            query = int(np.where(is_open_N, rank_N, -np.inf).argmax())
            spend = int(length[query, asked_N[query]])
            if spend > left:
                is_open_N[query] = False
                continue
            left -= spend
            asked_N[query] += 1
            doubt_N[query], weak_N[query] = _vote_doubt(vote_NS[query, : asked_N[query]])
            is_open_N[query] = asked_N[query] < samples
        solved_N = [bool(is_right[query, : asked_N[query]].any()) for query in range(queries)]
        found.append(float(np.mean(solved_N)))
    return np.array(found)


def _ranks(values: Array) -> Array:
    return np.searchsorted(np.sort(values), values) / len(values)


def _vote_doubt(votes: NDArray[np.int64]) -> tuple[float, float]:
    """Return the chance that the runner-up is really ahead, and minus the log of the evidence that it is not."""
    counts = np.sort(np.unique(votes, return_counts=True)[1])[::-1]
    first, second = int(counts[0]), int(counts[1]) if len(counts) > 1 else 0
    doubt = float(betainc(first + 1, second + 1, 0.5))
    evidence = float(betaln(first + 1, second + 1) + (first + second) * np.log(2.0))
    return doubt, -evidence


# Curves.


def curves_from_head(recording: Recording, *, train: Recording | None, seed: int = 0) -> Curves:
    """Return the curves of a head that has seen no answer to the query it is asked about."""
    taught = train or recording
    sets = ("hidden", "text") if taught.features.hidden_last_ND.shape[1] else ("text", "ngrams")
    known, tasks = (taught.features, taught.rollouts.prompts), taught.task_N.tolist()
    coordinates = fit_coordinates(*known, sets=sets, tasks=tasks)
    x_NP = coordinates(*known, tasks)
    tokens_K = token_grid(recording.cap_tokens, points=GRID_POINTS)
    query, sample = (
        column.ravel() for column in np.meshgrid(np.arange(len(taught)), np.arange(taught.samples), indexing="ij")
    )
    is_ended = taught.is_stopped_NS[query, sample]
    right = np.where(is_ended, taught.is_right_NS[query, sample].astype(np.float64), np.nan)
    observed = Observed(query, taught.length_NS[query, sample], is_ended, right)
    if train is not None:
        x_eval = coordinates(recording.features, recording.rollouts.prompts, recording.task_N.tolist())
        found = fit_factors(x_NP, observed, tokens_K=tokens_K).incidence(x_eval, tokens_K=tokens_K)
    else:
        fold_N = np.random.default_rng(seed).permutation(np.arange(len(recording)) % FOLDS)
        fits = [fit_factors(x_NP, observed.take(fold_N[query] != fold), tokens_K=tokens_K) for fold in range(FOLDS)]
        found = by_fold(tuple(fits), x_NP, fold_N, tokens_K=tokens_K)
    return curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=tokens_K)


def curves_from_labels(recording: Recording) -> Curves:
    """Return one curve for each task label, from all answers that bear it."""
    tokens_K = token_grid(recording.cap_tokens, points=GRID_POINTS)
    own = recording.empirical_curves(tokens_K, np.arange(recording.samples))
    success_NK, survival_NK = own.success_NK.astype(np.float64), own.survival_NK.astype(np.float64)
    for label in np.unique(recording.task_N):
        rows = recording.task_N == label
        success_NK[rows], survival_NK[rows] = success_NK[rows].mean(axis=0), survival_NK[rows].mean(axis=0)
    return curves_from_incidence(success_NK, survival_NK=survival_NK, tokens_K=tokens_K)


# The law.


@dataclass(frozen=True, eq=False)
class Contest:
    """One recording, and what is believed of it."""

    recording: Recording
    curves: Curves
    attempts: int

    def play(self, name: str, average: float, drawn: Drawn, seed: int) -> Replayed:
        """Run one policy once."""
        queries, attempts = len(self.recording), 1 if name == "clear_ray_once" else self.attempts
        rounds = None
        if name == "clear_ray_learned":
            rounds = LEARNING_ROUNDS + AllocationConfig(objective="solved", attempts=attempts).most_rounds
        return replay_run(
            self._offers(name, average, drawn, seed),
            drawn.answers,
            budget_tokens=int(average * queries),
            allocation=AllocationConfig(objective="solved", attempts=attempts, max_rounds=rounds),
            rule=AttemptRule("solved", np.full(queries, attempts)),
        )

    def _offers(self, name: str, average: float, drawn: Drawn, seed: int) -> Offers:
        recording = self.recording
        one_N, cap_N = np.ones(len(recording)), np.full(len(recording), recording.cap_tokens)
        if name == "clear_ray_learned":
            has_hidden = recording.features.hidden_last_ND.shape[1] > 0
            known, tasks = (recording.features, recording.rollouts.prompts), recording.task_N.tolist()
            sets = (
                ("hidden", "text")
                if has_hidden
                else ("text", "ngrams")
                if any(recording.rollouts.prompts)
                else ("task",)
            )
            return LearningOffers(
                x_NP=fit_coordinates(*known, sets=sets, tasks=tasks)(*known, tasks),
                tokens_K=token_grid(recording.cap_tokens, points=GRID_POINTS),
                weight_N=one_N,
                max_tokens_N=cap_N,
                tie_break_N=drawn.tie_break_N,
                cost_N=one_N,
                budget_tokens=int(average * len(recording)),
                seed=seed,
                asks_again=True,
            )
        curves, likeness = self.curves, None
        if name == "oracle":
            curves = recording.empirical_curves(self.curves.tokens_K, np.arange(recording.samples))
            likeness = Likeness(rho=0.0, trust=np.inf)
        batch = Batch(curves, one_N, cap_N, drawn.tie_break_N, one_N)
        return BatchOffers(batch) if name == "clear_ray_once" else AttemptOffers(batch, likeness)


def votes_of(path: str, recording: Recording, model: str | None) -> NDArray[np.int64]:
    """Return a number for each answer, the same for answers that say the same; all wrong ones differ if none is recorded."""
    queries, samples = recording.length_NS.shape
    table = pq.read_table(path)
    if "extracted" not in table.column_names:
        alone_NS = np.arange(1, queries * samples + 1).reshape(queries, samples)
        return np.where(recording.is_right_NS, 0, alone_NS)
    if model is not None:
        table = table.filter(np.array(table["model"].to_pylist()) == model)
    table = table.sort_by([("query_id", "ascending"), ("sample", "ascending")])
    said = np.array([str(answer).strip().lower() for answer in table["extracted"].to_pylist()])
    return np.unique(said, return_inverse=True)[1].reshape(queries, samples)


def compare(
    contest: Contest, budgets: Sequence[float], draws: int, vote_NS: NDArray[np.int64], policies: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row for each policy and budget."""
    recording = contest.recording
    drawn = [draw(recording, seed) for seed in range(draws)]
    fixed, retry = zip(*(fixed_settings(recording, one, budgets, contest.attempts) for one in drawn), strict=True)
    last = len(ceilings_of(recording)) - 1
    rows_N = np.arange(len(recording))[:, None]
    shares: dict[str, Array] = {
        "fixed": best_setting(np.array(fixed).reshape(draws, len(budgets), -1)),
        "retry": best_setting(np.array(retry)),
        "reset_and_discard": np.array(retry)[:, :, last],
        "blend_asc": np.array(
            [blend_asc(one, vote_NS[rows_N, one.sample_NS], budgets, contest.attempts) for one in drawn]
        ),
    }
    rows = [
        _row(name, average, share_DB[:, at]) for name, share_DB in shares.items() for at, average in enumerate(budgets)
    ]
    for name in policies:
        for average in budgets:
            played = [contest.play(name, average, one, seed) for seed, one in enumerate(drawn)]
            share_D = np.array([run.is_right_N.mean() for run in played])
            facts = {
                "spent": round(float(np.mean([run.spent_tokens_N.mean() for run in played])), 2),
                "rounds": round(float(np.mean([run.clearings for run in played])), 1),
                "attempts": round(float(np.mean([run.attempts_N.mean() for run in played])), 3),
            }
            rows.append(_row(name, average, share_D) | facts)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def best_setting(share_DBC: Array) -> Array:
    """Return the shares, draw by draw, of the setting that is best over all of them at each budget."""
    best_B = share_DBC.mean(axis=0).argmax(axis=1)
    return share_DBC[:, np.arange(len(best_B)), best_B]


def _row(policy: str, average: float, share_D: Array) -> dict[str, Any]:
    error = float(share_D.std(ddof=1) / np.sqrt(len(share_D))) if len(share_D) > 1 else 0.0
    return {
        "figure": "attempts",
        "policy": policy,
        "average_budget": round(float(average), 2),
        "solved": round(float(share_D.mean()), 4),
        "error": round(error, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", required=True)
    parser.add_argument("--features")
    parser.add_argument("--train")
    parser.add_argument("--model")
    parser.add_argument("--budgets", required=True)
    parser.add_argument("--shares", action="store_true")
    parser.add_argument("--attempts", type=int, default=8)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--policies", default="clear_ray_once,clear_ray,clear_ray_learned,oracle")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    recording = read_recording(arguments.rollouts, arguments.features, model=arguments.model)
    train = None
    if arguments.train:
        folder = Path(arguments.train)
        features = folder / "features.parquet"
        known = str(features) if arguments.features and features.exists() else None
        train = read_recording(str(folder / "rollouts.parquet"), known)
    curves = curves_from_head(recording, train=train) if arguments.features or train else curves_from_labels(recording)
    budgets = [float(word) for word in arguments.budgets.split(",")]
    if arguments.shares:
        budgets = [share * float(recording.length_NS.mean()) for share in budgets]
    contest = Contest(recording, curves, min(arguments.attempts, recording.samples))
    votes = votes_of(arguments.rollouts, recording, arguments.model)
    rows = compare(contest, budgets, arguments.draws, votes, arguments.policies.split(","))
    facts = {
        "rollouts": Path(arguments.rollouts).name,
        "model": arguments.model,
        "queries": len(recording),
        "most_attempts": contest.attempts,
        "draws": arguments.draws,
        "estimate": "labels" if not (arguments.features or train) else "other rollouts" if train else "other folds",
    }
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    name = "-".join(
        ["attempts", Path(arguments.rollouts).stem, *([arguments.model.split("@")[0]] if arguments.model else [])]
    )
    lines = [json.dumps(row | facts) for row in rows]
    (output / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    for row in rows:
        print(f"{row['policy']:20s}{row['average_budget']:10.1f}{row['solved']:8.3f} +- {row['error']:.3f}")


if __name__ == "__main__":
    main()
