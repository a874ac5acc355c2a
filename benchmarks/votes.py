"""What does a price over votes bring where nothing says which answer is right, against fixed numbers of votes?

Replays of recorded answers through the real law (`Rounds`, ledger, offers). A draw is an order of each query's recorded
answers, in which attempts draw them, and an order of the queries. The result that an answer gives is extracted as scorers do;
the recorded verdicts only judge the answers that are kept.

    python benchmarks/votes.py --rollouts FILE [--features FILE] --budgets 96,141,282,564 --output FILE
                               [--draws 10] [--attempts 8] [--by exact] [--policies A,B]

`fixed`: whole answers, the same number to every query in a random order while tokens last, the number that is best in
hindsight. `fixed_capped`: the number and the ceiling that are best in hindsight. `adaptive_consistency`: our reading of the
published rule: whole answers, in rounds over the queries whose most frequent result is not ahead yet with a posterior chance
of 0.95. `clear_ray` prices by a head fitted on the other folds (--features; its labels are verdicts), else by the task labels
alone; `clear_ray_once` is the same price for one answer each. `clear_ray_learned` knows nothing at the start and sees no
verdict at all: it learns from which answers agree.

Tokens saved are those that `fixed` would need for the same accuracy, by the line between its whole numbers, with a bootstrap
over queries. Writes one JSON file and prints it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from attempts import Drawn, ceilings_of, curves_from_head, curves_from_labels, draw
from numpy.typing import NDArray
from scipy.special import betainc

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.rounds.attempt_offers import AttemptOffers
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers
from clear_ray.rounds.offers import BatchOffers, Offers
from clear_ray.sweep.recording import Recording, read_recording
from clear_ray.sweep.replayed import Replayed, SampledAnswers, replay_run
from clear_ray.sweep.votes import read_votes
from clear_ray.tasks import KINDS

Array = NDArray[np.float64]
CERTAIN = 0.95
RESAMPLES = 2_000


def kept_of(vote_S: NDArray[np.int64], is_in_S: NDArray[np.bool_]) -> int:
    """Return the place of the first answer of the most frequent result among some; -1 if none gives any."""
    places = np.flatnonzero(is_in_S & (vote_S > 0))
    if not len(places):
        return -1
    counted = Counter(vote_S[places].tolist())
    most = max(counted.values())
    return int(next(place for place in places if counted[int(vote_S[place])] == most))


def right_after(answers: SampledAnswers, ceiling: int) -> NDArray[np.bool_]:
    """Return whether the most frequent result of the first 1, 2 ... answers under a ceiling is right, shape (N, S)."""
    assert answers.vote_NS is not None
    ends_NS = answers.is_stopped_NS & (answers.length_NS <= ceiling)
    found = np.zeros(ends_NS.shape, bool)
    for query, (vote_S, is_in_S, is_right_S) in enumerate(
        zip(answers.vote_NS, ends_NS, answers.is_right_NS, strict=True)
    ):
        for number in range(1, len(vote_S) + 1):
            kept = kept_of(vote_S[:number], is_in_S[:number])
            found[query, number - 1] = kept >= 0 and is_right_S[kept]
    return found


def fixed(answers: SampledAnswers, order: NDArray[np.int64], ceiling: int, budgets: list[float]) -> Array:
    """Return what 1, 2 ... answers to each query in turn get right while tokens last, shape (budgets, S)."""
    right_NS, spend_NS = right_after(answers, ceiling), np.minimum(answers.length_NS, ceiling)
    queries, samples = spend_NS.shape
    found = np.zeros((len(budgets), samples))
    for number in range(1, samples + 1):
        spent_N = np.cumsum(spend_NS[order, :number].sum(axis=1))
        for row, average in enumerate(budgets):
            reach = int(np.searchsorted(spent_N, average * queries, side="right"))
            found[row, number - 1] = right_NS[order[:reach], number - 1].sum() / queries
    return found


def adaptive_consistency(answers: SampledAnswers, order: NDArray[np.int64], average: float) -> float:
    """Return what our reading of Adaptive-Consistency gets right."""
    assert answers.vote_NS is not None
    left, asked_N, is_open_N = average * len(order), np.zeros(len(order), np.int64), np.ones(len(order), bool)
    for place in range(answers.length_NS.shape[1]):
        for query in order[is_open_N[order]]:
            left -= int(answers.length_NS[query, place])
            if left < 0:
                break
            asked_N[query] = place + 1
            counted = Counter(answers.vote_NS[query, : place + 1].tolist()).values()
            first, second = [*sorted(counted, reverse=True), 0][:2]
            is_open_N[query] = 1.0 - betainc(first + 1, second + 1, 0.5) < CERTAIN
        if left < 0:
            break
    right = 0
    for query, asked in enumerate(asked_N):
        kept = kept_of(answers.vote_NS[query, :asked], answers.is_stopped_NS[query, :asked])
        right += kept >= 0 and bool(answers.is_right_NS[query, kept])
    return right / len(order)


@dataclass(frozen=True, eq=False)
class Contest:
    """One recording, and what is believed of it.

    Attributes:
        recording: The recorded answers.
        curves: Curves of a head that was fitted beforehand.
        x_NP: Coordinates that a run learns by which has no head.
        most: Most answers to one query.
    """

    recording: Recording
    curves: Curves
    x_NP: Array
    most: int

    def play(self, policy: str, answers: SampledAnswers, one: Drawn, average: float, seed: int) -> Replayed:
        """Run the law once."""
        queries, budget, rounds = len(self.recording), int(average * len(self.recording)), None
        one_N, cap_N = np.ones(queries), np.full(queries, self.recording.cap_tokens)
        batch = Batch(self.curves, one_N, cap_N, one.tie_break_N, one_N)
        offers: Offers = AttemptOffers(batch)
        if policy == "clear_ray_once":
            return replay_run(BatchOffers(batch), answers, budget_tokens=budget)
        if policy == "clear_ray_learned":
            rounds = LEARNING_ROUNDS + AllocationConfig(objective="vote", attempts=self.most).most_rounds
            offers = LearningOffers(
                x_NP=self.x_NP,
                tokens_K=self.curves.tokens_K,
                weight_N=one_N,
                max_tokens_N=cap_N,
                tie_break_N=one.tie_break_N,
                cost_N=one_N,
                budget_tokens=budget,
                label="agreement",
                seed=seed,
                asks_again=True,
            )
        allocation = AllocationConfig(objective="vote", attempts=self.most, max_rounds=rounds)
        rule = AttemptRule("vote", np.full(queries, self.most))
        return replay_run(offers, answers, budget_tokens=budget, allocation=allocation, rule=rule)


def tokens_saved(
    ours_DN: NDArray[np.bool_], spent: float, right_DNS: NDArray[np.bool_], spend_DNS: Array, seed: int = 0
) -> dict[str, Any]:
    """Return how many times the tokens `fixed` needs for the same accuracy, with a 95 % bootstrap interval over queries."""
    queries, rng = ours_DN.shape[1], np.random.default_rng(seed)
    ours_N, right_NS, spend_NS = ours_DN.mean(axis=0), right_DNS.mean(axis=0), spend_DNS.mean(axis=0)

    def ratio(rows: NDArray[np.int64]) -> float:
        accuracy_S = np.concatenate([[0.0], np.maximum.accumulate(right_NS[rows].mean(axis=0))])
        tokens_S = np.concatenate([[0.0], np.cumsum(spend_NS[rows].mean(axis=0))])
        target = float(ours_N[rows].mean())
        at = int(np.searchsorted(accuracy_S, target))
        if at >= len(accuracy_S):  # more than all recorded answers give
            return float(tokens_S[-1] / spent)
        share = (target - accuracy_S[at - 1]) / max(accuracy_S[at] - accuracy_S[at - 1], 1e-12)
        return float((tokens_S[at - 1] + share * (tokens_S[at] - tokens_S[at - 1])) / spent)

    drawn = [ratio(rng.integers(0, queries, queries)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"times": round(ratio(np.arange(queries)), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def compare(
    contest: Contest, vote_NS: NDArray[np.int64], budgets: list[float], draws: int, policies: list[str]
) -> list[dict[str, Any]]:
    """Return one row for each policy and budget."""
    recording, most = contest.recording, contest.most
    rows_N, cap = np.arange(len(recording))[:, None], recording.cap_tokens
    drawn = [draw(recording, seed) for seed in range(draws)]
    answers = [replace(one.answers, vote_NS=vote_NS[rows_N, one.sample_NS]) for one in drawn]
    both = list(zip(drawn, answers, strict=True))
    ceilings = sorted({*ceilings_of(recording)[::16].tolist(), cap})
    by_DCBS = np.array(
        [[fixed(own, one.order, ceiling, budgets)[:, :most] for ceiling in ceilings] for one, own in both]
    )
    right_DNS = np.array([right_after(own, cap)[:, :most] for own in answers])
    spend_DNS = np.array([own.length_NS[:, :most] for own in answers], np.float64)
    rows = []
    for at, average in enumerate(budgets):
        whole_DS, any_DX = by_DCBS[:, -1, at], by_DCBS[:, :, at].reshape(draws, -1)
        shares = {
            "fixed": whole_DS[:, whole_DS.mean(axis=0).argmax()],
            "fixed_capped": any_DX[:, any_DX.mean(axis=0).argmax()],
            "adaptive_consistency": np.array([adaptive_consistency(own, one.order, average) for one, own in both]),
        }
        rows += [_row(name, average, share_D) for name, share_D in shares.items()]
        for name in policies:
            played = [contest.play(name, own, one, average, seed) for seed, (one, own) in enumerate(both)]
            right_DN = np.array([run.is_right_N for run in played])
            facts = {
                "spent": round(float(np.mean([run.spent_tokens_N.mean() for run in played])), 2),
                "answers": round(float(np.mean([run.attempts_N.mean() for run in played])), 3),
                "rounds": round(float(np.mean([run.clearings for run in played])), 1),
                "tokens_saved": tokens_saved(right_DN, average, right_DNS, spend_DNS),
            }
            rows.append(_row(name, average, right_DN.mean(axis=1)) | facts)
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _row(policy: str, average: float, share_D: Array) -> dict[str, Any]:
    error = float(share_D.std(ddof=1) / np.sqrt(len(share_D))) if len(share_D) > 1 else 0.0
    return {
        "policy": policy,
        "average_budget": average,
        "right": round(float(share_D.mean()), 4),
        "error": round(error, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", required=True)
    parser.add_argument("--features")
    parser.add_argument("--budgets", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--attempts", type=int, default=8)
    parser.add_argument("--policies", default="clear_ray_once,clear_ray,clear_ray_learned")
    parser.add_argument("--by", choices=KINDS, default="exact")
    arguments = parser.parse_args()
    recording = read_recording(arguments.rollouts, arguments.features)
    curves = curves_from_head(recording, train=None) if arguments.features else curves_from_labels(recording)
    votes = read_votes(arguments.rollouts, recording, arguments.by)
    budgets = [float(word) for word in arguments.budgets.split(",")]
    most = min(arguments.attempts, recording.samples)
    known = recording.features, recording.rollouts.prompts
    x_NP = fit_coordinates(*known, sets=("text", "ngrams"))(*known)
    contest = Contest(recording, curves, x_NP, most)
    found = {
        "figure": "votes",
        "rollouts": Path(arguments.rollouts).name,
        "queries": len(recording),
        "most_answers": most,
        "draws": arguments.draws,
        "estimate": "other folds" if arguments.features else "labels",
        "by": arguments.by,
        "rows": compare(contest, votes, budgets, arguments.draws, arguments.policies.split(",")),
    }
    Path(arguments.output).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
