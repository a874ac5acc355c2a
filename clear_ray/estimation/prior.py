"""Curves for a model that was never calibrated: a documented guess, weak on purpose.

Nothing is known here but the prompt's length and how sure the model is of its first token. What the prior says:

- Lengths follow a Weibull law of shape 1/2: survival after t tokens is exp(-sqrt(t / m)). Its hazard falls with t, so
  success is concave in spend and equal queries get equal ceilings: with no information the policy is uniform.
- At price p a query's ceiling solves s * hazard(t) = p, hence `t = s^2 / (4 m p^2)`: the ceilings of two queries are in
  the ratio of their s^2 / m at every price. So the effects below bound how far from uniform the policy can go.
- A sharper first token means a likelier right answer: solvability s falls with entropy by at most 10 % either way.
- A longer prompt means a longer answer: m grows with the tenth root of the prompt's length, by at most 32 % either way.

All ceilings therefore lie within a factor of about two of the uniform one, and no query is written off on a guess.

Source: ours; no paper. The law is chosen for the property in the first two points, not fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features, Prompt
from clear_ray.estimation.curves import Curves, curves_from_incidence, token_grid
from clear_ray.estimation.head import ANY_MODEL, Arrays, Head, HeadCard

Curve = NDArray[np.float64]
_TYPICAL_PROMPT_TOKENS = 100.0
_SCALE_TOKENS = 150.0
_LENGTH_POWER = 0.1
_SOLVABILITY = 0.5
_ENTROPY_EFFECT = 0.1
_TYPICAL_ENTROPY_NATS = 0.5


def uninformed(
    tokens_K: NDArray[np.int64], *, solvability: float = _SOLVABILITY, scale_tokens: float = _SCALE_TOKENS
) -> tuple[Curve, Curve]:
    """Return success and survival of a query of which nothing at all is known, each of shape (K,)."""
    survival_K: Curve = np.exp(-np.sqrt(tokens_K / scale_tokens))
    return solvability * (1 - survival_K), survival_K


class PriorHead(Head):
    """The prior as a head; fits any model.

    Args:
        cap_tokens: Last point of the token grid: the largest ceiling any query may be given.
        probe_layers: Layers of the model that the probe runs; None for all.
    """

    def __init__(self, *, cap_tokens: int = 1024, probe_layers: int | None = None) -> None:
        super().__init__(
            HeadCard(
                kind="prior",
                model_name="any",
                model_fingerprint=ANY_MODEL,
                data_digest="",
                seeds=(),
                tokens_K=tuple(token_grid(cap_tokens).tolist()),
                created_by="built in",
                probe_layers=probe_layers,
            )
        )

    def curves(self, features: Features, prompts: Sequence[Prompt], query_ids: Sequence[str]) -> Curves:
        """Estimate curves from prompt length and next-token entropy; see the module for the formulas."""
        prompt_tokens_N = np.maximum(features.prompt_tokens_N.astype(np.float64), 1.0)
        ratio_N = np.clip(prompt_tokens_N / _TYPICAL_PROMPT_TOKENS, 1 / 16, 16.0)
        scale_N = _SCALE_TOKENS * ratio_N**_LENGTH_POWER
        entropy_N = np.nan_to_num(features.entropy_N.astype(np.float64), nan=_TYPICAL_ENTROPY_NATS)
        # tanh keeps the factor within 1 +- _ENTROPY_EFFECT, whatever the entropy.
        solvability_N = _SOLVABILITY * (1 - _ENTROPY_EFFECT * np.tanh(entropy_N - _TYPICAL_ENTROPY_NATS))
        tokens_K = self.tokens_K
        survival_NK = np.exp(-np.sqrt(tokens_K / scale_N[:, None]))
        return curves_from_incidence(
            solvability_N[:, None] * (1 - survival_NK), survival_NK=survival_NK, tokens_K=tokens_K
        )

    def arrays(self) -> Arrays:
        """Return nothing: the prior has no fitted numbers."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return the cap."""
        return {"cap_tokens": self._card.tokens_K[-1]}

    @classmethod
    def restore(cls, card: HeadCard, arrays: Arrays, settings: dict[str, Any]) -> Self:
        """Make the head again."""
        return cls(cap_tokens=int(settings["cap_tokens"]), probe_layers=card.probe_layers)
