"""What answers that have ended had read: the next one that begins alike reads only the rest.

Prompts of a batch often begin with the same worked examples, and an answer that was cut off goes on after all that it said.
Running answers share what they begin with (`SlotRunner`); this is for those that come when none of them runs any more. What
was used longest ago goes first. Where prompts have nothing in common, copies are for nothing, and soon no more are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clear_ray.engine.batch import RunningGrant
from clear_ray.engine.grouping import common_prefix_tokens
from clear_ray.engine.slot_cache import SlotCache


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Some tokens, with their keys and values in one slot."""

    ids: list[int]
    cache: SlotCache


_MOST_UNUSED = 32
"""Prompts that are kept, and found of no use to any other, before no more are."""


class PrefixCache:
    """A few beginnings, each as long as an answer came; used by one thread.

    Args:
        most_tokens: Positions that they may take over all layers of the model.
        most: How many there may be.

    Attributes:
        tokens: Positions that they take.
    """

    def __init__(self, most_tokens: int, most: int) -> None:
        self._most_tokens, self._most = most_tokens, most
        self._held: list[Prefix] = []  # the one used longest ago first
        self._unused = 0
        self.tokens = 0

    def keep(self, ids: list[int], cache: SlotCache, row: int, *, may_go_on: bool) -> None:
        """Keep what a slot of a cache holds of these tokens, its first ones; what is a part of it goes.

        Args:
            ids: The tokens.
            cache: The cache.
            row: The slot.
            may_go_on: Whether they are an answer that may go on, and not only a prompt that others may begin like.
        """
        if not 0 < len(ids) <= self._most_tokens or not self._most or (self._unused >= _MOST_UNUSED and not may_go_on):
            return
        self._unused += not may_go_on
        for held in [held for held in self._held if ids[: len(held.ids)] == held.ids]:
            self._drop(held)
        while self._held and (self.tokens + len(ids) > self._most_tokens or len(self._held) >= self._most):
            self._drop(self._held[0])
        self._held.append(Prefix(ids, cache.cut(1, 0, len(ids), first=row)))
        self.tokens += len(ids)

    def longest(self, ids: Sequence[int]) -> tuple[Prefix | None, int]:
        """Return what has the most tokens in common with these at their beginning, and how many."""
        found: Prefix | None = None
        most = 0
        for held in self._held:
            if (known := common_prefix_tokens(held.ids, ids)) > most:
                found, most = held, known
        if found is not None:
            self._held.remove(found)
            self._held.append(found)
        return found, most

    def note_use(self) -> None:
        """Note that an answer began with something that is kept."""
        self._unused = 0

    def leave(self, most_tokens: int) -> None:
        """Take no more positions than this from now on."""
        self._most_tokens = min(self._most_tokens, most_tokens)
        while self.tokens > self._most_tokens:
            self._drop(self._held[0])

    def _drop(self, held: Prefix) -> None:
        self._held.remove(held)
        self.tokens -= len(held.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A waiting answer of whose prompt an earlier one has read so many tokens."""

    answer: RunningGrant
    prefix: Prefix
    tokens: int

    @property
    def left(self) -> int:
        """Tokens that are to be read."""
        return len(self.answer.input_ids) - 1 - self.tokens


def in_passes(known: Sequence[Known], pass_tokens: int) -> list[list[Known]]:
    """Split answers into passes over what is left of each, those of like length together."""
    passes: list[list[Known]] = []
    for one in sorted(known, key=lambda one: one.left):
        if passes and (len(passes[-1]) + 1) * one.left <= pass_tokens:
            passes[-1].append(one)
        else:
            passes.append([one])
    return passes
