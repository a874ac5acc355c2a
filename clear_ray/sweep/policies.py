"""Every policy of docs/method.md, section 6 on recorded rollouts: how many tokens each query gets, and what came of it.

Two kinds. Policies that could run are run: round by round through `Rounds` and the ledger (`replayed`), once for each
recorded sample. Yardsticks that know the recording are read off it: `uniform`, the equal ceiling that spends exactly the
budget on these very rollouts (the best that uniform caps can do, with nothing left over), and `oracle`, which prices each
query's own empirical curve.

Shapes: N queries, S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clear_ray.allocation import ShiftedErlang, ShiftedSurge, Tabulated, allocate, proportional, smallest_threshold
from clear_ray.allocation.utility import Utility
from clear_ray.config.allocation import AllocationConfig
from clear_ray.estimation.curves import Curves, token_grid
from clear_ray.estimation.factors import Label
from clear_ray.rounds.agreement import Agreement
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.clearing import Clearing, Solve, grants_of, nothing_to_grant
from clear_ray.rounds.history import AttemptRule
from clear_ray.rounds.learning_offers import LEARNING_ROUNDS, LearningOffers
from clear_ray.rounds.offers import BatchOffers, Offers
from clear_ray.rounds.states import QueryStates
from clear_ray.sweep.recording import Recording
from clear_ray.sweep.replayed import Answers, Dispatched, SampledAnswers, replay_run

RUN_POLICIES = (
    "clear_ray", "paper", "uniform_refunds", "proportional", "smallest_threshold", "task_prior", "uncertainty",
    "split_half_oracle",
)  # fmt: skip
LEARNING: Mapping[str, Label] = {"learning": "verdict", "learning_without_gold": "ended"}
"""Policies that teach themselves, and what tells them that an answer is right."""
YARDSTICKS = ("uniform", "oracle")
POLICIES = (*RUN_POLICIES, *LEARNING, *YARDSTICKS)
UNTAUGHT = ("uniform_refunds", *LEARNING, *YARDSTICKS)
"""Policies that need nothing fitted beforehand."""
NEEDED: Mapping[str, tuple[str, ...]] = {"paper": ("regressed_threshold",), "task_prior": ("task_prior",)}
"""Estimates that a policy reads, beside the default head's, whose token grid all share."""

MakeOffers = Callable[[NDArray[np.uint64]], Offers]
"""Makes what a policy offers from the order in which ties are broken."""

_PER_NAT = 1_000.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one policy did with one budget.

    Attributes:
        right_N: Chance of a right answer of each query, over samples and seeds.
        spent_tokens_N: Tokens generated for it, likewise.
        rounds: Mean number of clearings; 1 for what is read off the recording.
    """

    right_N: NDArray[np.float64]
    spent_tokens_N: NDArray[np.float64]
    rounds: float


@dataclass(frozen=True, eq=False)
class Contest:
    """A recording, and the estimates that policies may use; none of them has seen the query it is about.

    Attributes:
        recording: The rollouts to replay.
        curves: Estimates by name; see `NEEDED`.
        seed: Seed of the order in which ties are broken.
        dispatched: How grants travel.
        x_NP: Coordinates of the queries, for policies that teach themselves.
        fold_N: Where several rows are the same query asked again: its fold; see `learn`.
        vote_NS: The result of each answer as a number above 0, 0 for none, where `learning_without_gold` compares them.
    """

    recording: Recording
    curves: Mapping[str, Curves]
    seed: int = 0
    dispatched: Dispatched = field(default_factory=Dispatched)
    x_NP: NDArray[np.float64] | None = None
    fold_N: NDArray[np.int64] | None = None
    vote_NS: NDArray[np.int64] | None = None

    def play(self, policy: str, average_tokens: float) -> Outcome:
        """Return what a policy does with a budget of `average_tokens` a query."""
        budget_tokens = int(average_tokens * len(self.recording))
        if policy == "uniform":
            return equal_ceilings(self.recording, average_tokens)
        if policy == "oracle":
            return _in_sample_oracle(self.recording, self.curves["competing_risks"].tokens_K, budget_tokens)
        if policy == "split_half_oracle":
            return self._split_half(budget_tokens)
        if policy in LEARNING:
            return self._learning(LEARNING[policy], budget_tokens)
        cap_N = self.cap_N
        rules: dict[str, MakeOffers] = {
            "clear_ray": lambda key: BatchOffers(self.batch("competing_risks", key)),
            "task_prior": lambda key: BatchOffers(self.batch("task_prior", key)),
            "uniform_refunds": lambda key: BatchOffers(self.batch("competing_risks", key), policy="uniform"),
            "paper": lambda key: RuleOffers(allocate, self.surge, cap_N, key),
            "smallest_threshold": lambda key: RuleOffers(smallest_threshold, self._erlang, cap_N, key),
            "proportional": lambda key: RuleOffers(proportional, self._lengths, cap_N, key),
            "uncertainty": lambda key: RuleOffers(proportional, self._entropies, cap_N, key),
        }
        return self.run(rules[policy], budget_tokens)

    def _learning(self, label: Label, budget_tokens: int) -> Outcome:
        """Run each sample as a batch of its own, with choices of its own; further answers are those of the next samples."""
        compares = label == "ended" and self.vote_NS is not None
        agreement = Agreement() if compares else None
        rule = None if agreement is None else agreement.rule(np.ones(len(self.recording), bool))

        def offers(sample: int, tie_break_N: NDArray[np.uint64]) -> LearningOffers:
            one_N = np.ones(len(self.recording))
            return LearningOffers(
                x_NP=np.zeros((len(one_N), 0)) if self.x_NP is None else self.x_NP,
                tokens_K=token_grid(self.recording.cap_tokens),
                weight_N=one_N,
                max_tokens_N=self.cap_N,
                tie_break_N=tie_break_N,
                cost_N=one_N,
                budget_tokens=budget_tokens,
                label="agreement" if compares else label,
                fold_N=self.fold_N,
                seed=self.seed * self.recording.samples + sample,
                agreement=agreement,
            )

        samples = range(self.recording.samples)
        rounds = AllocationConfig(max_rounds=LEARNING_ROUNDS)
        return mean_outcome(
            [self.run(partial(offers, sample), budget_tokens, np.array([sample]), rounds, rule) for sample in samples]
        )

    def run(
        self,
        policy: MakeOffers,
        budget_tokens: int,
        samples: NDArray[np.int64] | None = None,
        allocation: AllocationConfig | None = None,
        rule: AttemptRule | None = None,
    ) -> Outcome:
        """Return the mean over samples of whole runs.

        Args:
            policy: Makes the offers from the order in which ties are broken.
            budget_tokens: Budget of each run.
            samples: Which samples to replay; all if not given.
            allocation: When rounds end, and whether there is a minimum service; as in a run if not given.
            rule: What ends a query; its first answer if not given.
        """
        recording = self.recording
        tie_break_N = np.random.default_rng(self.seed).permutation(len(recording)).astype(np.uint64)
        offers = policy(tie_break_N)
        played = [
            replay_run(
                offers,
                self._answers(int(sample)),
                budget_tokens=budget_tokens,
                allocation=allocation,
                dispatched=self.dispatched,
                rule=rule,
            )
            for sample in (range(recording.samples) if samples is None else samples)
        ]
        return Outcome(
            right_N=np.mean([run.is_right_N for run in played], axis=0),
            spent_tokens_N=np.mean([run.spent_tokens_N for run in played], axis=0),
            rounds=float(np.mean([run.clearings for run in played])),
        )

    def _answers(self, sample: int) -> Answers | SampledAnswers:
        """Return the answers of a run that draws this sample first."""
        r = self.recording
        if self.vote_NS is None:
            return Answers(r.length_NS[:, sample], r.is_stopped_NS[:, sample], r.is_right_NS[:, sample])
        turn = partial(np.roll, shift=-sample, axis=1)
        return SampledAnswers(turn(r.length_NS), turn(r.is_stopped_NS), turn(r.is_right_NS), turn(self.vote_NS))

    def batch(self, name: str, tie_break_N: NDArray[np.uint64]) -> Batch:
        """Return the batch that a run with these estimates would clear."""
        one_N = np.ones(len(self.recording))
        return Batch(self.curves[name], one_N, self.cap_N, tie_break_N, cost_N=one_N)

    @property
    def cap_N(self) -> NDArray[np.int64]:
        """Ceiling of each query: the recording knows no longer answer, shape (N,)."""
        return np.full(len(self.recording), self.recording.cap_tokens)

    def _split_half(self, budget_tokens: int) -> Outcome:
        """Run one half of the samples on the empirical curves of the other, both ways.

        The mean curve counts as one further sample: a few samples that all ended early do not prove that all will.
        """
        samples = np.arange(self.recording.samples)
        tokens_K = self.curves["competing_risks"].tokens_K
        halves = []
        for known, judged in ((samples[::2], samples[1::2]), (samples[1::2], samples[::2])):
            curves = self.recording.empirical_curves(tokens_K, known, pseudo_samples=1.0)
            contest = Contest(self.recording, {"known": curves}, self.seed, self.dispatched)
            halves.append(contest.run(lambda key, c=contest: BatchOffers(c.batch("known", key)), budget_tokens, judged))  # type: ignore[misc]
        return mean_outcome(halves)

    def surge(
        self, generated_tokens_M: NDArray[np.int64], index: NDArray[np.int64], room_M: NDArray[np.int64]
    ) -> Utility:
        """Return the paper's curves of what is left to generate: threshold predicted, alpha and beta shared."""
        curves = self.curves["regressed_threshold"].take(index)
        beta = curves.beta_N.astype(np.float64)
        return ShiftedSurge(
            np.maximum(curves.threshold_tokens_N - generated_tokens_M, 0.0),
            alpha=curves.solvability_N * beta * np.e,
            beta=beta,
            max_tokens_N=room_M,
        )

    def _erlang(
        self, generated_tokens_M: NDArray[np.int64], index: NDArray[np.int64], room_M: NDArray[np.int64]
    ) -> Utility:
        curves = self.curves["competing_risks"].take(index)
        threshold_M = np.maximum(curves.threshold_tokens_N - generated_tokens_M, 0.0)
        return ShiftedErlang(threshold_M, curves.solvability_N, curves.beta_N, max_tokens_N=room_M)

    def _lengths(
        self, generated_tokens_M: NDArray[np.int64], index: NDArray[np.int64], room_M: NDArray[np.int64]
    ) -> Utility:
        return ShiftedErlang(self.curves["competing_risks"].threshold_tokens_N[index], 0.5, 1.0, max_tokens_N=room_M)

    def _entropies(
        self, generated_tokens_M: NDArray[np.int64], index: NDArray[np.int64], room_M: NDArray[np.int64]
    ) -> Utility:
        """Return curves whose thresholds are the uncertainty of the first token, so that `proportional` follows it."""
        entropy_N = np.nan_to_num(self.recording.features.entropy_N.astype(np.float64), nan=0.0)
        return ShiftedErlang(_PER_NAT * np.maximum(entropy_N[index], 0.0), 0.5, 1.0, max_tokens_N=room_M)


def mean_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the mean of several outcomes on the same queries."""
    return Outcome(
        right_N=np.mean([outcome.right_N for outcome in outcomes], axis=0),
        spent_tokens_N=np.mean([outcome.spent_tokens_N for outcome in outcomes], axis=0),
        rounds=float(np.mean([outcome.rounds for outcome in outcomes])),
    )


@dataclass(frozen=True, slots=True, eq=False)
class RuleOffers:
    """To go on, by curves in closed form and any rule that shares tokens among them; see `rounds.offers.Offers`.

    Attributes:
        solve: Anything with the signature of `allocate`.
        utility_of: Function from tokens generated, index and tokens left under the ceiling of the open queries to their
            curves.
        max_tokens_N: Ceiling of each query.
        tie_break_N: Order in which ties are broken.
    """

    solve: Solve
    utility_of: Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], Utility]
    max_tokens_N: NDArray[np.int64]
    tie_break_N: NDArray[np.uint64]

    @property
    def cost_N(self) -> NDArray[np.float64]:
        """A token of each query costs one."""
        return np.ones(len(self.max_tokens_N))

    def clear(
        self,
        states: QueryStates,
        *,
        is_free_N: NDArray[np.bool_],
        available_tokens: int,
        owed_tokens_N: NDArray[np.int64],
    ) -> Clearing:
        """See `Offers`; no floors are heeded."""
        generated_N = states.answer_tokens_N
        index = np.flatnonzero(is_free_N & (generated_N < self.max_tokens_N))
        if not len(index):
            return nothing_to_grant(len(is_free_N))
        room_M = np.minimum(self.max_tokens_N[index] - generated_N[index], available_tokens)
        utility = self.utility_of(generated_N[index], index, room_M)
        allocation = self.solve(utility, budget_tokens=available_tokens, tie_break_N=self.tie_break_N[index])
        return grants_of(allocation, index, queries=len(is_free_N), available_tokens=available_tokens)

    def serve(self, owed_tokens_N: NDArray[np.int64], *, available_tokens: int, shadow_price: float) -> Clearing:
        """See `Offers`; such a rule serves nothing else."""
        return nothing_to_grant(len(owed_tokens_N))


def equal_ceilings(recording: Recording, average_tokens: float) -> Outcome:
    """Return what equal ceilings bring that spend exactly `average_tokens`: two neighbouring ones, mixed."""
    ceilings_T = recording.ceilings_T
    spent_NT = recording.spend_NST(ceilings_T).mean(axis=1)
    right_NT = recording.right_NST(ceilings_T).mean(axis=1)
    spent_T = spent_NT.mean(axis=0)
    high = min(int(np.searchsorted(spent_T, average_tokens)), len(ceilings_T) - 1)
    low = max(high - 1, 0)
    step = spent_T[high] - spent_T[low]
    share = float(np.clip((average_tokens - spent_T[low]) / step, 0.0, 1.0)) if step > 0 else 1.0
    return Outcome(
        right_N=(1 - share) * right_NT[:, low] + share * right_NT[:, high],
        spent_tokens_N=(1 - share) * spent_NT[:, low] + share * spent_NT[:, high],
        rounds=1.0,
    )


def _in_sample_oracle(recording: Recording, tokens_K: NDArray[np.int64], budget_tokens: int) -> Outcome:
    """Return what the price does that knows every query's empirical curve, spend counted as it will really be."""
    curves = recording.empirical_curves(tokens_K, np.arange(recording.samples))
    utility = Tabulated(tokens_K, curves.success_NK, recording.spend_NST(tokens_K).mean(axis=1))
    tokens_N = allocate(utility, budget_tokens=budget_tokens).tokens_N
    spent_NS = np.minimum(recording.length_NS, tokens_N[:, None])
    right_NS = recording.is_right_NS & (recording.length_NS <= tokens_N[:, None])
    return Outcome(right_NS.mean(axis=1), spent_NS.mean(axis=1), 1.0)
