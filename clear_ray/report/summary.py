"""What a run comes down to: `RunReport`, which is `summary.json` and what every other view of a run is made of."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Base of the parts of a report: frozen, JSON in and out without loss."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RoundReport(Part):
    """One clearing of the price and what its grants bought."""

    number: int
    """From 1."""
    shadow_price: float
    """Expected correct answers per further token at this clearing; 0 if the budget did not bind."""
    available_tokens: int
    """Tokens that were left to be allocated."""
    fresh: int
    """Queries granted for the first time."""
    continued: int
    """Queries that went on from where an earlier grant had cut them off."""
    again: int = 0
    """Queries that were asked once more."""
    granted_tokens: int
    """Sum of the ceilings granted."""
    expected_tokens: float
    """Tokens these grants were expected to spend."""
    expected_utility: float
    """Correct answers these grants were expected to add."""
    dual_bound: float
    """No allocation of these tokens can be expected to add more than this."""
    gap: float
    """dual_bound - expected_utility - later_utility: the certificate."""
    later_utility: float = 0.0
    """Correct answers expected of attempts that may follow these grants, which the price counts on."""
    spent_tokens: int
    """Tokens these grants spent."""
    finished: int
    """Queries that ended by themselves in this round."""
    correct: float | None
    """Correct answers among them; None without gold answers."""
    seconds: float = 0.0
    """Wall time of the round; 0 where no clock ran."""
    is_service: bool = False
    """Whether this was the minimum service: direct answers to queries that no clearing had funded."""
    known_queries: int | None = None
    """Queries that had been read by then and shared their part of the budget; None if all had."""
    over_queries: int | None = None
    """Queries that the price was cleared over: of a very large batch those that were read last; None if all that had been."""

    @property
    def part_queries(self) -> int | None:
        """Queries that the price was cleared over; None if all of the batch."""
        return self.known_queries if self.over_queries is None else self.over_queries

    @property
    def grants_all(self) -> bool:
        """Whether the certificate is of what was granted, and not of more that was priced with it."""
        missing = self.dual_bound - self.expected_utility - self.later_utility - self.gap
        return missing <= 1e-6 * (1.0 + abs(self.dual_bound))


class TaskReport(Part):
    """One kind of query."""

    task: str
    """Name in the task column, or `all`."""
    queries: int
    """How many of the batch."""
    funded: int
    """How many of them were granted tokens."""
    spent_tokens: int
    """What they spent."""
    expected_utility: float
    """Correct answers expected at their grants."""
    correct: float | None
    """Correct answers found; None without gold answers."""


class FailureReport(Part):
    """Queries that failed of the same."""

    reason: str
    """What the input, the chat template, the engine or the scorer said."""
    queries: int
    """How many."""


class BudgetPoint(Part):
    """What another budget was expected to buy, by the same estimates."""

    budget_tokens: int
    """The budget."""
    shadow_price: float
    """Its price."""
    utility: float
    """Correct answers expected from the priced allocation."""
    uniform_utility: float
    """Correct answers expected from equal ceilings that spend the same."""
    funded: int
    """Queries granted tokens."""


class LearningReport(Part):
    """What a run learned from its own answers."""

    label: str
    """What said that an answer is right: a scorer's `verdict`, `agreement` of answers, or that it `ended` by itself."""
    features: tuple[str, ...]
    """What was read of the prompts."""
    left_out: str = ""
    """Why the run learned nothing after all, and went by the uninformed law; empty if it did learn."""
    answers: int = 0
    """Answers that taught, cut ones too; at most 10,000 of them are fitted."""
    evidence_nats: float | None = None
    """How much better answers are predicted with the prompts than without, each by a fit that left it out; nats, in all."""
    nats_of_sets: dict[str, float] = {}
    """The same by each of several feature sets alone, nats an answer, of 400 answers at most; about 0 where it tells none."""
    learned_share: float = 0.0
    """Share of the learned curves in what was believed in the end; what is left is the uninformed law's."""
    pooled_share: float = 0.0
    """Share of the curve of all answers together: by it queries are alike, and some may be given up for others."""
    given_share: float = 0.0
    """Share of the curves of a head that was given, or of what earlier runs have learned."""
    earlier_answers: int = 0
    """Answers of earlier runs that it began with, from a store."""
    store_notes: tuple[str, ...] = ()
    """What of the store was passed over, or could not be kept there, and why; a line each."""


class AttemptsReport(Part):
    """What came of asking queries again."""

    objective: str
    """What the answers were for: `solved`, `best_of_n`, `vote`, `groups`; `correct` where some were compared to learn."""
    most: int
    """Most attempts of one query."""
    attempts: int
    """Attempts in all."""
    solved_by_attempt: tuple[int, ...]
    """Queries solved by their first attempt, by their second, and so on; nothing where votes are counted."""
    tokens_per_solved: float | None
    """Tokens of all answers for each solved query; None if none was solved."""
    one_more_solves: float
    """Queries that one further attempt at each unsolved one would be expected to solve, weighted; where votes are counted,
    what one further answer to each query would be expected to make right; of groups, how many it would mix. 0 where answers
    were compared to learn from."""
    one_more_tokens: float
    """What it would be expected to spend: tokens of cost 1, or the unit of the budget."""
    agreed: int | None = None
    """Queries of which two or more answers give the result that was kept; None where votes are not counted."""
    mixed: int | None = None
    """Queries that have a right answer and a wrong one; None where that was not asked for."""

    @property
    def solved(self) -> int:
        """Queries with an answer of full score."""
        return sum(self.solved_by_attempt)


class EngineReport(Part):
    """What one of several engines came to."""

    name: str
    """Its name in the configuration."""
    model: str
    """Name of its model."""
    head: str
    """Its head; `learn` if it was learned in the run."""
    calls: int
    """Grants that it was asked for."""
    generated_tokens: int
    """What it generated."""
    spent_tokens: int
    """What its answers took, in the unit of the budget; without what was lost."""
    answers: int
    """Queries whose completion is its answer."""
    correct: float | None
    """Correct ones among them; None without gold answers."""
    worker_tokens_per_second: float | None = None
    """What one of its workers generated while it was busy; None if it was not for long enough to tell."""


class RunReport(Part):
    """The report of one run; `summary.json` in its folder."""

    run_dir: str
    """The run folder."""
    model: str
    """Name of the model."""
    head: str
    """Name of the estimate: `learn`, `prior`, or the kind of the fitted head."""
    policy: str
    """`clear_ray` or `uniform`."""
    unit: str = "tokens"
    """What budget and spending are counted in: `tokens`, or billionths of this currency or of `gpu-seconds`."""
    budget_tokens: int
    """What the run was allowed to generate, in tokens of cost 1; of a run that has prices, to spend, in billionths."""
    spent_tokens: int
    """What was charged for what it generated, wasted tokens included; never above the budget."""
    generated_tokens: int
    """Tokens that were charged, whatever each cost; the same as `spent_tokens` where every cost is 1."""
    wasted_tokens: int
    """Part of it whose work was lost: workers that died, answers never written."""
    prefill_tokens: int
    """Prompt tokens read by the probe; charged to the budget if the run has prices and they are paid for, else beside it."""
    asked_prompt_tokens: int = 0
    """What all grants had to begin with: their prompts, and the answers so far that they went on with."""
    spared_prompt_tokens: int = 0
    """Of these, tokens that were not read for the grant: what had been read before was at hand."""
    probe_tokens: int = 0
    """What was charged for the probe, in the unit of the budget; part of `spent_tokens`."""
    shadow_price: float
    """What one further token was worth, in expected correct answers: the price of the main clearing; if the first price was
    cleared over a part of the queries, that of the whole budget, had all of them been priced together, by what their answers
    are expected to spend, as in `budget_curve`."""
    queries: int
    """Queries in the batch; completed + abandoned + failed."""
    completed: int
    """Queries that were answered, by themselves or up to their last grant."""
    stopped: int
    """Completed queries that ended by themselves."""
    truncated: int
    """Completed queries that were cut off."""
    abandoned: int
    """Queries that were granted nothing."""
    failed: int
    """Queries that could not be generated; each has its error."""
    unasked: int = 0
    """Failed queries among them that no price was asked for: rows that are none, prompts that cannot be read."""
    scored: int
    """Queries with a gold answer."""
    correct: float | None
    """Correct answers among them; None without gold answers or scorer."""
    scorer: str | None = None
    """What scored them; of a batch that left the choice, with the golds it was chosen by."""
    verdicts: dict[str, int] = {}
    """How often each reason was given for a score: `right`, `wrong`, `no answer found`, `cut off`, `time-out`, ..."""
    warnings: tuple[str, ...] = ()
    """What is amiss with the scores: golds that the scorer cannot read, or not one right answer, with the likeliest cause."""
    expected_utility: float
    """Correct answers expected at the first clearing; if the run learned, from the whole budget by its last estimates; if the
    first price was cleared over a part of the queries, from the whole budget, had all of them been priced together."""
    uniform_max_tokens: int
    """The equal ceiling that was expected to spend the same tokens."""
    uniform_expected_utility: float
    """Correct answers expected from that ceiling."""
    rounds: tuple[RoundReport, ...]
    """Each clearing, in order."""
    tasks: tuple[TaskReport, ...]
    """By kind of query, most queries first."""
    budget_curve: tuple[BudgetPoint, ...]
    """What other budgets were expected to buy."""
    learning: LearningReport | None = None
    """What the run learned from its own answers; None if that was not asked of it."""
    attempts: AttemptsReport | None = None
    """What came of asking again; None if every query was asked once."""
    engines: tuple[EngineReport, ...] = ()
    """What each of several engines came to, in their order; empty of a run with one."""
    workers: int | None = None
    """Most engines that were up at once."""
    worker_tokens_per_second: float | None = None
    """What one of them generated while it was busy; None if the run was too short to tell, or there are several engines."""
    seconds: float
    """Wall time of the whole run."""
    stopped_early: str
    """Why the run ended before its queries were done; empty if it did not."""
    notices: tuple[str, ...] = ()
    """How the input was read, what of it is ignored, lowered or failed, and what is to be said of the model; a line each."""
    failures: tuple[FailureReport, ...] = ()
    """Why queries failed, the commonest reason first; the least common ones are left out."""

    @property
    def ran_short(self) -> bool:
        """Whether queries were left for want of budget though none had a price: it ended before any were told apart.

        What is left then would not pay for one more answer as they were. Where more is left, it was not the budget that ended
        the run, but the number of its clearings.
        """
        is_unpriced = self.shadow_price == 0 and self.abandoned > 0 and not self.stopped_early
        is_spent = self.slack_tokens * max(self.completed, 1) <= self.spent_tokens
        return is_unpriced and is_spent and self.policy == "clear_ray"

    @property
    def slack_tokens(self) -> int:
        """Tokens of the budget that were not spent."""
        return self.budget_tokens - self.spent_tokens

    @property
    def funded(self) -> int:
        """Queries that were granted tokens by a price."""
        return self.queries - self.abandoned - self.served - self.unasked

    @property
    def served(self) -> int:
        """Queries that were not worth the price and got the minimum service."""
        return sum(row.fresh for row in self.rounds if row.is_service)

    @property
    def has_learned(self) -> bool:
        """Whether the run went by what its own answers taught."""
        return self.learning is not None and not self.learning.left_out

    @property
    def main_round(self) -> RoundReport | None:
        """See `main_round`."""
        return main_round(self.rounds, has_learned=self.has_learned)

    @property
    def is_streamed(self) -> bool:
        """Whether the first price was cleared while prompts were being read."""
        return is_streamed(self.rounds)

    def known_in(self, row: RoundReport) -> int:
        """Return how many queries had been read when a round was cleared."""
        return self.queries if row.known_queries is None else row.known_queries

    @property
    def accuracy(self) -> float | None:
        """Share of the scored queries that were answered correctly; None if nothing was scored."""
        return self.correct / self.scored if self.scored and self.correct is not None else None


def main_round(rounds: Sequence[RoundReport], *, has_learned: bool) -> RoundReport | None:
    """Return the round that says what the budget was worth: the first; where a run learned, the one that granted most.

    Its stages grant a part of what they price, with the certificate of all of that: one that granted all says more. Likewise
    where the first price was cleared over a part of the queries.
    """
    if not has_learned and not is_streamed(rounds):
        return rounds[0] if rounds else None
    priced = [row for row in rounds if not row.is_service]
    whole = [row for row in priced if row.number > 1 and row.grants_all]
    return max(whole or priced, key=lambda row: row.granted_tokens, default=None)


def is_streamed(rounds: Sequence[RoundReport]) -> bool:
    """Return whether the first price was cleared while prompts were being read."""
    return bool(rounds) and rounds[0].known_queries is not None


class ProgressSnapshot(Part):
    """What a run looks like at one moment; what the live display shows."""

    stage: str
    """`start`, `read`, `probe` (`estimate` where no model reads prompts), `price`, `generate` or `write`."""
    round: int
    """Clearing under way, from 1; 0 before the first."""
    queries: int
    """Queries in the batch; 0 while it is still being read."""
    probed: int
    """Queries with an estimate."""
    granted: int
    """Queries granted tokens so far."""
    ended: int
    """Queries whose last grant has ended."""
    budget_tokens: int
    """The budget."""
    spent_tokens: int
    """Tokens charged so far."""
    reserved_tokens: int
    """Tokens held by queries that are running."""
    shadow_price: float | None
    """Price of the current clearing."""
    correct: float | None
    """Correct answers so far; None without gold answers."""
    scored: int
    """Ended queries that have a gold answer."""
    seconds: float
    """Since the run began."""
    recent: tuple[str, ...]
    """The last few queries to end, each as one short line without prompt or answer."""
    label: str = ""
    """What the run learns from, see `LearningReport`; empty if it does not learn."""
    unit: str = "tokens"
    """What budget and spending are counted in, see `RunReport`."""
    waiting_for: str = ""
    """What has to be there before anything else goes on, such as `starting Ray`; empty once it is."""
    loaded: float | None = None
    """Share of the model that has been loaded while that is waited for; None where it is not known."""
    begun: int = 0
    """Answers begun up to the last clearing, where queries may be asked again; 0 otherwise."""
    again: int = 0
    """Of these, answers of queries that had one before."""
    solved_by_attempt: tuple[int, ...] = ()
    """Queries solved by their first attempt, by their second, and so on, up to the last clearing; nothing where no scorer
    tells."""
    warning: str = ""
    """What should be looked at before more is spent: not one of the first scored answers was right."""
    wasted_tokens: int = 0
    """Part of what was charged whose work was lost."""
    refunded_tokens: int = 0
    """Tokens that were reserved and came back unused."""
    running: int = 0
    """Queries that hold tokens now."""
