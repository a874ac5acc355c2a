"""The run configuration: one YAML file, checked before anything is loaded.

The string under a field is its documentation. `None` means "derive it". Unknown keys are refused.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from clear_ray.config.allocation import JUDGED, AllocationConfig
from clear_ray.config.base import ConfigFile, apply_override
from clear_ray.config.bounds import MOST_ROWS
from clear_ray.config.engine import EngineConfig
from clear_ray.config.estimate import PROBED_SETS, EstimateConfig
from clear_ray.config.input import InputConfig
from clear_ray.config.menu import Engines, NamedEngine, check_menu, first_engine, gathered
from clear_ray.config.prices import NANO, PriceLists, Prices, prices_of
from clear_ray.config.scoring import ScoringConfig, VoteKind
from clear_ray.config.units import budget_in_tokens, budget_in_units, check_budget_text, unit_of_budget
from clear_ray.config.workers import DispatchConfig, ScalingConfig
from clear_ray.errors import ConfigError

CHANGEABLE = "scaling"
"""The part that may differ when a run is gone on with: how many engines there are decides when it is done, and no more."""


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
        if isinstance(value, float) and value.is_integer():  # as YAML and programs write 2e6
            value = int(value)
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
        heads, head, frozen = self.estimate.heads, self.estimate.head, self.estimate.frozen is not False
        return tuple(
            NamedEngine(name, engine, self._prices_of(name, engine), heads.get(name, head), frozen)
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
        """Most engine actors that may run at once, of all engines."""
        return sum(self.most_workers_of(named) for named in self.named_engines)

    def most_workers_of(self, named: NamedEngine) -> int:
        """Return the most actors of one engine that may run at once."""
        return self.scaling.most_of(named.name) or named.config.workers

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

    @property
    def keeps_from_streaming(self) -> str:
        """What of these settings keeps the price from being cleared while prompts are read; empty if nothing does."""
        allocation, estimate = self.allocation, self.estimate
        probed = PROBED_SETS & set(estimate.features or ())
        hindrances = {
            "engines": self.engines is not None,
            "prices": self.prices is not None,
            "estimate.store": estimate.store is not None,
            "estimate.encoder": estimate.encoder is not None,
            f"estimate.features {min(probed, default='')}": bool(probed),
            "scoring.agreement": self.compares_answers,
            "allocation.sketched": bool(allocation.sketched) and estimate.learns,
            "allocation.policy uniform": allocation.policy != "clear_ray",
            f"allocation.objective {allocation.objective}": allocation.most_attempts > 1,
            "allocation.minimum_service_tokens": allocation.minimum_service_tokens is not None,
            "allocation.max_rounds": allocation.max_rounds is not None,
            "allocation.overlap false": not allocation.overlaps,
        }
        return next((name for name, is_so in hindrances.items() if is_so), "")

    @model_validator(mode="after")
    def _can_stream(self) -> RunConfig:
        if self.allocation.streamed and (name := self.keeps_from_streaming):
            raise ValueError(f"allocation.streamed does not go with {name}: leave out one of them")
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
        names = [named.name for named in self.named_engines]
        for name, value in (
            ("max_workers", self.scaling.max_workers),
            ("tokens_per_second", self.scaling.tokens_per_second),
        ):
            if strangers := sorted(set(value) - set(names)) if isinstance(value, dict) else []:
                among = f"none of {', '.join(names)}" if self.engines else "for several engines: give one number"
                raise ValueError(f"scaling.{name} names {strangers[0]}, which is {among}")
        for named in self.named_engines:
            if self.most_workers_of(named) < named.config.workers:
                of = f"engines.{named.name}" if named.name else "engine"
                raise ValueError(f"scaling.max_workers is below {of}.workers, with which a run begins")
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
            key, _, value = override.partition("=")
            if key == "budget" and value.strip() != str(self.budget):
                remedy = f"Write `clear-ray budget {self.run_dir} {value}`, then resume."
                raise ConfigError("the budget of a run is changed by an order", "--set budget", value, remedy)
            apply_override(settings, override)
        now = RunConfig.parse(settings, where="--set")
        for override in overrides:
            key, _, value = override.partition("=")
            part = key.partition(".")[0]
            if getattr(now, part) != getattr(self, part) and part != CHANGEABLE:
                raise ConfigError(
                    "this setting is fixed since the run began",
                    f"--set {key}",
                    value,
                    f"Only {CHANGEABLE}.* may change on the way; for another {part} begin a run with another run_dir.",
                )
        return now
