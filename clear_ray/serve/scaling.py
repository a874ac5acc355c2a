"""How many engine replicas: tokens outstanding over tokens per second.

Every replica reports its outstanding tokens (the ceilings of its open grants less what has come of them), how many grants
those are, and the tokens per second that it brings when it has enough to do. With Q such tokens in all, those of queries that
wait for a replica included, and r tokens per second for each replica,

    replicas = Q / (r * target_seconds), rounded up; at least 1, at most one for each grant

so that what is outstanding is generated within `target_seconds`. No rate measured yet means no change. Serve keeps the
bounds and the delays (`up_seconds`, `down_seconds`).

Imported by Serve's controller: nothing heavy here, and nothing of ours.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

OUTSTANDING, GRANTS, RATE = "outstanding_tokens", "open_grants", "tokens_per_second"
"""Names of what a replica reports."""


class TokenRate:
    """The tokens per second that an engine brings when it has enough to do: the highest mean over a few seconds.

    The highest, because an engine with one short query brings less than it could, and counting that would start replicas
    where there is no work.

    Args:
        mean_seconds: Whole seconds over which one mean is taken.
        memory_seconds: How far back from the newest tokens the highest mean is looked for.
    """

    def __init__(self, *, mean_seconds: int = 5, memory_seconds: int = 300) -> None:
        self._mean_seconds, self._memory_seconds = mean_seconds, memory_seconds
        self._counts: deque[list[int]] = deque()  # [second, tokens], only seconds that brought any

    def add(self, tokens: int, now_seconds: float) -> None:
        """Note tokens at a time of a steady clock."""
        second = math.floor(now_seconds)
        if not self._counts or self._counts[-1][0] != second:
            self._counts.append([second, 0])
        self._counts[-1][1] += tokens
        while self._counts[0][0] < second - self._memory_seconds:
            self._counts.popleft()

    def tokens_per_second(self) -> float:
        """Return the highest mean over `mean_seconds` whole seconds; 0 before so many have passed since the first token."""
        if not self._counts or self._counts[-1][0] - self._counts[0][0] < self._mean_seconds:
            return 0.0
        highest = held = 0
        window: deque[list[int]] = deque()
        for second, tokens in list(self._counts)[:-1]:  # the newest second is not over
            window.append([second, tokens])
            held += tokens
            while window[0][0] <= second - self._mean_seconds:
                held -= window.popleft()[1]
            highest = max(highest, held)
        return highest / self._mean_seconds


class Outstanding:
    """What one replica still has to bring, and how fast it brings it."""

    def __init__(self) -> None:
        self._rate = TokenRate()
        self.grants = self.tokens = 0

    def open(self, tokens: int) -> None:
        """Note a grant."""
        self.grants, self.tokens = self.grants + 1, self.tokens + tokens

    def bring(self, tokens: int, now_seconds: float) -> None:
        """Note tokens that came of an open grant."""
        self.tokens -= tokens
        self._rate.add(tokens, now_seconds)

    def close(self, unused_tokens: int) -> None:
        """Note the end of a grant of which so much is left."""
        self.grants, self.tokens = self.grants - 1, self.tokens - unused_tokens

    def report(self) -> dict[str, float]:
        """Return what the policy reads, by name."""
        return {OUTSTANDING: self.tokens, GRANTS: self.grants, RATE: self._rate.tokens_per_second()}


def wanted_replicas(
    *, outstanding_tokens: float, grants: float, tokens_per_second: float, target_seconds: float, present: int
) -> int:
    """Return how many replicas the outstanding tokens call for.

    Args:
        outstanding_tokens: Tokens on all replicas, and of queries that wait for one.
        grants: How many they are of.
        tokens_per_second: Rate of one replica; 0 if none has been measured.
        target_seconds: Time in which they are to be generated.
        present: Replicas there are.
    """
    if grants and not tokens_per_second:
        return present
    needed = outstanding_tokens / (tokens_per_second * target_seconds) if tokens_per_second else 0.0
    return max(1, min(math.ceil(needed), math.ceil(grants)))


class TokenPolicy:
    """Serve's autoscaling policy, called every moment with what the replicas have reported.

    Args:
        target_seconds: See `wanted_replicas`.
    """

    def __init__(self, target_seconds: float) -> None:
        self._target_seconds = target_seconds

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas to have, and no state."""
        reports = {
            name: list((ctx.aggregated_metrics or {}).get(name, {}).values()) for name in (OUTSTANDING, GRANTS, RATE)
        }
        tokens, grants = sum(reports[OUTSTANDING]), sum(reports[GRANTS])
        if grants >= 1:
            # Those that wait for a replica are like those that have one.
            waiting = ctx.total_queued_requests or 0
            tokens, grants = tokens * (1 + waiting / grants), grants + waiting
        rates = [rate for rate in reports[RATE] if rate > 0]
        wanted = wanted_replicas(
            outstanding_tokens=tokens,
            grants=grants,
            tokens_per_second=sum(rates) / len(rates) if rates else 0.0,
            target_seconds=self._target_seconds,
            present=ctx.target_num_replicas,
        )
        return wanted, {}
