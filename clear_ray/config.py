"""The run configuration: one YAML file, checked before anything is loaded.

The string under a field is its documentation. `None` means "derive it". Unknown keys are refused.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import to_json

from clear_ray.budget import budget_in_tokens, check_budget_text
from clear_ray.config_base import ConfigFile, Settings, apply_override
from clear_ray.errors import ConfigError
from clear_ray.scaling import seconds_of

EXAMPLE_SEEDS_AWAY = 1_000_000_007
MOST_TOKENS = MOST_ROWS = 2**31 - 1
"""Tokens of one query; queries of a run, a call or a file. Below, such counts are kept in 32 or 64 bits, and added up."""
MOST_ROUNDS = 8
"""Clearings of the price after which a run ends that does not teach itself."""
CHANGEABLE = "scaling"
"""The part that may differ when a run is gone on with: how many engines there are decides when it is done, and no more."""


def _checked_json(value: dict[str, Any], what: str) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
        to_json(value)  # which writes the manifest, and nests less deep
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{what} are written as JSON, which cannot hold these: {error}") from error
    return value


class Demonstration(Settings):
    """A worked example written by hand."""

    question: str = Field(min_length=1)
    """A question in the words of the task."""
    answer: str = Field(min_length=1)
    """What the model should have written: the work, if it helps, and a last line such as `Answer: 12`."""


class ReasoningGymSource(Settings):
    """One kind of reasoning-gym query to generate."""

    task: str = Field(min_length=1)
    """Name of the reasoning-gym dataset, such as `chain_sum`."""
    name: str | None = Field(default=None, pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*")
    """Name shown in reports and put before the number in query ids; by default the task's."""
    count: int = Field(gt=0, le=1_000_000)
    """How many queries, no two with the same question."""
    seed: int = Field(default=0, ge=0, lt=EXAMPLE_SEEDS_AWAY)
    """Seed of the first query; query k has the seed `seed + k`, so keep sources of one task further apart than that."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Settings of the generator, passed through; unknown ones are refused by reasoning-gym."""
    examples: int = Field(default=0, ge=0, le=16)
    """Solved questions drawn from reasoning-gym and put before the query, each with `Answer: …` alone."""
    demonstrations: tuple[Demonstration, ...] = ()
    """Worked examples written by hand, put before those that are drawn."""
    style: Literal["conversation", "text"] = "conversation"
    """Worked examples as earlier turns of the conversation, or as text in one user message."""

    @field_validator("params")
    @classmethod
    def _params_are_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _checked_json(value, "params")

    @property
    def display_name(self) -> str:
        """Name in reports and query ids."""
        return self.name or self.task


class ColumnsConfig(Settings):
    """Which input column holds what."""

    query_id: str = "query_id"
    """Unique name of the query."""
    prompt: str = "prompt"
    """Text of the query."""
    messages: str = "messages"
    """Conversation as a list of {role, content}; used where present instead of `prompt`."""
    weight: str = "weight"
    """Value of a correct answer, at most 1,000,000,000,000; optional column, 1 if missing."""
    cost: str = "cost"
    """What a token of this query takes from the budget; optional column, 1 if missing, rounded up to a thousandth."""
    max_tokens: str = "max_tokens"
    """This query's own ceiling; optional column."""
    gold: str = "gold"
    """Reference answer for scoring, a text, a number, true or false, or a list or object of JSON; optional column."""
    task: str = "task"
    """Kind of query, used in reports only; optional column."""
    metadata: str = "metadata"
    """JSON text handed to the scorer as it is; optional column."""
    sampling_params: str = "sampling_params"
    """This query's own sampling, an object such as `{"temperature": 0.2, "stop": ["\\n"]}`; optional column."""


class InputConfig(Settings):
    """Where the queries come from: files or generated tasks, exactly one of them."""

    path: str | None = None
    """A file of JSON, CSV or Parquet, a glob, a folder, or a URI of one, outside `run_dir`; also compressed."""
    format: Literal["auto", "jsonl", "parquet", "csv", "openai"] = "auto"
    """`openai` is a batch file of requests; `auto` tells by the first bytes, the first line and the name."""
    on_error: Literal["refuse", "fail_row"] = "refuse"
    """What becomes of a row that is no query or too long: the whole input is refused, or that row alone fails."""
    columns: ColumnsConfig = ColumnsConfig()
    """Column names of the input."""
    tasks: tuple[ReasoningGymSource, ...] = ()
    """Generated reasoning-gym queries, instead of `path`."""

    @model_validator(mode="after")
    def _one_source(self) -> InputConfig:
        if bool(self.path) and bool(self.tasks):
            raise ValueError("give either path or tasks, not both")
        return self


class WorkersConfig(Settings):
    """What every engine has in common."""

    workers: int = Field(default=1, ge=1, le=100_000)
    """Engine actors; one model is loaded in each."""
    num_gpus: float | None = Field(default=None, ge=0, le=1_000)
    """GPUs of one engine actor; if not given, 1 where the cluster has GPUs and the engine can use one, else 0."""
    max_batch: int = Field(default=32, ge=1, le=MOST_ROWS)
    """Queries that one engine runs at the same time, if memory allows."""
    stall_seconds: float = Field(default=900.0, gt=0, le=10_000_000)
    """An engine that has work and brings nothing forward for this long is killed and started again."""
    temperature: float = Field(default=0.0, ge=0, le=1_000)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus of the sampling distribution."""

    @field_validator("num_gpus")
    @classmethod
    def _gpus_can_be_had(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("Ray gives an actor a part of one GPU, or whole ones: above 1 name a whole number")
        return value


class ModelConfig(WorkersConfig):
    """What every engine that loads a model has in common."""

    model: str = "smollm2-135m-instruct"
    """A local folder of safetensors weights, a hub name, or `smollm2-135m-instruct` for the embedded model."""
    top_k: int = Field(default=0, ge=0, le=MOST_TOKENS)
    """Only so many of the likeliest tokens are drawn; 0 for all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Only tokens are drawn that are at least so likely as this share of the likeliest."""
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    """Divides the positive logits of tokens that stand in prompt or answer, and multiplies the negative ones."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken from the logits of tokens that stand in the answer."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken from a token's logit as many times as it stands in the answer."""
    fingerprint: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Refuse any other model: SHA-256 over architecture, weights and tokenizer, as `manifest.json` names it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and activations; `auto` is float32 on CPU. On CUDA it is bfloat16 (float16 where the device
    has none) of a transformers engine, and what the model was saved in of vLLM."""
    chat_template: bool = True
    """Wrap a plain prompt as one user message, where the model has a chat template."""
    system_prompt: str | None = None
    """System message put before every prompt that has none of its own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model's chat template, such as `enable_thinking: false`; one that it does not know is refused."""
    continue_final_message: bool = False
    """Let a conversation that ends with the assistant's words go on after them, instead of beginning a new turn."""
    max_context_tokens: int | None = Field(default=None, gt=0, le=MOST_TOKENS)
    """Prompt and answer together; the model's own limit if not given."""
    answer_reserve_tokens: int | None = Field(default=None, ge=2, le=MOST_TOKENS)
    """Tokens at the end of each grant in which an unfinished answer is made to give its result; off if not given."""
    closing_text: str = Field(default="\nAnswer:", min_length=1)
    """What closes such an answer."""
    enforce_eager: bool = False
    """Neither compile nor capture CUDA graphs: starts sooner and decodes more slowly."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _template_settings_are_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _checked_json(value, "template settings")


class TransformersConfig(ModelConfig):
    """A model run by transformers' continuous batching, on CPU or CUDA."""

    kind: Literal["transformers"] = "transformers"
    """Chooses this engine."""
    device: str | None = None
    """`cpu`, `cuda`, …; derived from the machine if not given."""
    threads: int | None = Field(default=None, gt=0, le=100_000)
    """Threads of one engine on CPU, for its whole process; as many as pay, which is timed when it is loaded, if not given."""


class VllmConfig(ModelConfig):
    """A model run by vLLM, on CUDA or, with its CPU build, on CPU; needs the `vllm` extra."""

    kind: Literal["vllm"] = "vllm"
    """Chooses this engine."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that one engine takes, weights included."""
    tensor_parallel: int = Field(default=1, ge=1, le=1_000)
    """GPUs over which one model is split, all of one node; `num_gpus`, where given, must be the same."""
    cpu_cache_gib: float = Field(default=2.0, gt=0, le=1_000_000)
    """Memory of the key-value cache on CPU, GiB; on a GPU it is what the weights leave."""
    thinking_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Most tokens that an answer may think for, over all its grants; unlimited if not given."""
    thinking_start: str = Field(default="<think>", min_length=1)
    """What begins the model's thinking: one token of its tokenizer."""
    thinking_end: str = Field(default="</think>", min_length=1)
    """What ends it, and is put into an answer whose thinking budget is used up: one token."""

    @model_validator(mode="after")
    def _actor_has_its_gpus(self) -> VllmConfig:
        if self.tensor_parallel > 1 and self.num_gpus not in (None, self.tensor_parallel):
            raise ValueError(f"a model split over {self.tensor_parallel} GPUs needs num_gpus: {self.tensor_parallel}")
        return self


class ReplayConfig(WorkersConfig):
    """Recorded rollouts played back by token count: no model is needed."""

    kind: Literal["replay"] = "replay"
    """Chooses this engine."""
    rollouts: str
    """Parquet of recorded rollouts."""
    features: str | None = None
    """Parquet of recorded probe features; without it there are no hidden states, and a head fitted on some is refused."""
    tokens_per_second: float | None = Field(default=None, gt=0)
    """Decode rate of one sequence to imitate; as fast as possible if not given."""


def _with_kind(engine: Any) -> Any:
    """Return the settings with the kind that they have if they name none."""
    return {"kind": "transformers", **engine} if isinstance(engine, dict) else engine


EngineConfig = Annotated[
    TransformersConfig | VllmConfig | ReplayConfig, Field(discriminator="kind"), BeforeValidator(_with_kind)
]


NAMED_HEADS = ("learn", "prior", "demo")
"""Names of `estimate.head` that are no folders."""


class EstimateConfig(Settings):
    """How probe features become curves."""

    head: str | None = None
    """`learn` from this run's own answers, which it does if not given; a folder of a fitted head, `demo` for the one shipped
    for the embedded model, or `prior`, the uninformed law."""
    frozen: bool | None = None
    """Whether a given head is kept as it is; if not given, it is. Otherwise it is the start of what this run learns."""
    features: tuple[Literal["text", "ngrams", "length", "task"], ...] | None = Field(default=None, min_length=1)
    """What a run that learns reads of its prompts; text and ngrams if not given. `task` is the label in the input."""
    layers: int | None = Field(default=None, ge=1, le=100_000)
    """Layers of the model that the probe runs, of a transformers engine, when a head is fitted or there is none; all if
    not given. A fitted head keeps its own number."""
    batch_rows: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Queries in one probe call; up to 128 if not given, fewer where an engine would have none to read."""

    @property
    def learns(self) -> bool:
        """Whether a run is to learn from its own answers."""
        return self.head in (None, "learn") or self.frozen is False

    @model_validator(mode="after")
    def _agrees(self) -> EstimateConfig:
        is_given = self.head not in (None, "learn", "prior")
        if self.frozen is not None and not is_given:
            raise ValueError(
                "frozen says what becomes of a given head: name one, or `prior` for a run that learns nothing"
            )
        if self.features is not None and not self.learns:
            raise ValueError("features are read by a run that learns, and this one keeps its head as it is")
        return self


class AllocationConfig(Settings):
    """How the budget is shared."""

    max_tokens: int = Field(default=512, ge=1, le=MOST_TOKENS)
    """Ceiling of one query over all its grants; less where the model's context leaves less beside its prompt."""
    smallest_grant_tokens: int = Field(default=4, ge=1, le=MOST_TOKENS)
    """Rounds end when less than this is left beside what is owed as minimum service; the first is always cleared."""
    max_rounds: int | None = Field(default=None, ge=1, le=100)
    """Most clearings of the price; if not given, 24 of a run that learns, which takes 3 at least, and 8 of others."""
    policy: Literal["clear_ray", "uniform"] = "clear_ray"
    """`uniform` gives every query the same ceiling; for comparison."""
    sketched: bool | None = None
    """Price from demand sketches made where the estimates are; if not given, above a hundred thousand queries."""
    minimum_service_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Set aside for every query before pricing, for a direct answer of one that is not worth the price; off if not given."""
    minimum_service_text: str | None = Field(default=None, min_length=1)
    """What asks for the direct answer, put after the prompt; words to that effect in English if not given."""


class ScoringConfig(Settings):
    """Whether and how answers are compared with the gold column."""

    scorer: str | None = None
    """`exact`, `number`, `choice`, `math`, `regex`, `json`, `code`, `auto` (what fits the gold answers), `reasoning_gym`, or
    `package.module:function`; not scored if not given. docs/scoring.md has the rules."""
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
    batch_rows: int = Field(default=4, ge=1, le=MOST_ROWS)
    """Queries in one call to an engine."""
    calls_in_flight: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Calls that one caller keeps open; if not given, enough for twice the queries that the engines run at once."""
    block_rows: int = Field(default=2_000, ge=1, le=MOST_ROWS)
    """Queries in one block of the probe stage."""
    rows_per_file: int = Field(default=64, ge=1, le=MOST_ROWS)
    """Most answers in one file; after a second it is written with fewer. A crash loses those not written yet."""


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

    remedy: ClassVar[str] = "See the comments in jobs/configs."

    run_dir: str
    """Folder of this run, a path or URI; made if missing. On several nodes it must be visible to all of them."""
    input: InputConfig = InputConfig()
    """Where the queries come from."""
    budget: int | str
    """What the run may generate: tokens (a whole number, or text such as `200k tokens`), money (`$5`) or `3 gpu-hours`."""
    budget_rate: str | None = Field(default=None, validate_default=True)
    """For money or GPU time, what that buys: `$0.60 per 1M tokens`, or `4M tokens per gpu-hour` (or per gpu-second)."""
    engine: EngineConfig = TransformersConfig()
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

    @field_validator("budget", mode="before")  # before: pydantic would take `true` for 1
    @classmethod
    def _budget_can_be_read(cls, value: Any) -> Any:
        check_budget_text(value)
        return value

    @field_validator("budget_rate")
    @classmethod
    def _rate_fits_the_budget(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "budget" in info.data:  # otherwise the budget was refused already
            budget_in_tokens(info.data["budget"], value)
        return value

    @property
    def budget_tokens(self) -> int:
        """The budget in generated tokens."""
        return budget_in_tokens(self.budget, self.budget_rate)

    @property
    def most_workers(self) -> int:
        """Most engines that may run at once."""
        return self.scaling.max_workers or self.engine.workers

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
                raise ConfigError(
                    "this setting is fixed since the run began",
                    f"--set {key}",
                    value,
                    f"Only {CHANGEABLE}.* may change on the way; for another {part} begin a run with another run_dir.",
                )
        return now
