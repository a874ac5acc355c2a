"""What a call takes from a budget that pays for prompts: a fixed cost, and a cost for each generated token.

Every call reads its prompt. One that goes on with an answer reads that, too, unless the endpoint has it in a cache, which
cannot be counted on: it is reserved in full and settled by usage. Numbers are whole thousandths of the budget's unit
(`records.COST_PARTS`), as the ledger counts them.

Shapes: N queries, M of them chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CallCosts:
    """Costs of the calls of one model.

    Attributes:
        token_parts_N: What a generated token takes.
        read_parts_N: What a token takes that is read.
        prompt_tokens_N: Tokens of each prompt.
    """

    token_parts_N: Integers
    read_parts_N: Integers
    prompt_tokens_N: Integers

    def take(self, index: Integers) -> CallCosts:
        """Return those of some of the queries."""
        return CallCosts(self.token_parts_N[index], self.read_parts_N[index], self.prompt_tokens_N[index])

    def fixed_parts(self, index_M: Integers, answer_tokens_M: Integers) -> Integers:
        """Return what a call takes before its first token.

        Args:
            index_M: The queries.
            answer_tokens_M: Tokens of the answer that is gone on with; 0 for one that begins.
        """
        return self.read_parts_N[index_M] * (self.prompt_tokens_N[index_M] + answer_tokens_M)

    def taken_parts(self, index_M: Integers, tokens_M: Integers, answer_tokens_M: Integers) -> Integers:
        """Return what calls take that generate so many tokens; nothing where they are 0, as there is no call then."""
        taken_M = self.fixed_parts(index_M, answer_tokens_M) + self.token_parts_N[index_M] * tokens_M
        return np.where(tokens_M > 0, taken_M, 0)

    def affordable_tokens(self, parts: int, index_M: Integers, answer_tokens_M: Integers) -> Integers:
        """Return how many tokens of each query could be paid for, were they all that is bought."""
        left_M = parts - self.fixed_parts(index_M, answer_tokens_M)
        return np.asarray(np.maximum(left_M // self.token_parts_N[index_M], 0), np.int64)
