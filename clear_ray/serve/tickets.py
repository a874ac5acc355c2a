"""When queries first came that were sent away and come again: they take their old places."""

from __future__ import annotations

from collections import OrderedDict, deque

_KEPT_SECONDS = 180.0  # clients come again within a minute, and may do so twice
_MOST = 4_096


class Tickets:
    """First arrivals by ticket; equal queries share a ticket, and the one that came first is the first to come again."""

    def __init__(self) -> None:
        self._arrivals: OrderedDict[str, deque[tuple[float, float]]] = OrderedDict()  # (arrived, kept at)

    def keep(self, ticket: str, arrived: float, now: float) -> None:
        """Remember a query that is sent away; one without a ticket is not known again."""
        if not ticket:
            return
        self._arrivals.setdefault(ticket, deque()).append((arrived, now))
        self._arrivals.move_to_end(ticket)
        while len(self._arrivals) > _MOST:
            self._arrivals.popitem(last=False)

    def take(self, ticket: str, now: float) -> float:
        """Return when a query that is there now first came, and forget it."""
        kept = self._arrivals.pop(ticket, None)
        while kept:
            arrived, kept_at = kept.popleft()
            if now - kept_at <= _KEPT_SECONDS:
                if kept:
                    self._arrivals[ticket] = kept
                return arrived
        return now
