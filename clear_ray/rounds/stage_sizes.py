"""How large the pilot and the stages of a run are that teaches itself.

Source: method.md section 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stages:
    """Sizes of pilot and stages.

    Attributes:
        pilot_queries: Most answers of the pilot, in a batch of up to a thousand queries; it grows with the root of more.
        queries_a_pilot_query: So many queries of the batch for one of the pilot.
        pilot_ceiling: Ceiling of the pilot, in average budgets of a query.
        smallest_ceiling_tokens: And at least this.
        growth: A stage spends at least this multiple of what was spent before.
        most_stages: Most stages from the pilot to half of the budget; the growth is more where it has to be.
        most_rounds: After so many all that is left is granted: where ceilings are far above what answers take, stages grow
            slowly, and rounds are not without end.
        explored_share: Explored part of the budget; once it is spent the guard is heeded.
        longer_share: Beside what a stage grants, so much of it for answers that were cut off, to go on to twice their length.
    """

    pilot_queries: int = 16
    queries_a_pilot_query: int = 25
    pilot_ceiling: float = 4.0
    smallest_ceiling_tokens: int = 16
    growth: float = 0.4
    most_stages: int = 9
    most_rounds: int = 12
    explored_share: float = 0.15
    longer_share: float = 0.1

    def pilot_size(self, queries: int) -> int:
        """Return how many queries the pilot asks."""
        most: float = self.pilot_queries * max(1.0, math.sqrt(queries / 1_000))
        return max(1, min(round(most), -(-queries // self.queries_a_pilot_query)))

    def pilot_ceiling_tokens(self, queries: int, *, budget_tokens: float) -> int:
        """Return the ceiling of a query of the pilot."""
        return max(int(self.pilot_ceiling * budget_tokens / max(queries, 1)), self.smallest_ceiling_tokens)

    def stage_tokens(self, queries: int, *, budget_tokens: float, spent_tokens: float, round_number: int) -> float:
        """Return what the next stage may spend.

        Args:
            queries: Number of queries, N.
            budget_tokens: Of the run.
            spent_tokens: What was spent so far.
            round_number: Rounds so far; the first is the pilot.
        """
        # Answers of a pilot take about half of their ceilings. Where they were shorter, stages begin no smaller for it.
        pilot_tokens = 0.5 * self.pilot_size(queries) * self.pilot_ceiling_tokens(queries, budget_tokens=budget_tokens)
        known_tokens = max(spent_tokens, min(pilot_tokens, budget_tokens))
        reach = max(0.5 * budget_tokens / known_tokens, 1.0)
        stages_left = max(self.most_stages + 1 - round_number, 1)
        return known_tokens * max(self.growth, math.exp(math.log(reach) / stages_left) - 1.0)

    def part_tokens(self, queries: int, pilot: int, *, budget_tokens: float, spent_tokens: float) -> float:
        """Return the same of a part that grows: of how many stages it has had the number of rounds says nothing.

        So a stage grows by what leads from the pilot to half of the part's budget in as many stages as ever.

        Args:
            queries: Number of queries that are known.
            pilot: How many of them the pilot asks.
            budget_tokens: What they have of the budget.
            spent_tokens: What was spent so far.
        """
        pilot_tokens = 0.5 * pilot * self.pilot_ceiling_tokens(queries, budget_tokens=budget_tokens)
        least_tokens = max(min(pilot_tokens, budget_tokens), 1.0)
        known_tokens, half_tokens = max(spent_tokens, least_tokens), 0.5 * budget_tokens
        growth = math.exp(math.log(max(half_tokens / least_tokens, 1.0)) / self.most_stages) - 1.0
        return known_tokens * max(self.growth, min(growth, half_tokens / known_tokens - 1.0))
