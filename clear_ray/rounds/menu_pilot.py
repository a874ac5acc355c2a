"""Pilots of a menu: what a model of which nothing is known may cost before it is priced like the others.

**When.** The first pilot asks the first model, whatever comes of it, since nothing can be priced before. Another model is
asked only where it might pay. Let p be the price of what is known when the pilot's money is gone, and C what an answer of
the unknown model is taken to cost: as long as one of the model before it, and at least twice as dear, since models stand in
order of what they cost. Were it always right, a query would gain `w - p C` by it. So a pilot may have the share `1 - p C / w`
of its most: nothing where the whole budget is spent better on what is known, all of it where that leaves money over. A pilot
that would see fewer than three answers is put off until nothing else is worth its price.

**Which queries.** Those that another model has answered wrong: they would be asked next anyhow, and nothing is lost.
Others only where nothing says what is wrong, or nothing known is worth its price any more.

Shapes: N queries, J models.

Source: docs/method.md, section 10.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clear_ray.records import COST_PARTS
from clear_ray.rounds.calls import CallCosts
from clear_ray.rounds.clearing import Clearing, nothing_to_grant
from clear_ray.rounds.stage_sizes import Stages

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
_MOST_SHARE, _LEAST_ANSWERS, _DEARER = 0.1, 3, 2.0


def stretch_J(calls: Sequence[CallCosts]) -> Array:
    """Return how many times as long as the first model's each model's answers are taken to be, before any was seen."""
    cost_J = np.array([float(of.token_parts_N.mean()) for of in calls])
    return np.concatenate([[1.0], np.cumprod(np.maximum(_DEARER * cost_J[:-1] / cost_J[1:], 1.0))])


def supposed_parts(calls: Sequence[CallCosts], tokens_J: Sequence[float | None]) -> list[float]:
    """Return what an answer of each model takes on average, by what is known of the others; thousandths of a unit.

    Args:
        calls: What calls of each model take, the cheapest model first.
        tokens_J: Tokens of an average answer of each model; None where it is not known. One at least is.
    """
    known = [model for model, tokens in enumerate(tokens_J) if tokens is not None]
    found: list[float] = []
    for model, of in enumerate(calls):
        like = max((other for other in known if other <= model), default=known[0])
        parts = float((of.token_parts_N * (tokens_J[like] or 0.0) + of.read_parts_N * of.prompt_tokens_N).mean())
        found.append(max(parts, _DEARER * found[-1]) if like < model else parts)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Pilot:
    """What pilots may take, and their grants.

    Attributes:
        calls: What calls of each model take.
        max_tokens_JN: Ceilings by model.
        stages: Sizes.
        budget_tokens: Of the run, in the budget's unit.
        weight: Mean value of a right answer.
    """

    calls: tuple[CallCosts, ...]
    max_tokens_JN: Integers
    stages: Stages
    budget_tokens: int
    weight: float

    @property
    def queries(self) -> int:
        """How many queries there are, N."""
        return int(self.max_tokens_JN.shape[1])

    @property
    def least_answers(self) -> int:
        """So many answers of a model are seen before it is priced."""
        return min(_LEAST_ANSWERS, self.stages.pilot_size(self.queries))

    @staticmethod
    def left_tokens(available_tokens: int, answers: int) -> int:
        """Return what is surely left for what is known beside a pilot.

        Lengths spread by about their mean, so what an answer takes is known after n of them to one part in the root of n.

        Args:
            available_tokens: What there is, in the budget's unit.
            answers: How many were seen.
        """
        return int((1.0 - _MOST_SHARE) * available_tokens / (1.0 + max(answers, 1) ** -0.5))

    def share_parts(self, available_tokens: int, *, price: float, answer_parts: float) -> float:
        """Return what the pilot of a model may take.

        Args:
            available_tokens: What there is, in the budget's unit.
            price: Of what is known, by `left_tokens`.
            answer_parts: What an answer of the model is taken to cost.
        """
        gain = max(1.0 - price * answer_parts / COST_PARTS / self.weight, 0.0)
        return _MOST_SHARE * gain * available_tokens * COST_PARTS

    def grants(self, model: int, order: Integers, *, share_parts: float, at_least_parts: int = 0) -> Clearing:
        """Grant queries a generous ceiling each, as many as a share pays for.

        Args:
            model: Which model they are asked of.
            order: The queries, in the order in which they are asked.
            share_parts: What the pilot may take.
            at_least_parts: What its first answer may take, where the share pays for none.
        """
        calls, left, none = self.calls[model], share_parts, np.zeros(1, np.int64)
        grants: list[tuple[int, int, int]] = []
        for query in order[self.max_tokens_JN[model, order] > 0][: self.stages.pilot_size(self.queries)].tolist():
            one, room = np.array([query]), int(self.max_tokens_JN[model, query])
            least = min(self.stages.smallest_ceiling_tokens, room)
            if not grants:
                left = max(left, min(int(calls.taken_parts(one, np.array([least]), none)[0]), at_least_parts))
            tokens = min(room, int(calls.affordable_tokens(int(left), one, none)[0]))
            if tokens < least:
                break
            tokens = min(tokens, self._ceiling(model, query))
            grants.append((query, tokens, int(calls.taken_parts(one, np.array([tokens]), none)[0])))
            left -= grants[-1][2]
        if not grants:
            return nothing_to_grant(self.queries)
        index_M, tokens_M, parts_M = np.array(grants, np.int64).T
        return replace(
            nothing_to_grant(self.queries),
            index_M=index_M,
            tokens_M=tokens_M,
            expected_tokens_M=tokens_M.astype(np.float64),
            expected_utility_M=np.zeros(len(index_M)),
            option_M=np.full(len(index_M), model),
            is_fresh_M=np.ones(len(index_M), bool),
            reserved_parts_M=parts_M,
        )

    def _ceiling(self, model: int, query: int) -> int:
        """Return a generous ceiling: a multiple of what the budget pays for, were it shared equally."""
        calls, one = self.calls[model], np.array([query])
        parts = int(self.stages.pilot_ceiling * self.budget_tokens * COST_PARTS / self.queries)
        tokens = int(calls.affordable_tokens(parts, one, np.zeros(1, np.int64))[0])
        return max(tokens, self.stages.smallest_ceiling_tokens)
