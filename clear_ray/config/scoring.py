"""Settings of the scores: whether and how answers are compared, with gold answers or with each other."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clear_ray.config.base import Settings

VoteKind = Literal["exact", "number", "choice", "math", "json"]
"""Kinds of scorers whose final answers can be compared with each other."""


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
