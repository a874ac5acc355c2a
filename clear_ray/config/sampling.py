"""How the tokens of one query's answer are chosen, and how its conversation is put to the model, where its row says so.

A `Sampling` holds what a row asks for itself; what it leaves out is the run's setting. It travels as one small JSON text:
in the column `sampling` of the queries, in every grant, and through the server.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import to_json

from clear_ray.config.base import Settings

MOST_STOPS = 64
MOST_STOP_CHARACTERS = 1_000
MOST_LOGPROBS = 20
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopText = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]


class Structure(Settings):
    """What an answer that ends by itself conforms to."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "grammar"]
    """Any JSON object; JSON of a schema; a text that a regular expression matches; one of several texts; a Lark grammar."""
    value: str = ""
    """The schema, the expression, the grammar, or a JSON list of the texts; empty for `json_object`."""


class Sampling(Settings):
    """What a row asks for itself; None, or an empty list, for the run's own setting."""

    temperature: float | None = Field(default=None, ge=0, le=1_000)
    """Divides the logits; 0 is greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Only the likeliest tokens that together reach this probability are drawn."""
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    """Only so many of the likeliest tokens are drawn; 0 for all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Only tokens at least so likely as this share of the likeliest are drawn."""
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    """Divides the positive logits of tokens that stand in prompt or answer, and multiplies the negative ones."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken from the logits of tokens that stand in the answer."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Taken from a token's logit as many times as it stands in the answer."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    """Seed of this query's drawing, in place of the run's."""
    stop: tuple[StopText, ...] = Field(default=(), max_length=MOST_STOPS)
    """Texts that end the answer, which keeps what stands before them."""
    stop_token_ids: tuple[TokenId, ...] = Field(default=(), max_length=MOST_STOPS)
    """Tokens that end the answer beside the model's own."""
    min_tokens: int = Field(default=0, ge=0, lt=2**31)
    """The answer does not end by itself before it has so many tokens."""
    logit_bias: tuple[tuple[TokenId, Annotated[float, Field(ge=-100, le=100)]], ...] = ()
    """Added to the logits of tokens, in order of the tokens."""
    structure: Structure | None = None
    """What the answer conforms to."""
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    """Its tokens' log-probabilities are wanted, and those of so many of the likeliest in the place of each."""
    template: str | None = None
    """Settings of the chat template, a JSON object."""
    continue_final_message: bool | None = None
    """Whether the answer goes on after the last message instead of beginning a turn."""
    add_generation_prompt: bool | None = None
    """Whether the template opens the answer's turn."""

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _biases_are_in_order(cls, value: Any) -> Any:
        pairs = value.items() if isinstance(value, dict) else value
        try:
            return sorted((int(token), bias) for token, bias in pairs)
        except (TypeError, ValueError) as error:
            raise ValueError("it maps token ids to numbers") from error

    @property
    def is_for_the_template(self) -> bool:
        """Whether it says anything of how the conversation is put to the model."""
        return any(
            value is not None for value in (self.template, self.continue_final_message, self.add_generation_prompt)
        )

    def dump(self) -> str:
        """Return the JSON text of what differs from the run; the same for equal values."""
        return self.model_dump_json(exclude_defaults=True)

    @classmethod
    def load(cls, text: str | None) -> Sampling | None:
        """Return what `dump` wrote; None for a row that asks for nothing itself."""
        return None if text is None else cls.model_validate_json(text)


def json_text(value: Any) -> str:
    """Return the one JSON text of a value.

    Raises:
        ValueError: It cannot be written as JSON.
    """
    try:
        to_json(value)  # nests less deep than the reader
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"JSON cannot hold it: {error}") from error
