"""Settings of a server: one YAML file, checked before anything is loaded."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from clear_ray.config.base import ConfigFile, Settings
from clear_ray.config.bounds import MOST_TOKENS
from clear_ray.config.engine import EngineConfig
from clear_ray.config.estimate import EstimateConfig
from clear_ray.config.menu import Engines, first_engine, gathered
from clear_ray.config.prices import ANY_MODEL, prices_of
from clear_ray.serve.batches.settings import BatchSettings, price_lists
from clear_ray.serve.law import PriceLaw

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class PriceSettings(Settings):
    """What is sold, and what becomes of a query without surplus. Changes while the server runs, through `user_config`."""

    budget_tokens_per_second: int = Field(default=100, ge=1)
    """Tokens that may be generated each second."""
    carry_over_tokens: int = Field(default=2_000, ge=1)
    """Unsold tokens that are kept, at most; also the most that one query can be granted."""
    window_seconds: float = Field(default=20.0, gt=0)
    """How far back demand is remembered; half of it is the time constant of the stock of tokens."""
    clearing_seconds: float = Field(default=2.0, gt=0)
    """Time between two clearings of the price."""
    step_octaves: float = Field(default=2.0, gt=0)
    """Most doublings or halvings of the price in one clearing."""
    without_surplus: Literal["answer", "queue", "reject"] = "queue"
    """A query without surplus gets a short direct answer, a place in the queue, or status 429."""
    direct_answer_tokens: int = Field(default=16, ge=1)
    """Length of a short direct answer, tokens."""
    max_waiting: int = Field(default=256, ge=0)
    """Places in the queue; further queries get status 429."""
    deadline_seconds: float = Field(default=30.0, gt=0)
    """Longest wait in the queue; then status 429."""

    def law(self) -> PriceLaw:
        """Return the update law of these settings.

        Raises:
            ConfigError: Two of them contradict each other.
        """
        return PriceLaw(
            budget_tokens_per_second=self.budget_tokens_per_second,
            carry_over_tokens=self.carry_over_tokens,
            window_seconds=self.window_seconds,
            clearing_seconds=self.clearing_seconds,
            step_octaves=self.step_octaves,
        )

    @model_validator(mode="after")
    def _law_holds(self) -> PriceSettings:
        self.law()
        return self


class LimitSettings(Settings):
    """What one query may ask for."""

    body_bytes: int = Field(default=1_000_000, ge=1)
    """Largest request body."""
    prompt_characters: int = Field(default=200_000, ge=1)
    """Longest conversation, all contents together; the model's context is checked besides."""
    choices: int = Field(default=4, ge=1)
    """Largest `n`."""
    stop_strings: int = Field(default=4, ge=0)
    """Longest `stop` list."""
    stop_characters: int = Field(default=64, ge=1)
    """Longest string in the `stop` list."""
    concurrent_per_key: int = Field(default=1_024, ge=1)
    """Queries of one API key under way at the same time in one ingress replica, those that wait for the price included."""
    body_seconds: float = Field(default=30.0, gt=0)
    """Longest time that a client may take to send its body; then status 408."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt, tokens, refused before the model reads it; if not given, the model's context alone limits it."""
    prompt_tokens_per_second: int | None = Field(default=None, ge=1)
    """Prompt tokens that one API key may have read, a second; what it is ahead by it waits for, with status 429."""


class TenantSettings(Settings):
    """One of those that share a server."""

    api_key_sha256: tuple[str, ...] = Field(min_length=1)
    """SHA-256 of each of its API keys, 64 hexadecimal digits; all of them see its files and batches."""
    weight: float = Field(default=1.0, ge=0.001, le=1_000)
    """Its share beside others that ask for something; keys of no tenant have the weight 1 together."""
    budget_tokens_per_second: int | None = Field(default=None, ge=1)
    """Most tokens that it may generate a second, however little others ask for; any number if not given."""


class ScalingSettings(Settings):
    """How many engine replicas there are, by the tokens outstanding on them."""

    max_workers: int = Field(ge=1)
    """Most engine replicas; `engine.workers` is the fewest."""
    target_seconds: float = Field(default=30.0, gt=0)
    """Seconds in which what is outstanding is to be generated; better more than one longest answer takes by itself."""
    up_seconds: float = Field(default=10.0, ge=0)
    """How long more replicas must be called for before they are started."""
    down_seconds: float = Field(default=300.0, ge=0)
    """How long fewer replicas must be enough before some are stopped."""


class ServeConfig(ConfigFile):
    """One server: which model, what it may generate, and who may ask."""

    remedy: ClassVar[str] = "See jobs/serve/demo.yaml."

    engines: Engines | None = None
    """In place of one engine several, by the names that clients ask for; each with the settings of an engine, its `prices`
    and, if there is one, its `head`. A batch of `model_name` is bought of all of them, at one price."""
    engine: EngineConfig = Field(default_factory=first_engine)
    """The language model; `workers` is the number of engine replicas."""
    estimate: EstimateConfig = EstimateConfig()
    """How probe features become curves."""
    price: PriceSettings = PriceSettings()
    """What is sold each second."""
    limits: LimitSettings = LimitSettings()
    """What one query may ask for. Changes while the server runs, through `user_config`."""
    scaling: ScalingSettings | None = None
    """Engine replicas by outstanding tokens; if not given there are always `engine.workers`."""
    batches: BatchSettings | None = None
    """Files and batches; if not given the server keeps none."""
    model_name: str = Field(default="clear_ray", min_length=1)
    """Name of the model in the API; of several engines that of all together, which batches may ask for."""
    max_tokens: int = Field(default=512, ge=1, le=MOST_TOKENS)
    """Ceiling of one answer, for queries that ask for more or do not say."""
    stream_tokens: int = Field(default=16, ge=1)
    """Tokens between two pieces of an answer: events of a stream, looks for a stop string, and what a death can hide."""
    host: str = "127.0.0.1"
    """Address to listen on, for `clear-ray serve`; other than loopback only with API keys."""
    port: int = Field(default=8000, ge=1, le=65_535)
    """Port to listen on, for `clear-ray serve` and `serve run`; a Serve that runs already stays where it listens."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names other than loopback's by which clients without keys may ask, such as a proxy's on this machine."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask from a browser, such as `https://chat.example`; `*` for any, with API keys alone."""
    ingress_replicas: int = Field(default=1, ge=1)
    """Processes that speak HTTP; limits by key hold in each."""
    api_key_sha256: tuple[str, ...] = ()
    """SHA-256 of each API key, 64 hexadecimal digits; without any, here or of tenants, only clients on this machine are
    served."""
    tenants: dict[str, TenantSettings] = Field(default_factory=dict)
    """Those that share the server, by name: their keys, their shares of what is sold, and their bounds."""
    drain_seconds: float = Field(default=60.0, gt=0)
    """How long queries under way may go on when a replica is stopped."""
    max_queued: int = Field(default=1_024, ge=0)
    """Queries that may wait for an engine replica; further ones get status 503."""

    @model_validator(mode="before")
    @classmethod
    def _prices_and_heads_are_gathered(cls, value: Any) -> Any:
        return _with_prices_of_runs(gathered(value))

    @property
    def each(self) -> dict[str, EngineConfig]:
        """The engines by the names that queries ask for."""
        return {self.model_name: self.engine} if self.engines is None else dict(self.engines)

    @property
    def models(self) -> tuple[str, ...]:
        """All names that may be asked for: those of the engines, and that of all together, where batches are kept."""
        all_together = () if self.engines is None or self.batches is None else (self.model_name,)
        return (*self.each, *all_together)

    def estimate_of(self, model: str) -> EstimateConfig:
        """Return how probe features of one engine become curves."""
        return self.estimate.model_copy(
            update={"head": self.estimate.heads.get(model, self.estimate.head), "heads": {}}
        )

    def run_of(self, model: str) -> dict[str, Any]:
        """Return what a batch's run has of the server's own: its engine or engines, their estimates and prices.

        Args:
            model: One of `models`.
        """
        prices = {} if self.batches is None or "prices" not in self.batches.run else self.batches.run["prices"]
        own: dict[str, Any] = {"prices": prices} if prices else {}
        if model not in self.each:
            return {"engines": dict(self.engines or {}), "estimate": self.estimate} | own
        engine = self.each[model]
        if self.engines is not None and (lists := price_lists(prices)):
            found = lists.get(model) or prices_of(lists, str(getattr(engine, "model", engine.kind)))
            own = {"prices": {ANY_MODEL: found.model_dump(mode="json")}}
        return {"engine": engine, "estimate": self.estimate_of(model)} | own

    @property
    def has_keys(self) -> bool:
        """Whether clients need a key."""
        return bool(self.api_key_sha256 or self.tenants)

    @model_validator(mode="after")
    def _keys_are_digests(self) -> ServeConfig:
        digests = [*self.api_key_sha256, *(key for tenant in self.tenants.values() for key in tenant.api_key_sha256)]
        for digest in digests:
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError("an entry of api_key_sha256 is not 64 lowercase hexadecimal digits")
        if len(set(digests)) < len(digests):
            raise ValueError("a key belongs to one tenant, and stands in api_key_sha256 once")
        if not all(0 < len(name) <= 64 and name.isascii() and name.isprintable() for name in self.tenants):
            raise ValueError("the name of a tenant has 1 to 64 printable characters")
        if self.host not in LOOPBACK and not self.has_keys:
            raise ValueError("without API keys a server may listen on loopback alone")
        if "*" in self.cors_origins and not self.has_keys:
            raise ValueError("without API keys the origins of pages must be named")
        return self

    @model_validator(mode="after")
    def _learns_nothing(self) -> ServeConfig:
        asked = self.estimate
        # What batches learn may come from an encoder or a store; the server's own price has no use for either.
        is_of_batches = asked.encoder is not None or asked.store is not None
        reads = asked.features is not None or (is_of_batches and self.batches is None)
        if asked.head == "learn" or asked.frozen is False or reads:
            raise ValueError(
                "a server learns nothing from its answers: name a fitted head, or none for the uninformed law"
            )
        return self

    @model_validator(mode="after")
    def _runs_fit_the_engine(self) -> ServeConfig:
        if self.batches is not None:
            for model in self.models:
                self.batches.check_run(self.run_of(model))
        return self

    @model_validator(mode="after")
    def _engines_are_told_apart(self) -> ServeConfig:
        if self.engines is None:
            if self.estimate.heads:
                raise ValueError(
                    "estimate.heads are those of several engines: name them in engines, or give estimate.head"
                )
            return self
        if self.engine != next(iter(self.engines.values())):
            raise ValueError("either engine or engines: the settings of one stand in engines, too")
        if self.model_name in self.engines:
            raise ValueError(
                f"model_name is the name of all engines together, and one of them is {self.model_name}, too"
            )
        if strangers := sorted(set(self.estimate.heads) - set(self.engines)):
            raise ValueError(f"estimate.heads names {strangers[0]}, which is none of {', '.join(self.engines)}")
        return self

    @model_validator(mode="after")
    def _scaling_goes_up(self) -> ServeConfig:
        if self.scaling is not None and self.scaling.max_workers < max(one.workers for one in self.each.values()):
            raise ValueError("scaling.max_workers is below engine.workers")
        return self


def _with_prices_of_runs(settings: Any) -> Any:
    """Return settings in which prices that stood beside engines are those of the batches' runs.

    Raises:
        ValueError: There are no batches, or prices stand in two places.
    """
    if not isinstance(settings, dict) or "prices" not in settings or not settings.get("engines"):
        return settings
    rest = {name: value for name, value in settings.items() if name != "prices"}
    batches = settings.get("batches")
    if not isinstance(batches, dict):
        raise ValueError("prices of engines are what batches pay: name batches.folder, or leave them out")
    run = batches.get("run") or {}
    if isinstance(run, dict) and run.get("prices"):
        raise ValueError("prices stand beside engines and in batches.run: put them all into one of the two")
    return rest | {"batches": {**batches, "run": {**run, "prices": settings["prices"]}}}
