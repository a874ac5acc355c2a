"""How many calls an endpoint is sent at once, and when the next one may go. Pure: no clock, no network.

The law, for a limit of L calls under way:

1. L begins at `first` and grows by one with every answer, which doubles it while all calls under way are answered once;
2. an answer "too many requests" (429) names W, the calls that were under way when it was sent: L becomes 0.9 of that, or
   0.97 from the second time on that it is about the same W. Other calls that were sent before this cut say nothing new, and
   change nothing;
3. below 0.95 W the limit grows by a twentieth while all calls are answered once, then by a hundredth, at least one call,
   after every k such rounds, or half a minute. k quadruples, up to 64, with each 429 at about the same W, and is 1 again at
   another one: a limit that stays is seldom tried, one that moves is followed. It has moved, and 1. holds again, when
   as many calls as W have been answered once;
4. L grows only while it is used, and nothing but a 429 makes it smaller: errors and time-outs never do;
5. `Retry-After` keeps all calls back for at least as long as it says, and a little longer at random. Without it calls are
   kept back from the second 429 in a row on, twice as long each time. What was kept back goes out over the time of one call,
   not at once;
6. once a 429 has come, calls go out apart, L of them in hardly less than the time of one call. Calls that go out together
   come back together, and by a limit of calls a second they would be turned away together for ever;
7. after `OUTAGE_FAULTS` faults with no answer between them the endpoint is held to be down: one call at a time, each after
   twice the wait of the one before, until one is answered. Then all go again.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

OUTAGE_FAULTS = 5
LONGEST_WAIT_SECONDS = 60.0
_FIRST_WAIT_SECONDS = 0.5
_CUT, _SMALL_CUT, _NEAR = 0.9, 0.97, 0.95
_APART = 0.95
_KNOWN_ROUNDS = 4  # k at the second time
_MOST_ROUNDS, _LONGEST_STEP_SECONDS = 64, 30.0


@dataclass(frozen=True, slots=True, eq=False)
class SentCall:
    """A call that was sent.

    Attributes:
        sent_at: When, seconds.
        under_way: Calls under way with it.
        is_trial: Whether it is to tell if an endpoint that was down is up again.
    """

    sent_at: float
    under_way: int
    is_trial: bool


class CallLimit:
    """The law above, for one endpoint as one engine sees it.

    Args:
        first: L at the beginning.
        most: Largest L.
        rng: Of the jitter.
    """

    def __init__(self, *, first: int, most: int, rng: random.Random) -> None:
        self._most, self._rng = most, rng
        self._limit = float(min(first, most))
        self._too_many = math.inf  # W
        self._rounds, self._answers = 1, 0  # k, and the answers since the last step
        self._cut_at = self._fault_at = self._full_at = -math.inf
        self._stepped_at = 0.0
        self._open_at = -math.inf  # nothing goes out before
        self._paced_until, self._next_at = -math.inf, -math.inf
        self._call_seconds = 0.0
        self._was_limited, self._apart_at = False, -math.inf
        self._limits_in_a_row = self._faults_in_a_row = self._outage_waits = 0
        self.under_way = self._trials = 0
        self.last_sign = 0.0
        """When the endpoint last took a call, or the first one was sent to it."""

    @property
    def limit(self) -> int:
        """Calls that may be under way at the same time, were there no waits."""
        return int(self._limit)

    @property
    def is_down(self) -> bool:
        """Whether the endpoint answers nothing but faults."""
        return self._faults_in_a_row >= OUTAGE_FAULTS

    def wait_seconds(self, now: float) -> float:
        """Return how long until the next call may be sent, 0 for at once; infinity until one of those under way ends."""
        if self.under_way >= self.limit or (self.is_down and self._trials):
            return math.inf
        next_at = self._next_at if now < self._paced_until else -math.inf
        return max(0.0, self._open_at - now, next_at - now, self._apart_at - now)

    def send(self, now: float) -> SentCall:
        """Note that a call is sent."""
        self.under_way += 1
        if self.last_sign == 0.0:
            self.last_sign = now
        if now < self._paced_until:
            self._next_at = max(now, self._next_at) + self._call_seconds / self._limit
        if self._was_limited:
            self._apart_at = now + _APART * self._call_seconds / self._limit
        self._trials += self.is_down
        if self.under_way >= self.limit:
            self._full_at = now
        return SentCall(now, self.under_way, is_trial=self.is_down)

    def answered(self, call: SentCall, now: float, *, is_whole: bool = True) -> None:
        """Note an answer; one that only refuses a query is a sign of life and says nothing of the limit."""
        self._end(call, now)
        self._limits_in_a_row = self._faults_in_a_row = self._outage_waits = 0
        if not is_whole:
            return
        seconds = now - call.sent_at
        self._call_seconds += (seconds - self._call_seconds) * (0.1 if self._call_seconds else 1.0)
        if self._full_at >= call.sent_at:
            self._grow(now)

    def limited(self, call: SentCall, now: float, retry_after_seconds: float | None) -> None:
        """Note an answer 429, with what it says of when to come again."""
        self._end(call, now)
        self._was_limited = True
        if call.sent_at > self._cut_at:
            is_same = math.isfinite(self._too_many) and abs(call.under_way - self._too_many) <= 0.25 * self._too_many
            self._rounds = min(4 * self._rounds, _MOST_ROUNDS) if is_same else 1
            self._too_many, self._answers = float(call.under_way), 0
            cut = _SMALL_CUT if self._rounds >= _KNOWN_ROUNDS else _CUT
            self._limit = max(1.0, cut * min(self._limit, call.under_way))
            self._cut_at = self._stepped_at = now
            self._limits_in_a_row += 1
            if retry_after_seconds is None and self._limits_in_a_row > 1:
                self._hold(now, _backoff(self._limits_in_a_row - 2))
        if retry_after_seconds is not None:
            self._hold(now, retry_after_seconds)

    def failed(self, call: SentCall, now: float, *, retry_after_seconds: float | None = None) -> None:
        """Note a fault: no connection, no answer in time, or one that is the endpoint's own error."""
        self.given_up(call)
        self._faults_in_a_row += 1
        if retry_after_seconds is not None:
            self._hold(now, retry_after_seconds)
        if self.is_down and call.sent_at > self._fault_at:
            self._fault_at = now
            self._hold(now, _backoff(self._outage_waits))
            self._outage_waits += 1

    def given_up(self, call: SentCall) -> None:
        """Note that a call under way is not waited for any more."""
        self.under_way -= 1
        self._trials -= call.is_trial

    def _end(self, call: SentCall, now: float) -> None:
        self.given_up(call)
        self.last_sign = now

    def _grow(self, now: float) -> None:
        self._answers += 1
        if self.limit >= self._too_many and self._answers > self._limit:
            self._too_many = math.inf
        if math.isinf(self._too_many):
            self._limit += 1.0
        elif self._limit < _NEAR * self._too_many:
            self._limit += 0.05
        elif self._answers >= self._rounds * self._limit or now - self._stepped_at > _LONGEST_STEP_SECONDS:
            self._limit, self._answers, self._stepped_at = self._limit + max(1.0, 0.01 * self._limit), 0, now
        self._limit = min(self._limit, float(self._most))

    def _hold(self, now: float, seconds: float) -> None:
        until = now + jittered(seconds, self._rng)
        if until > self._open_at:
            self._open_at = self._next_at = until
            self._paced_until = until + self._call_seconds


class RatePerMinute:
    """Amounts a minute: of calls, or of tokens. A second's worth may go at once.

    Args:
        per_minute: Most a minute.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_second = per_minute / 60.0
        self._most = max(self._per_second, 1.0)
        self._left, self._at = self._most, -math.inf

    def wait_seconds(self, now: float, amount: float) -> float:
        """Return how long until so much may go; more than a second's worth may once the last is paid off."""
        missing = min(amount, self._most) - self._left_at(now)
        return max(0.0, missing / self._per_second)

    def take(self, now: float, amount: float) -> None:
        """Note that so much goes; less than nothing gives back."""
        self._left, self._at = min(self._left_at(now) - amount, self._most), now

    def _left_at(self, now: float) -> float:
        return self._left if math.isinf(self._at) else min(self._left + (now - self._at) * self._per_second, self._most)


def jittered(seconds: float, rng: random.Random) -> float:
    """Return a wait that is no shorter, and longer by up to a tenth and a tenth of a second, at most by one second."""
    return seconds + rng.uniform(0.0, min(1.0, 0.1 * seconds + 0.1))


def _backoff(waits: int) -> float:
    return float(min(LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** min(waits, 16)))
