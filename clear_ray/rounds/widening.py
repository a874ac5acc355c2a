"""A batch whose prompts are still being read: what of it is priced meanwhile, and how far is read before the next price.

    read a part --> clear it --> its grants run, the next part is read --> clear both --> ... --> all is read: as ever

**Only what was read is offered**: other queries have no ceiling yet.

**It has its part of the budget.** While K of N queries are known, rounds share K/N of the budget, less what was spent. So
what the first prices, of a sample, get wrong costs no other query its tokens, and later ones price what is left over all
known.

**A beginning is a sample.** The order of reading is none of the input's (`stages.homes.spread_order`): the queries known at
any time lie evenly in it, whatever it is sorted by.

**How much at a time.** First a part that says what the price is; then an eighth of what is known, and no less than engines
run. So clearings are a few dozen, whatever the size of the batch, and together cost some nine times what the last one does.

**Of a very large batch a window is held**: what was read last, and a sample of the rest (`windowed`). No part is larger
than two fifths of that, so a query is priced twice or more while it is among the last.

**What was read is asked soon.** No more is read than the next clearing is to see, until that was made: what engines keep of
prompts is still there when these are answered, though the batch be many times larger.

**Idle engines read.** A clearing that grants nothing counts too. Beside running grants the law is asked only where slots
are idle (`pace`): if it waits for answers all the same, as one does that learns (`widening_learning`), the next part is
what these slots are for.

Source: docs/method.md, section 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_QUERIES, FIRST_SHARE = 2_048, 1 / 64
"""The first part, at least; the error of a price is about one over the root of how many it is cleared over."""
MOST_FIRST_SHARE = 1 / 4
"""Of the batch: where the first part would be more, all of it is read first, unless it is asked for."""
GROWTH_SHARE = 1 / 8
"""Of the known queries: so many more are read before the next clearing."""
WINDOW_SHARE = 2 / 5
"""Of those whose curves are held at once: no part is larger, so the newest hold two."""
SLOTS_AHEAD = 2
"""At least so many queries are read for each answer that engines run at once, so that none waits for a prompt."""


def is_large(queries: int, *, slots: int, most_held: int | None = None) -> bool:
    """Return whether a batch is so large that its first part is a small one.

    Args:
        queries: Number of queries.
        slots: Answers that the engines run at once.
        most_held: Of how many queries curves are held at once, if not of all.
    """
    is_room = most_held is None or SLOTS_AHEAD * slots <= _most_part(most_held)
    return is_room and _first_part(queries, slots) <= MOST_FIRST_SHARE * queries


def _most_part(most_held: int) -> int:
    return max(int(WINDOW_SHARE * most_held), 1)


def _first_part(queries: int, slots: int) -> int:
    return max(FIRST_QUERIES, int(FIRST_SHARE * queries), SLOTS_AHEAD * slots)


@dataclass(slots=True)
class Widening:
    """See the module; it has no clock and no files.

    Attributes:
        queries: Number of queries of the batch, N.
        slots: Answers that the engines run at once.
        most_held: Of how many queries curves are held at once; of all if not given.
        known: How many have been read, K.
        wanted: How many are to be before the next clearing; no more are read before it.
    """

    queries: int
    slots: int
    most_held: int | None = None
    known: int = 0
    wanted: int = field(init=False)

    def __post_init__(self) -> None:
        most = max(int(MOST_FIRST_SHARE * self.queries), 1)
        self.wanted = min(self._part(_first_part(self.queries, self.slots)), most, self.queries)

    @property
    def is_whole(self) -> bool:
        """Whether all queries are known."""
        return self.known >= self.queries

    @property
    def is_due(self) -> bool:
        """Whether the price may be cleared."""
        return self.known >= self.wanted

    def note_clearing(self) -> None:
        """Note that the price was cleared, whatever came of it: more may be read, if what was wanted had been."""
        if not self.is_due:
            return
        step = max(int(GROWTH_SHARE * self.known), SLOTS_AHEAD * self.slots, 1)
        self.wanted = min(self.known + self._part(step), self.queries)

    def share_of(self, budget_tokens: int) -> int:
        """Return what the known queries may take of a budget."""
        return budget_tokens * self.known // max(self.queries, 1) if not self.is_whole else budget_tokens

    def _part(self, queries: int) -> int:
        return queries if self.most_held is None else min(queries, _most_part(self.most_held))
