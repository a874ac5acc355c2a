"""When the price is cleared again while grants are still running.

Three things have to be there: slots that nothing waits for, tokens that came back, and a reason to think that the answer is
another one than the last time. A clearing of a few tokens costs as much as one of many and cuts its grants short, so it waits
for a share of what is left; that share shrinks with it, and so the clearings of a run are a few dozen, whatever its size.
"""

from __future__ import annotations

from dataclasses import dataclass

IDLE_SHARE = 1 / 16
"""Of the slots: with fewer idle no clearing is made beside running grants."""
CAME_BACK_SHARE = 1 / 64
"""Of what is not spent: with less to grant no clearing is made beside running grants."""


@dataclass(slots=True)
class ClearingPace:
    """When the law is asked again; it has no clock.

    Attributes:
        slots: Answers that the engines run at once.
    """

    slots: int
    _idle_at_no: int = -1
    _available_at_no: int = -1

    def is_due(self, *, waiting: int, running: int, available_tokens: int, promised_tokens: int) -> bool:
        """Return whether to ask for grants beside those that are running. Changes nothing.

        Args:
            waiting: Grants that are made and wait for a slot.
            running: Grants that have one.
            available_tokens: What may be granted.
            promised_tokens: What running and waiting grants may spend.
        """
        idle, least_idle = self.slots - running, max(self.slots * IDLE_SHARE, 1.0)
        share = (available_tokens + promised_tokens) * CAME_BACK_SHARE
        if waiting or idle < least_idle or available_tokens < max(share, 1.0):
            return False
        has_changed = idle >= self._idle_at_no + least_idle or available_tokens >= self._available_at_no + share
        return self._idle_at_no < 0 or has_changed

    def note(self, *, was_granted: bool, running: int, available_tokens: int) -> None:
        """Note the answer to any request: after a refusal it is asked again once it has more slots or tokens to offer.

        Args:
            was_granted: Whether there were grants.
            running: As for `is_due`, when it was asked.
            available_tokens: Likewise.
        """
        self._idle_at_no = -1 if was_granted else self.slots - running
        self._available_at_no = -1 if was_granted else available_tokens
