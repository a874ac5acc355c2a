"""Settings of the estimates: what a run knows of a query before it answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from clear_ray.config.base import Settings
from clear_ray.config.bounds import MOST_ROWS

PROBED_SETS = frozenset({"hidden", "logprobs"})
"""Feature sets that the model itself is asked for; all others are read of the words."""

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
        if self.frozen is not None and not is_given and not self.heads:
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
