"""How many calls an endpoint is sent at once, and how many a second. Pure: no clock, no network.

An endpoint turns a call away (429) because too many are under way, or because too many came in too short a time. It does not
say which. So two limits are sought: L calls under way, and R calls a second. Most providers limit the second, most servers
of one's own the first. The law:

1. L begins at `first` and grows by one with every call that is taken, while it is used. R is not known yet. A call is taken
   once it is answered, or has been under way for longer than an endpoint takes to turn one away. L calls go out evenly, in a
   second or the time of a call.
2. A 429 cuts the limit that kept calls back at the time: R if they waited for their turn and places were left, else L, to
   the calls that were under way beside the one turned away. Where clearly more have been taken lately, it is R. Other calls
   that were sent before the 429 came say nothing new, and change nothing.
3. After a 429 none goes out for as long as `Retry-After` says, and a little longer at random; without it, or below that, a
   quarter of a second, twice as long each time in a row, up to four seconds. Then one goes out alone. If L was cut at a new
   place, that one may exceed it: taken where the other was turned away, it shows that L was not to blame. L is given back,
   and R is cut.
4. R is halved as long as few calls are taken between two 429. Then it becomes the middle of two bounds. The calls taken
   since the last 429 were more a second than R, because they used up what the endpoint had saved; counted over the time
   until calls are taken again, they were fewer. What R was before it was raised for the last time is a lower bound too.
   After several 429 in a row it becomes the second of these: how long it turned calls away was the endpoint's own choice.
5. A limit that was cut is raised while it keeps calls back: L by a hundredth, at least one, R by a fiftieth, then by twice
   as much each time. It begins after k seconds and k answers. k quadruples, up to 32, when it is cut at about the same
   place again, and is 1 at another: a limit that stays is seldom tried, one that moves is followed.
6. After the first 429 L calls go out in no less than half the time of one: calls that go out together come back together.
7. Nothing but a 429 makes a limit smaller: errors and time-outs never do. After `OUTAGE_FAULTS` faults with no answer
   between them the endpoint is held to be down: one call at a time, each after twice the wait of the one before, until one
   is answered. Then all go again.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from clear_ray.engine.endpoint.sought import SoughtLimit

OUTAGE_FAULTS = 5
LONGEST_WAIT_SECONDS = 60.0
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS, _TOLD_BEFORE_BACKOFF = 0.25, 4.0, 3
_OUTAGE_WAIT_SECONDS = 0.5
_RAMP_SECONDS = 1.0  # in which L calls go out at first; a call of that age was taken
_LEAST_TAKEN_SECONDS, _TURNED_AWAY_TIMES = 0.25, 3.0
_FEW_TAKEN = 5
_LATE_SHARE, _LATE_SECONDS = 0.1, 0.01  # by which a timer may be late without calls going out more slowly for it


@dataclass(frozen=True, slots=True, eq=False)
class SentCall:
    """A call that was sent.

    Attributes:
        sent_at: When, seconds.
        under_way: Calls under way with it.
        is_full: Whether no more than it may be under way.
        is_paced: Whether it had to wait for its turn by R.
    """

    sent_at: float
    under_way: int
    is_full: bool
    is_paced: bool


@dataclass(slots=True)
class _Refusal:
    """The first of some 429 in a row, while it is not over.

    Attributes:
        call: The call that was turned away.
        at_once: What L was.
        is_of_pace: Whether it is R that is cut.
        is_open: Whether the next call may exceed L, to tell which of the two it was.
        times: 429 in a row.
    """

    call: SentCall
    at_once: float
    is_of_pace: bool
    is_open: bool
    times: int = 1


class CallLimit:
    """The law above, for one endpoint as one engine sees it.

    Args:
        first: L at the beginning.
        most: Largest L.
        rng: Of the jitter.
    """

    def __init__(self, *, first: int, most: int, rng: random.Random) -> None:
        self._rng = rng
        self._at_once = SoughtLimit(float(min(first, most)), most=float(most), step=1.0, step_share=0.01)
        self._pace: SoughtLimit | None = None
        self._young: dict[SentCall, None] = {}  # not known to be taken, the oldest first
        self._trial: SentCall | None = None
        self._needs_trial = self._was_limited = False
        self._refusal: _Refusal | None = None
        self._call_seconds = self._refusal_seconds = 0.0
        self._full_at = self._paced_at = self._cut_at = self._fault_at = -math.inf
        self._open_at, self._next_at = -math.inf, -math.inf  # nothing goes out before
        self._taken, self._taken_since = 0, math.nan  # since the last 429 was over
        self._most_taken = _RecentMost()
        self._faults_in_a_row = self._outage_waits = 0
        self.under_way = 0
        self.last_sign = 0.0
        """When the endpoint last took a call, or the first one was sent to it."""

    @property
    def limit(self) -> int:
        """Calls that may be under way at the same time, were there no waits."""
        return int(self._at_once.value)

    @property
    def per_second(self) -> float | None:
        """Calls a second that the endpoint takes, as far as it has shown that it limits them."""
        return None if self._pace is None else self._pace.value

    @property
    def is_down(self) -> bool:
        """Whether the endpoint answers nothing but faults."""
        return self._faults_in_a_row >= OUTAGE_FAULTS

    def wait_seconds(self, now: float) -> float:
        """Return how long until the next call may be sent, 0 for at once; infinity until one of those under way ends."""
        self._note_taken(now)
        if self._trial is not None:
            return self._until_taken(now)
        if self.under_way >= self.limit and not self._may_exceed:
            due = self._raised_at_once(now)
            if self.under_way >= self.limit:
                return min(due, self._until_taken(now))
        return max(0.0, self._open_at - now, self._next_at - now)

    def send(self, now: float) -> SentCall:
        """Note that a call is sent."""
        self.under_way += 1
        if self.last_sign == 0.0:
            self.last_sign = self._taken_since = now
        call = SentCall(now, self.under_way, self.under_way >= self._full, self._is_paced_after(now))
        self._full_at = now if call.is_full else self._full_at
        self._paced_at = now if call.is_paced else self._paced_at
        self._young[call] = None
        if self._needs_trial:
            self._trial, self._needs_trial = call, False
        return call

    def answered(self, call: SentCall, now: float, *, is_whole: bool = True) -> None:
        """Note an answer; one that only refuses a query is a sign of life and says nothing of the limit."""
        self.under_way -= 1
        self.last_sign = now
        self._faults_in_a_row = self._outage_waits = 0
        if is_whole:
            seconds = now - call.sent_at
            self._call_seconds += (seconds - self._call_seconds) * (0.1 if self._call_seconds else 1.0)
            for sought in (self._at_once, self._pace):
                if sought is not None:
                    sought.answers_due -= 1
        if call in self._young:
            self._take(call, now)

    def limited(self, call: SentCall, now: float, retry_after_seconds: float | None) -> None:
        """Note an answer 429, with what it says of when to come again."""
        is_trial = call is self._trial
        self._forget(call)
        self.last_sign, self._was_limited = now, True
        self._refusal_seconds = max(now - call.sent_at, 0.9 * self._refusal_seconds)
        seconds = 0.0 if retry_after_seconds is None else retry_after_seconds
        if call.sent_at > self._cut_at or is_trial:
            if self._refusal is None:
                self._refusal = self._cut(call, now)
            else:
                self._refusal.times += 1
            self._cut_at, self._needs_trial = now, True
            waits, first = self._refusal.times - 1, _FIRST_BACKOFF_SECONDS
            if seconds > first:  # a date that is over says nothing
                waits, first = max(0, waits - _TOLD_BEFORE_BACKOFF + 1), seconds
            seconds = max(seconds, _backoff(first, waits, _LONGEST_BACKOFF_SECONDS))
        self._hold(now, seconds)

    def failed(self, call: SentCall, now: float, *, retry_after_seconds: float | None = None) -> None:
        """Note a fault: no connection, no answer in time, or one that is the endpoint's own error."""
        self.given_up(call)
        self._faults_in_a_row += 1
        if retry_after_seconds is not None:
            self._hold(now, retry_after_seconds)
        if self.is_down and call.sent_at > self._fault_at:
            self._fault_at, self._needs_trial = now, True
            self._hold(now, _backoff(_OUTAGE_WAIT_SECONDS, self._outage_waits, LONGEST_WAIT_SECONDS))
            self._outage_waits += 1

    def given_up(self, call: SentCall) -> None:
        """Note that a call under way is not waited for any more."""
        self._needs_trial |= call is self._trial
        self._forget(call)

    def _forget(self, call: SentCall) -> None:
        self.under_way -= 1
        self._young.pop(call, None)
        if call is self._trial:
            self._trial = None

    @property
    def _full(self) -> float:
        """Calls under way of which it is said that they are as many as may be."""
        return 0.99 * self.limit if self._was_limited else 0.95 * self.limit - 1.0

    @property
    def _may_exceed(self) -> bool:
        """Whether the next call goes out however many are under way."""
        is_to_tell = self._refusal is not None and self._refusal.is_open and self._refusal.times <= 2
        return self._needs_trial and (self.is_down or is_to_tell)

    @property
    def _taken_seconds(self) -> float:
        if not self._was_limited:
            return _RAMP_SECONDS
        return max(_LEAST_TAKEN_SECONDS, _TURNED_AWAY_TIMES * self._refusal_seconds)

    def _until_taken(self, now: float) -> float:
        if self.is_down or not self._young:
            return math.inf
        return max(1e-6, next(iter(self._young)).sent_at + self._taken_seconds - now)

    def _note_taken(self, now: float) -> None:
        """Note the calls that are too old to be turned away; of one that is down only answers count."""
        while self._young and not self.is_down:
            call = next(iter(self._young))
            if call.sent_at + self._taken_seconds > now + 1e-9:
                return
            self._take(call, now)

    def _take(self, call: SentCall, now: float) -> None:
        del self._young[call]
        self._taken += 1
        self._most_taken.note(call.under_way, now, seconds=max(5.0, 2.0 * self._call_seconds))
        if call is self._trial:
            self._trial = None
            if self._refusal is not None:
                self._end_refusal(self._refusal, call, now)
        if not self._was_limited:
            if self._full_at >= call.sent_at:
                self._at_once.value = min(self._at_once.value + 1.0, self._at_once.most)
            return
        if call.sent_at <= self._cut_at:
            return
        if self._full_at >= call.sent_at:
            self._at_once.raise_value(now)
        if self._pace is not None and self._paced_at >= call.sent_at:
            self._pace.raise_value(now)

    def _raised_at_once(self, now: float) -> float:
        """Raise L if all calls under way were taken and it is time; return the seconds until it is."""
        if not self._was_limited or self._young or self._needs_trial:
            return math.inf
        self._at_once.raise_value(now)
        return max(1e-6, self._at_once.due_at - now)

    @property
    def _gap_seconds(self) -> float:
        """Seconds in which L calls go out, by L alone."""
        seconds = self._call_seconds or _RAMP_SECONDS
        return max(min(_RAMP_SECONDS, seconds), 0.5 * seconds if self._was_limited else 0.0)

    def _is_paced_after(self, now: float) -> bool:
        """Set when the next call may go; return whether this one was kept back by R."""
        gap, is_paced = self._gap_seconds / self._at_once.value, False
        if self._pace is not None and self._pace.value * gap < 1.0:
            gap = 1.0 / self._pace.value
            is_paced = now - self._next_at < 0.5 * gap
        is_in_time = now - self._next_at < max(_LATE_SHARE * gap, _LATE_SECONDS)
        self._next_at = (self._next_at if is_in_time else now) + gap
        return is_paced

    def _cut(self, call: SentCall, now: float) -> _Refusal:
        """Cut what a first 429 is about; R only when calls are taken again."""
        before, most = self._at_once.value, self._most_taken.value
        if (call.is_paced and not call.is_full) or call.under_way < min(0.9 * most, most - 1.0):
            return _Refusal(call, before, is_of_pace=True, is_open=False)
        self._at_once.cut(max(1.0, min(before, call.under_way - 1.0)), now)
        return _Refusal(call, before, is_of_pace=False, is_open=self._at_once.is_new)

    def _end_refusal(self, refusal: _Refusal, trial: SentCall, now: float) -> None:
        """Go on after one or more 429, now that a call was taken."""
        self._refusal = None
        if refusal.is_open and trial.under_way >= refusal.call.under_way:
            self._at_once.give_back(max(refusal.at_once, trial.under_way + 1.0), now)
            refusal.is_of_pace = True
        if refusal.is_of_pace:
            self._cut_pace(refusal, trial, now)
        if self._pace is not None:
            self._next_at = max(self._next_at, trial.sent_at + 1.0 / self._pace.value)
        self._taken, self._taken_since = 1, trial.sent_at

    def _cut_pace(self, refusal: _Refusal, trial: SentCall, now: float) -> None:
        if self._pace is None:
            value = refusal.at_once / self._gap_seconds
            self._pace = SoughtLimit(value, most=math.inf, step=0.0, step_share=0.02, seconds=2.0, same_share=0.98)
        before, taken = self._pace.value, self._taken - 1  # without the trial
        found = least = 0.5 * before
        if taken >= _FEW_TAKEN:
            low = taken / max(0.01, trial.sent_at - self._taken_since)
            high = min(before, taken / max(0.01, refusal.call.sent_at - self._taken_since))
            # After several 429 in a row the time of waiting was the endpoint's own, so it counts.
            found = low if refusal.times > 1 else max(least, 0.5 * (max(low, self._pace.before or 0.0) + high))
        self._pace.cut(min(before, found), now)

    def _hold(self, now: float, seconds: float) -> None:
        if seconds > 0.0:
            self._open_at = max(self._open_at, now + jittered(seconds, self._rng))


class _RecentMost:
    """The largest of the values that were noted lately: since one period ago, or up to two."""

    def __init__(self) -> None:
        self._now, self._before, self._since = 0, 0, -math.inf

    @property
    def value(self) -> int:
        return max(self._now, self._before)

    def note(self, value: int, now: float, *, seconds: float) -> None:
        if now - self._since > seconds:
            self._now, self._before, self._since = 0, self._now, now
        self._now = max(self._now, value)


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


def _backoff(first_seconds: float, waits: int, most_seconds: float) -> float:
    return float(min(most_seconds, first_seconds * 2 ** min(waits, 16)))
