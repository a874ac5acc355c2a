"""What a batch would come to before anything is generated: `PlanReport`, the result of `clear-ray plan`."""

from __future__ import annotations

from pydantic import Field

from clear_ray.report.summary import BudgetPoint, LearningReport, Part


class ShareBudget(Part):
    """What a share of the correct answers that ample tokens would give is expected to cost."""

    share: float = Field(gt=0, lt=1)
    """Which share."""
    budget_tokens: int = Field(ge=0)
    """The fewest tokens that are expected to be enough."""
    expected_utility: float
    """Correct answers expected from them."""
    most_utility: float
    """Correct answers expected from ample tokens."""


class GainReport(Part):
    """What the run is expected to answer over equal ceilings that spend the same."""

    low: float
    """Nine of ten such batches gain at least this many right answers and at most `high`; below 0 where they may lose."""
    expected: float
    """Right answers gained in the mean."""
    high: float
    """See `low`."""
    uniform: float
    """What equal ceilings are expected to answer right."""
    chance: float = Field(ge=0, le=1)
    """Chance of a gain worth the name: half an answer in a hundred queries, and a twentieth of what equal ceilings answer."""
    is_expected: bool
    """Whether the plan expects such a gain: from a chance of .45 on."""
    source: str
    """What that rests on: a `head`, the `store` of earlier runs, a `sample`, or `nothing` but what batches are like."""
    answers: int = 0
    """Answers of earlier runs, or sampled ones, that it rests on."""


class PlanReport(Part):
    """The priced batch: how many queries the budget would fund, at which price, and what that would spend."""

    head: str
    """Kind of the head that estimated; `learn` or `prior` if none was fitted."""
    queries: int = Field(ge=0)
    """Valid queries in the batch; funded + abandoned."""
    unit: str = "tokens"
    """What budget and spending are counted in: `tokens`, or billionths of this currency or of `gpu-seconds`."""
    budget_tokens: int = Field(ge=0)
    """What the run would be allowed to generate, or to spend."""
    low_tokens: float = Field(ge=0)
    """A low guess of what the planned grants would spend."""
    expected_tokens: float = Field(ge=0)
    """What the planned grants are expected to spend; answers that end early return tokens."""
    worst_tokens: int = Field(ge=0)
    """What they spend if every answer runs into its ceiling: the sum of the ceilings."""
    high_tokens: float | None = Field(default=None, ge=0)
    """Nine of ten such batches spend between `low_tokens` and this; None unless answers were sampled."""
    sampled_answers: int = Field(default=0, ge=0)
    """Whole answers that low, expected and high rest on; none unless the plan was allowed to sample some."""
    sample_tokens: int = Field(default=0, ge=0)
    """What all sampled answers took, short ones too, beside the budget of the run."""
    engines: dict[str, int] = Field(default_factory=dict)
    """Queries that would be asked of each of several engines first, at the first clearing; empty of a run with one."""
    funded: int = Field(ge=0)
    """Queries that would be granted tokens at the first clearing."""
    abandoned: int = Field(ge=0)
    """Queries that would be granted nothing at the first clearing."""
    kept_tokens: int = Field(default=0, ge=0)
    """Tokens set aside for the minimum service of the abandoned; counted in what would be spent."""
    shadow_price: float = Field(ge=0)
    """Expected correct answers per further token; 0 if the budget does not bind."""
    expected_utility: float
    """Correct answers expected from the planned grants."""
    uniform_expected_utility: float
    """Correct answers expected from equal ceilings that spend the same."""
    budget_curve: tuple[BudgetPoint, ...]
    """What other budgets are expected to buy, in rising order."""
    prefill_tokens: int = Field(ge=0)
    """Prompt tokens of the batch, which the probe reads; see `RunReport`."""
    probe_tokens: int = Field(default=0, ge=0)
    """What is charged for that, in the unit of the budget; counted in what would be spent."""
    notices: tuple[str, ...] = ()
    """How the input was read, what of it is ignored, lowered or failed, and what is to be said of the model; a line each."""
    is_probed: bool
    """Whether the estimates come from a probe of the model; otherwise from prompt lengths alone."""
    learning: LearningReport | None = None
    """What the run would learn from; None if that is not asked of it."""
    gain: GainReport | None = None
    """What it would gain over equal ceilings; None where it neither learns nor has a head, or asks queries again."""
    scorer: str | None = None
    """What would score the answers; of a batch that left the choice, with the golds it was chosen by."""
    warnings: tuple[str, ...] = ()
    """What is amiss with the gold answers; see `RunReport`."""
    for_share: ShareBudget | None = None
    """What the share that was asked for would cost; none if nothing was asked, or if no tokens would give anything."""
