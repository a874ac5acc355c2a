"""The run configuration: one YAML file, checked before anything is loaded.

The string under a field is its documentation. `None` means "derive it". Unknown keys are refused.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import (
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from clear_ray.config.base import ConfigFile, Settings, apply_override
from clear_ray.config.bounds import MOST_ROWS, MOST_TOKENS
from clear_ray.config.durations import seconds_of
from clear_ray.config.engine import EngineConfig
from clear_ray.config.input import InputConfig
from clear_ray.config.menu import Engines, NamedEngine, check_menu, first_engine, gathered
from clear_ray.config.prices import NANO, PriceLists, Prices, prices_of
from clear_ray.config.units import budget_in_tokens, budget_in_units, check_budget_text, unit_of_budget
from clear_ray.errors import ConfigError

MOST_ROUNDS = 8
"""Clearings of the price after which a run ends that does not teach itself."""

CHANGEABLE = "scaling"
"""The part that may differ when a run is gone on with: how many engines there are decides when it is done, and no more."""

MOST_ATTEMPTS_ROUNDS = 32
"""The same of a run that may ask its queries again, if that is enough for all attempts of one."""
DEFAULT_ATTEMPTS = 8

PROBED_SETS = frozenset({"hidden", "logprobs"})
"""Feature sets that the model itself is asked for; all others are read of the words."""

Objective = Literal["correct", "solved", "best_of_n", "vote", "groups"]
"""What the answers of a query are for."""

JUDGED = ("solved", "best_of_n", "groups")
"""Objectives that ask again by what a scorer says of the answers so far."""

VoteKind = Literal["exact", "number", "choice", "math", "json"]
"""Kinds of scorers whose final answers can be compared with each other."""

NAMED_HEADS = ("learn", "prior", "demo")
"""Names of `estimate.head` that are no folders."""


class EstimateConfig(Settings):
    """How probe features become curves."""

    head: str | None = None
    """`learn` from this run's own answers, which it does if not given; a folder of a fitted head, `demo` for the one shipped
    for the embedded model, or `prior`, the uninformed law."""
    heads: dict[str, str] = Field(default_factory=dict)
    """Heads of some of several engines, by the engines' names; `head` beside an engine means the same."""
    frozen: bool | None = None
    """Whether a given head is kept as it is; if not given, it is. Otherwise it is the start of what this run learns."""
    features: tuple[Literal["hidden", "text", "ngrams", "length", "task", "logprobs"], ...] | None = Field(
        default=None, min_length=1
    )
    """What a run that learns reads of its prompts; text and ngrams if not given. `task` is the label in the input, `hidden`
    the model's own states, as the probe finds them after `layers`; `logprobs`, of one endpoint, how sure it is of its first
    token, which a call of one token asks of each query, and the budget pays for."""
    encoder: str | None = Field(default=None, min_length=1)
    """Folder of an encoder, or installed package with one, whose states a run that learns reads beside its features."""
    store: str | None = Field(default=None, min_length=1)
    """Folder or URI where runs keep what they have learned of a model, and begin with what earlier ones have; one for all
    models. Of prompts it holds hashed words and numbers, never the text."""
    layers: int | None = Field(default=None, ge=1, le=100_000)
    """Layers of the model that the probe runs, of a transformers engine, when a head is fitted or there is none; all if
    not given. A fitted head keeps its own number."""
    batch_rows: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Queries in one probe call; up to 128 if not given, fewer where an engine would have none to read."""

    @property
    def learns(self) -> bool:
        """Whether a run is to learn from its own answers."""
        return self.head in (None, "learn") or self.frozen is False

    @property
    def reads_states(self) -> bool:
        """Whether a run that learns reads more than words of its own model: hidden states, or its first tokens."""
        return not PROBED_SETS.isdisjoint(self.features or ())

    @model_validator(mode="after")
    def _agrees(self) -> EstimateConfig:
        is_given = self.head not in (None, "learn", "prior")
        if self.frozen is not None and not is_given:
            raise ValueError(
                "frozen says what becomes of a given head: name one, or `prior` for a run that learns nothing"
            )
        if not self.learns and (self.features is not None or self.encoder is not None):
            name = "features are" if self.features is not None else "an encoder is"
            raise ValueError(f"{name} read by a run that learns, and this one keeps its head as it is")
        if self.store is not None and (is_given or not self.learns):
            raise ValueError(
                "a store is for runs that learn and begin with what earlier ones have learned: name no head"
            )
        if self.store is not None and (self.encoder is not None or self.reads_states):
            raise ValueError(
                "a store keeps what is read of words, and no states of an encoder or a model, and no logprobs: leave one out"
            )
        if self.encoder is not None and self.reads_states:
            raise ValueError(
                "an encoder's states stand in place of the model's: leave out encoder, or hidden and logprobs"
            )
        return self


class AllocationConfig(Settings):
    """How the budget is shared."""

    objective: Objective = "correct"
    """`correct`: one answer to each query. `solved`: a query is asked again until an answer is right, by its scorer.
    `best_of_n`: the same for scores between wrong and right; the answer with the highest score counts. `vote`: without a
    scorer, as long as another answer may change which result is the most frequent; the answer is one that gives it.
    `groups`: for training, until a query has a right answer and a wrong one; the answer is the right one."""
    attempts: int | None = Field(default=None, ge=1, le=1_000)
    """Most answers to one query, where the objective is not `correct`; 8 if not given. A row's own `n` above 1 lowers it, and
    stands alone where this is not given. Of several engines: most answers of each, one if not given."""
    votes_by: VoteKind | None = None
    """How the final answer of a text is read, and which are the same, where votes are counted (objective `vote`):
    a kind of scorer. If not given, that of the scorer, or else `exact`."""
    max_tokens: int = Field(default=512, ge=1, le=MOST_TOKENS)
    """Ceiling of one answer over all its grants; less where the model's context leaves less beside its prompt."""
    smallest_grant_tokens: int = Field(default=4, ge=1, le=MOST_TOKENS)
    """Rounds end when less than this is left beside what is owed as minimum service; the first is always cleared."""
    max_rounds: int | None = Field(default=None, ge=1, le=100)
    """Most clearings of the price; if not given, 24 of a run that learns, which takes 3 at least, and 8 of others; with
    several attempts 32, or 4 for each attempt. Those made beside running grants count only if this is given."""
    overlap: bool | None = None
    """Whether the price is cleared again while grants run, as soon as engines have free slots and tokens have come back; if
    not given, unless `max_rounds` is. Such a run is sooner done, and its grants depend on which answers come first."""
    policy: Literal["clear_ray", "uniform"] = "clear_ray"
    """`uniform` gives every query the same ceiling; for comparison."""
    sketched: bool | None = None
    """Price from demand sketches made where the estimates are; if not given, above a hundred thousand queries."""
    minimum_service_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Set aside for every query before pricing, for a direct answer of one that is not worth the price; off if not given."""
    minimum_service_text: str | None = Field(default=None, min_length=1)
    """What asks for the direct answer, put after the prompt; words to that effect in English if not given."""

    @property
    def most_attempts(self) -> int:
        """Most answers to one query."""
        return 1 if self.objective == "correct" else self.attempts or DEFAULT_ATTEMPTS

    @property
    def overlaps(self) -> bool:
        """Whether the price is cleared while grants run."""
        return self.max_rounds is None if self.overlap is None else self.overlap

    @property
    def most_rounds(self) -> int:
        """Most clearings of a run that does not teach itself."""
        if self.max_rounds is not None:
            return self.max_rounds
        return MOST_ROUNDS if self.most_attempts == 1 else max(MOST_ATTEMPTS_ROUNDS, 4 * self.most_attempts)

    @model_validator(mode="after")
    def _asks_again_for_something(self) -> AllocationConfig:
        if self.objective == "correct" and (self.attempts or 1) > 1:
            raise ValueError("several attempts need an objective that uses them: solved, best_of_n, vote or groups")
        if self.votes_by is not None and self.objective != "vote":
            raise ValueError("votes_by says how votes are counted, and the objective is not vote")
        if self.most_attempts > 1 and self.policy != "clear_ray":
            raise ValueError("uniform asks every query once: leave out policy, objective or attempts")
        if self.most_attempts > 1 and self.sketched:
            raise ValueError(
                "a batch that is priced from sketches asks every query once: leave out sketched or attempts"
            )
        return self


class ScoringConfig(Settings):
    """Whether and how answers are compared with the gold column."""

    scorer: str | None = None
    """`exact`, `number`, `choice`, `math`, `regex`, `json`, `code`, `auto` (what fits the gold answers), `reasoning_gym`, or
    `package.module:function`; not scored if not given. docs/scoring.md has the rules."""
    agreement: VoteKind | None = None
    """How final answers to the same query are read to compare them, where nothing scores them: those count as right that most
    give. Compared by `clear-ray calibrate`, and by a run that learns, which asks some queries again; not if not given."""
    timeout_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """How long one call of a `package.module:function` may take; then its process is ended and the row says so."""
    code_seconds: float = Field(default=10.0, ge=0.1, le=86_400)
    """Processor time that one program of `code` may use with all its tests; of wall time three times as much."""
    code_memory_mib: int = Field(default=1_024, ge=64, le=1_000_000)
    """Memory that it may use, MiB."""


class DispatchConfig(Settings):
    """How rows travel; the defaults suit most clusters."""

    callers: int = Field(default=1, ge=1, le=100_000)
    """Thin actors that keep the engines fed."""
    batch_rows: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Queries in one call to an engine; if not given, as many as are expected to take 256 tokens together, 64 at most."""
    calls_in_flight: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Calls that one caller keeps open; if not given, enough for twice the queries that the engines run at once."""
    block_rows: int = Field(default=2_000, ge=1, le=MOST_ROWS)
    """Queries in one block of the probe stage."""
    rows_per_file: int = Field(default=64, ge=1, le=MOST_ROWS)
    """Most answers in one file; after a second at most it is written with fewer. A crash loses those not written yet."""


class ScalingConfig(Settings):
    """Whether the number of engines follows the work; by default it is `engine.workers` throughout."""

    max_workers: int | None = Field(default=None, ge=1, le=100_000)
    """Most engines: a run begins with `engine.workers` and adds those its work calls for; no more are added if not given."""
    deadline: str | None = None
    """How long after its start a run should be done, such as `90m` or `2h`; a goal. Without one engines need only pay off."""
    tokens_per_second: float | None = Field(default=None, gt=0)
    """What one busy engine generates, from an earlier run's summary; measured in the first round if not given."""

    @property
    def deadline_seconds(self) -> float | None:
        """The deadline in seconds."""
        return None if self.deadline is None else seconds_of(self.deadline)

    @model_validator(mode="after")
    def _can_be_kept(self) -> ScalingConfig:
        if self.deadline is not None:
            seconds_of(self.deadline)
        if self.max_workers is None and (self.deadline is not None or self.tokens_per_second is not None):
            raise ValueError("deadline and tokens_per_second need max_workers: without it no engine is added")
        return self


class RunConfig(ConfigFile):
    """One batch run: what to ask, what it may cost, and how."""

    run_dir: str
    """Folder of this run, a path or URI; made if missing. On several nodes it must be visible to all of them."""
    input: InputConfig = InputConfig()
    """Where the queries come from."""
    budget: int | str
    """What the run may generate: tokens (a whole number, or text such as `200k tokens`), money (`$5`) or `3 gpu-hours`."""
    prices: PriceLists | None = None
    """What tokens cost, in place of a rate: `input` and `output` per million, or these by the model's name, or a file."""
    budget_rate: str | None = Field(default=None, validate_default=True)
    """For money or GPU time, what that buys: `$0.60 per 1M tokens`, or `4M tokens per gpu-hour` (or per gpu-second)."""
    engines: Engines | None = None
    """In place of one engine several, by names of your own, cheap ones first; each with the settings of an engine, its
    `prices` and, if there is one, its `head`."""
    engine: EngineConfig = Field(default_factory=first_engine)
    """The language model and its workers."""
    scaling: ScalingConfig = ScalingConfig()
    """How many workers there are as the work comes and goes."""
    estimate: EstimateConfig = EstimateConfig()
    """How probe features become curves."""
    allocation: AllocationConfig = AllocationConfig()
    """How the budget is shared."""
    scoring: ScoringConfig = ScoringConfig()
    """How answers are scored, where gold answers exist."""
    dispatch: DispatchConfig = DispatchConfig()
    """How rows travel."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    """Seed of sampling and of every tie that is broken."""
    sample: int = Field(default=0, ge=0, le=MOST_ROWS)
    """Which of several independent answers to the same queries this run draws; with replay, which recorded one."""

    @model_validator(mode="before")
    @classmethod
    def _prices_and_heads_are_gathered(cls, value: Any) -> Any:
        return gathered(value)

    @field_validator("budget", mode="before")  # before: pydantic would take `true` for 1
    @classmethod
    def _budget_can_be_read(cls, value: Any) -> Any:
        check_budget_text(value)
        return value

    @field_validator("prices")
    @classmethod
    def _prices_fit_the_budget(cls, value: dict[str, Prices] | None, info: ValidationInfo) -> dict[str, Prices] | None:
        for prices in (value or {}).values() if "budget" in info.data else ():
            budget_in_units(info.data["budget"], prices)
        return value

    @field_validator("budget_rate")
    @classmethod
    def _rate_fits_the_budget(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "budget" not in info.data or "prices" not in info.data:  # refused already
            return value
        if info.data["prices"] is None:
            budget_in_tokens(info.data["budget"], value)
        elif value is not None:
            raise ValueError("either a rate or prices say what the budget buys, not both")
        return value

    @model_validator(mode="after")
    def _model_has_prices(self) -> RunConfig:
        check_menu(self)
        self.named_engines  # noqa: B018 - raises for one without prices
        return self

    @property
    def named_engines(self) -> tuple[NamedEngine, ...]:
        """The engines of this run with their prices and heads; one, unless several are named."""
        if self.engines is None:
            return (NamedEngine("", self.engine, self._prices_of("", self.engine), self.estimate.head),)
        heads = self.estimate.heads
        return tuple(
            NamedEngine(name, engine, self._prices_of(name, engine), heads.get(name, self.estimate.head))
            for name, engine in self.engines.items()
        )

    def _prices_of(self, name: str, engine: EngineConfig) -> Prices | None:
        if self.prices is None:
            return None
        return self.prices.get(name) or prices_of(self.prices, str(getattr(engine, "model", engine.kind)))

    @property
    def model_prices(self) -> Prices | None:
        """What tokens of the engine's model cost, of several those of the first; None for a budget that counts tokens."""
        return self.named_engines[0].prices

    @property
    def unit(self) -> str:
        """What the account is kept in: `tokens`, or billionths of this currency or of `gpu-seconds`."""
        return "tokens" if self.prices is None else unit_of_budget(self.budget)

    @property
    def budget_tokens(self) -> int:
        """The budget in generated tokens; of a run that has prices, in billionths of its unit."""
        prices = self.model_prices
        if prices is not None:
            return budget_in_units(self.budget, prices)
        return budget_in_tokens(self.budget, self.budget_rate)

    def part_of_budget(self, parts: int) -> int | str:
        """Return one of several equal parts of the budget, rounded down: tokens, or money where there are prices."""
        part = self.budget_tokens // parts
        return part if self.unit == "tokens" else f"{part // NANO}.{part % NANO:09d} {self.unit}"

    @property
    def votes_by(self) -> VoteKind | None:
        """How final answers are read where votes are counted; None where they are not."""
        if self.allocation.objective != "vote":
            return self.scoring.agreement if self.compares_answers else None
        scorer = "math" if self.scoring.scorer == "math_verify" else self.scoring.scorer
        by_scorer = next((kind for kind in get_args(VoteKind) if kind == scorer), None)
        return self.allocation.votes_by or by_scorer or self.scoring.agreement or "exact"

    @property
    def reads_states(self) -> bool:
        """Whether the probe keeps something of the model's own numbers, for a run that learns on them."""
        return self.estimate.reads_states and self.allocation.policy == "clear_ray"

    @property
    def asks_first_tokens(self) -> bool:
        """Whether the probe has one token of each query generated."""
        return self.reads_states and "logprobs" in (self.estimate.features or ())

    @property
    def compares_answers(self) -> bool:
        """Whether a run that learns asks some queries again to compare their answers, if nothing else says what is right."""
        can_differ = self.engine.kind == "replay" or self.engine.temperature > 0
        is_single = self.engines is None and self.allocation.objective == "correct"
        is_priced = self.allocation.policy == "clear_ray" and self.estimate.learns
        return self.scoring.agreement is not None and is_single and is_priced and can_differ

    @property
    def most_workers(self) -> int:
        """Most engines that may run at once, of several those of the first."""
        return self.scaling.max_workers or self.engine.workers

    @property
    def is_probed(self) -> bool:
        """Whether a model reads the prompts before they are answered; one behind an endpoint does not."""
        return any(named.config.kind != "openai" for named in self.named_engines)

    @property
    def workers(self) -> int:
        """Engine actors of the start, of all engines."""
        return sum(named.config.workers for named in self.named_engines)

    @property
    def slots(self) -> int:
        """Queries that all engines of the start run at the same time."""
        return sum(named.config.workers * named.config.max_batch for named in self.named_engines)

    @property
    def times_asked(self) -> int:
        """Most answers of one engine to one query: of several engines one each, if no number is given."""
        return self.allocation.most_attempts if self.engines is None else self.allocation.attempts or 1

    @property
    def most_attempts(self) -> int:
        """Most answers to one query, of all engines."""
        return self.times_asked * len(self.named_engines)

    @model_validator(mode="after")
    def _can_ask_again(self) -> RunConfig:
        objective = self.allocation.objective
        if objective in JUDGED and self.scoring.scorer is None:
            raise ValueError(
                f"allocation.objective {objective} needs scoring.scorer: it says which answer is right or best"
            )
        each = [self.engine] if self.engines is None else list(self.engines.values())
        if self.times_asked > 1 and not all(one.kind == "replay" or one.temperature > 0 for one in each):
            raise ValueError(
                "engine.temperature 0 gives the same answer at every attempt: set one above 0, such as 0.8"
            )
        return self

    @model_validator(mode="after")
    def _has_states(self) -> RunConfig:
        asked = PROBED_SETS & set(self.estimate.features or ())
        if asked and self.engines is not None:
            raise ValueError(f"several engines have no states in common: leave `{min(asked)}` out of estimate.features")
        if wrong := asked - {"logprobs" if self.engine.kind == "openai" else "hidden"}:
            what = "an endpoint shows no hidden states" if "hidden" in wrong else "`hidden` says more than logprobs"
            raise ValueError(f"{what}: leave `{min(wrong)}` out of estimate.features")
        return self

    @model_validator(mode="after")
    def _scales_up(self) -> RunConfig:
        if self.most_workers < self.engine.workers:
            raise ValueError("scaling.max_workers is below engine.workers, with which a run begins")
        return self

    def resumed(self, overrides: tuple[str, ...]) -> RunConfig:
        """Return the settings with which a run that began with these goes on.

        Args:
            overrides: Each `dotted.key=value`; the value is read as YAML.

        Raises:
            ConfigError: One names no setting, one that is fixed since the run began, or a value out of range.
        """
        settings = self.model_dump(mode="json")
        for override in overrides:
            apply_override(settings, override)
        now = RunConfig.parse(settings, where="--set")
        for override in overrides:
            key, _, value = override.partition("=")
            part = key.partition(".")[0]
            if getattr(now, part) != getattr(self, part) and part != CHANGEABLE:
                if part == "budget":
                    remedy = f"Write `clear-ray budget {self.run_dir} {value}`, then resume."
                    raise ConfigError("the budget of a run is changed by an order", f"--set {key}", value, remedy)
                raise ConfigError(
                    "this setting is fixed since the run began",
                    f"--set {key}",
                    value,
                    f"Only {CHANGEABLE}.* may change on the way; for another {part} begin a run with another run_dir.",
                )
        return now
