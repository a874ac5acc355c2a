"""Settings of the input: files or generated tasks, and which column holds what."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from clear_ray.config.base import Settings
from clear_ray.config.bounds import checked_json

EXAMPLE_SEEDS_AWAY = 1_000_000_007


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
        return checked_json(value, "params")

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
    first_option: Literal["auto", 0, 1] = "auto"
    """Number of the first option where reference answers are numbers of options; `auto` tells by the whole column."""
    tasks: tuple[ReasoningGymSource, ...] = ()
    """Generated reasoning-gym queries, instead of `path`."""

    retry_of: str | None = None
    """Run folder of a run that is done, whose queries are asked again, instead of `path`; `clear-ray retry` sets it."""
    retry: Literal["failed", "unanswered"] = "failed"
    """Which of them: those that failed, other than of what they are, or also those that were abandoned."""

    @field_serializer("columns")
    def _as_it_was_named(self, columns: ColumnsConfig) -> dict[str, str]:
        """Write the columns that were named, and no others: read again, the rest are recognised as they were."""
        return columns.model_dump(include=columns.model_fields_set)

    @model_validator(mode="after")
    def _one_source(self) -> InputConfig:
        if sum(map(bool, (self.path, self.tasks, self.retry_of))) > 1:
            raise ValueError("give either path or tasks, not both, and neither with retry_of")
        return self
