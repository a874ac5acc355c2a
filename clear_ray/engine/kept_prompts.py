"""Prompts that the probe has read, with their keys and values: an answer whose whole prompt is here reads it no more.

What a group of prompts begins with alike is kept once. The group that was read or used longest ago goes first when room is
needed, for an answer that runs or for a prompt that was read since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clear_ray.engine.grouping import shared_tokens
from clear_ray.engine.slot_cache import SlotCache


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Prompts that were read together.

    Attributes:
        ids_N: Their tokens.
        opening: What all of them begin with, in one slot; None if that is nothing.
        rest: What follows it, a slot each.
        shared: Tokens of the opening.
        tokens: Positions of both.
    """

    ids_N: tuple[tuple[int, ...], ...]
    opening: SlotCache | None
    rest: SlotCache
    shared: int
    tokens: int


class KeptPrompts:
    """The prompts read last, as many as there is room for; used by one thread at a time, the one that has the model.

    Args:
        most_tokens: Positions that they may take over all layers of the model.

    Attributes:
        tokens: Positions that they take.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._groups: dict[int, _Group] = {}  # the one used longest ago first
        self._place: dict[tuple[int, ...], tuple[int, int]] = {}
        self._next = 0
        self.tokens = 0

    def keep(self, ids_N: Sequence[list[int]], cache: SlotCache) -> None:
        """Keep prompts that were read together, one in each slot from the first on; the cache is given up."""
        shared = shared_tokens(ids_N) if len(ids_N) > 1 else 0
        longest = max(map(len, ids_N))
        tokens = shared + len(ids_N) * (longest - shared)
        if tokens > self._most_tokens:
            return
        self._drop_to(self._most_tokens - tokens)
        opening = cache.cut(1, 0, shared) if shared else None
        rest = cache.cut(len(ids_N), shared, longest) if shared else cache
        group = _Group(tuple(map(tuple, ids_N)), opening, rest, shared, tokens)
        self._groups[self._next] = group
        self._place |= {ids: (self._next, row) for row, ids in enumerate(group.ids_N)}
        self._next += 1
        self.tokens += tokens

    def has(self, ids: Sequence[int]) -> bool:
        """Return whether all of these tokens are a prompt that is kept."""
        return bool(self._place) and tuple(ids) in self._place

    def copy_to(self, cache: SlotCache, slot: int, ids: Sequence[int]) -> bool:
        """Give a slot what was read of a prompt; return whether it is kept."""
        if not self.has(ids):
            return False
        number, row = self._place[tuple(ids)]
        group = self._groups[number] = self._groups.pop(number)
        if group.opening is not None:
            cache.adopt(slot, group.opening, group.shared)
        cache.adopt(slot, group.rest, len(ids) - group.shared, source=row, first=group.shared)
        return True

    def leave(self, most_tokens: int) -> None:
        """Take no more positions than this from now on."""
        self._most_tokens = min(self._most_tokens, most_tokens)
        self._drop_to(self._most_tokens)

    def _drop_to(self, most_tokens: int) -> None:
        while self._groups and self.tokens > most_tokens:
            number = next(iter(self._groups))
            group = self._groups.pop(number)
            self.tokens -= group.tokens
            for ids in group.ids_N:
                if self._place.get(ids, (-1, 0))[0] == number:  # else it was read again since
                    del self._place[ids]
