"""How many engines a batch calls for: planned tokens, measured rate, deadline and bounds. Pure: no Ray, no clock.

The law, for engines that each generate `r` tokens a second, of which `n` are there, and that take `s` seconds to start:

1. never more than the round can fill: round tokens / tokens of one full batch, rounded up. An engine beyond that would
   find no query that is not running already;
2. with a deadline `d` seconds away, the fewest that make the rest of the run's tokens `T` in time, those to come working
   from `s` on:  n r s + m r (d - s) >= T;  as many as there may be if none makes it;
3. without one, the most that each work for as long as one takes to start:  T / m r >= s. More would cost more time of GPUs
   than they save of the batch;
4. none to come if those that are there are done before it could start:  T <= n r s;
5. within the bounds, and n, bounded, as long as nothing is known of r.

The rate is measured. Tokens are only seen when answers end, so what the first answers of an engine say is too little:
`RateMeter` leaves out what comes before every engine has ended one batch, and begins anew when their number changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """What is still to be generated.

    Attributes:
        run_tokens: Tokens in all rounds, by the plan.
        round_tokens: Tokens in the round under way, by the plan.
        batch_tokens: Tokens of one engine's full batch of queries of this round, above 0.
    """

    run_tokens: float
    round_tokens: float
    batch_tokens: float

    def after(self, tokens: float) -> Work:
        """Return what is left of it once so many tokens have been generated."""
        return Work(max(self.run_tokens - tokens, 0.0), max(self.round_tokens - tokens, 0.0), self.batch_tokens)


def planned_work(*, expected_tokens: float, queries: int, slots: int, available_tokens: float, is_scarce: bool) -> Work:
    """Return the work that a clearing plans.

    Args:
        expected_tokens: What the round's grants are expected to generate.
        queries: How many they are, at least 1.
        slots: Queries that one engine runs at once.
        available_tokens: What may be generated of all that the ledger has left.
        is_scarce: Whether the budget binds: then what comes back is sold again, until all is spent.
    """
    round_tokens = min(expected_tokens, available_tokens)
    return Work(
        run_tokens=available_tokens if is_scarce else round_tokens,
        round_tokens=round_tokens,
        batch_tokens=max(round_tokens / queries, 1.0) * slots,
    )


def workers_wanted(
    work: Work,
    *,
    workers: int,
    tokens_per_second: float | None,
    start_seconds: float,
    seconds_left: float | None,
    least: int,
    most: int,
) -> int:
    """Return how many engines the work calls for, by the law above.

    Args:
        work: What is still to be generated.
        workers: Engines that are there.
        tokens_per_second: Rate of one of them; None if not known yet.
        start_seconds: How long one takes to start, waiting for its node included.
        seconds_left: Time until the deadline; None if there is none.
        least: Fewest wanted.
        most: Most wanted, at least `least`.
    """
    fill = math.ceil(work.round_tokens / work.batch_tokens)
    wanted = workers
    if tokens_per_second:
        if seconds_left is None:
            wanted = int(min(work.run_tokens / (tokens_per_second * max(start_seconds, 1.0)), most))
        else:
            wanted = _in_time(work.run_tokens, workers, tokens_per_second, start_seconds, seconds_left, most)
        if work.run_tokens <= workers * tokens_per_second * start_seconds:
            wanted = min(wanted, workers)
    return min(max(min(wanted, fill), least), most)


def _in_time(tokens: float, workers: int, rate: float, start_seconds: float, seconds_left: float, most: int) -> int:
    """Return the fewest engines that make so many tokens in time, or `most` if none do."""
    if tokens <= workers * rate * seconds_left:
        each_makes = rate * seconds_left  # next to nothing is rounded to nothing
        return math.ceil(tokens / each_makes) if tokens and each_makes else 0
    if seconds_left <= start_seconds:
        return most
    return int(
        min(math.ceil((tokens - workers * rate * start_seconds) / (rate * (seconds_left - start_seconds))), most)
    )


class RateMeter:
    """Tokens a second of one engine, from how many there are and what has been generated.

    Args:
        tokens_per_second: What is known before anything was measured.
    """

    def __init__(self, tokens_per_second: float | None = None) -> None:
        self.tokens_per_second = tokens_per_second
        self.is_measured = False
        self._workers = 0
        self._since: tuple[float, float] = (0.0, 0.0)
        self._is_open = False

    def begin(self) -> None:
        """Forget what was under way: a round begins, with engines that have nothing running."""
        self._workers = 0

    def note(self, *, seconds: float, workers: int, tokens: float, batch_tokens: float) -> None:
        """Take a look.

        Args:
            seconds: The clock, from any origin.
            workers: Engines that are up.
            tokens: Generated so far in all, as far as answers have ended.
            batch_tokens: See `Work`.
        """
        if workers != self._workers:
            self._workers, self._since, self._is_open = workers, (seconds, tokens), False
        passed, made = seconds - self._since[0], tokens - self._since[1]
        if not workers or passed <= 0 or made < batch_tokens * workers:
            return
        if self._is_open:
            self.tokens_per_second, self.is_measured = made / (passed * workers), True
        else:
            self._since, self._is_open = (seconds, tokens), True
