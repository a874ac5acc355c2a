"""Continuous batching on a slot cache: every running answer owns one slot, and gives it up when it ends.

An answer that ends gives its slot to the last running one; a new answer takes the slot after the last. The last prompt
token is never prefilled: it is the first token that decode reads, so all logits come from decode.

Shapes: N rows of a pass, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from clear_ray.config.engine import WorkersConfig
from clear_ray.engine.batch import RunningGrant
from clear_ray.engine.choice import choice_of
from clear_ray.engine.closing import Closing
from clear_ray.engine.graphs import next_bucket
from clear_ray.engine.grouping import PASS_COST, common_prefix_tokens, reading_groups
from clear_ray.engine.kept_prompts import KeptPrompts
from clear_ray.engine.logits import LogitsShaper, choice_in, next_tokens, read_logprobs
from clear_ray.engine.prefix_cache import Known, PrefixCache, in_passes
from clear_ray.engine.slot_cache import SlotRunner
from clear_ray.engine.threads import PassThreads
from clear_ray.engine.trial import Way, make_cache, make_runner

_MOST_HELD_BACK = 16
_MOST_LOOKED_AT = 64  # waiting answers, for one that may start


@dataclass(eq=False, slots=True)
class _Reading:
    """A long prompt that is read a chunk at a time, beside the running answers and outside their cache.

    Attributes:
        answer: Whose prompt.
        cache: What has been read.
        tokens: How much that is.
    """

    answer: RunningGrant
    cache: Any
    tokens: int = 0

    @property
    def is_read(self) -> bool:
        """Whether the answer can start."""
        return self.tokens == len(self.answer.input_ids) - 1


class SlotBatch:
    """A continuous batch of answers.

    Args:
        model: As for `SlotRunner`.
        config: How many answers run at the same time, if the cache can hold them, and how their tokens are chosen.
        cache_tokens: Positions that the cache may hold over all slots together.
        prefill_tokens: Positions of one prefill pass.
        end_token_ids: Tokens that end an answer.
        closing: How answers are forced at the end of their grants, if they are.
        graphs: Whether passes of one shape share a CUDA graph; see `GraphRunner`.
        refill_rows: Free slots worth a pass that reads new prompts, while answers run. 1 wastes no slot; where such a pass
            costs several steps of decoding, more of them at a time are cheaper. No prompt waits more than 16 steps.
        way: How the model is run, as `find_way` found it.
        kept: Prompts that were read before; they give way where the cache needs their room.
        prefixes: What ended answers have read, likewise.
        threads: Chooses the threads of passes; None where they are set for good.
    """

    def __init__(
        self,
        model: Any,
        config: WorkersConfig,
        *,
        cache_tokens: int,
        prefill_tokens: int,
        end_token_ids: frozenset[int],
        closing: Closing | None = None,
        graphs: bool = False,
        refill_rows: int = 1,
        way: Way = "slots",
        kept: KeptPrompts | None = None,
        prefixes: PrefixCache | None = None,
        threads: PassThreads | None = None,
    ) -> None:
        self._threads = threads
        self._way, self._kept, self._prefixes = way, kept or KeptPrompts(0), prefixes or PrefixCache(0, 0)
        # Where a pass over a whole prompt takes as long as one over a token, it is not worth the copies.
        self._keeps_cut = model.device.type == "cpu"
        self._runner: Any = make_runner(model, way, graphs=graphs)
        self._cache: Any = make_cache(way)
        self._refill_rows, self._pass_cost = refill_rows, PASS_COST[model.device.type]
        self._config, self._max_batch = config, config.max_batch
        self._shaper = LogitsShaper(end_token_ids)
        self._cache_tokens, self._prefill_tokens, self._end_token_ids = cache_tokens, prefill_tokens, end_token_ids
        self._closing = closing
        self._held_back = 0
        self._waiting: deque[RunningGrant] = deque()
        self._running: list[RunningGrant] = []
        self._reader = SlotRunner(model) if way == "slots" else None
        self._reading: _Reading | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running and self._reading is None

    @property
    def progress(self) -> int:
        """Passes of the model so far."""
        passes: int = self._runner.passes
        return passes + (self._reader.passes if self._reader is not None else 0)

    def add(self, answer: RunningGrant) -> None:
        """Queue an answer; it starts in the order of adding."""
        answer.choice = choice_of(self._config, answer.grant.sampling)
        self._waiting.append(answer)

    @torch.inference_mode()
    def step(self) -> list[RunningGrant]:
        """Start what fits, generate one token for every running answer, and return the answers that ended."""
        ended = self._end_cancelled()
        ended += self._read_on()
        ended += self._start_waiting()
        if self._running:
            ended += self._decode()
        return ended

    def close(self) -> None:
        """Drop the cache."""
        self._reading = None
        self._cache = make_cache(self._way)
        self._kept.leave(0)
        self._prefixes.leave(0)
        self._runner.forget()

    def _end_cancelled(self) -> list[RunningGrant]:
        ended = [answer.end("cancelled") for answer in self._waiting if answer.is_cancelled]
        if ended:
            self._waiting = deque(answer for answer in self._waiting if not answer.is_cancelled)
        if self._reading is not None and self._reading.answer.is_cancelled:
            ended.append(self._reading.answer.end("cancelled"))
            self._reading = None
        rows = [row for row, answer in enumerate(self._running) if answer.is_cancelled]
        # Backwards: taking a row out moves the last row into its place.
        return ended + [self._remove(row).end("cancelled") for row in reversed(rows)]

    def _read_on(self) -> list[RunningGrant]:
        """Read the next chunk of a long prompt, or start its answer once it is read; return it if it failed."""
        self._take_long()
        reading = self._reading
        if reading is None or self._reader is None:
            return []
        ids = reading.answer.input_ids[:-1]
        end = min(reading.tokens + self._prefill_tokens, len(ids))
        try:
            if not reading.is_read:
                self._reader.read_on(reading.cache, ids[:end], reading.tokens)
                reading.tokens = end
        except (RuntimeError, IndexError) as error:
            self._reading = None
            return [reading.answer.end("cancelled", f"the prompt could not be read: {error}")]
        positions = max(map(_needed_positions, (*self._running, reading.answer)))
        rows = len(self._running) + 1
        has_room = rows * positions + len(ids) <= self._cache_tokens or not self._running
        if reading.is_read and has_room:
            self._make_room(rows, positions)
            self._cache.adopt(rows - 1, reading.cache, len(ids))
            self._running.append(reading.answer)
            self._reading = None
        return []

    def _take_long(self) -> None:
        """Take the next waiting answer out whose prompt is to be read in chunks beside the others."""
        if self._reading is not None or self._reader is None or len(self._running) >= self._max_batch:
            return
        for answer in self._waiting:
            if self._is_long(answer):
                self._waiting.remove(answer)
                cache = make_cache(self._way)
                cache.reserve(1, len(answer.input_ids), kept_rows=0)
                self._reading = _Reading(answer, cache)
                return

    def _is_long(self, answer: RunningGrant) -> bool:
        """Whether what nothing has read already takes more than one pass, and memory has room to read it apart."""
        if self._kept.has(answer.input_ids):
            return False
        if len(answer.input_ids) - 1 <= self._prefill_tokens or 2 * _needed_positions(answer) > self._cache_tokens:
            return False
        head = answer.input_ids[:-1]
        known = max((common_prefix_tokens(head, one.input_ids) for one in self._running), default=0)
        return len(head) - max(known, self._prefixes.longest(head)[1]) > self._prefill_tokens

    def _next_to_start(self, others: int) -> RunningGrant | None:
        """Return the next waiting answer for which there is a place beside others; long prompts wait for their turn."""
        reading = self._reading
        if others >= self._max_batch - (reading is not None) or (reading is not None and reading.is_read):
            return None
        waiting = itertools.islice(self._waiting, _MOST_LOOKED_AT)
        return next((answer for answer in waiting if self._reader is None or not self._is_long(answer)), None)

    def _start_waiting(self) -> list[RunningGrant]:
        """Give slots to waiting answers and read their prompts; return those that failed."""
        starting: list[RunningGrant] = []
        ended: list[RunningGrant] = []
        if self._running and self._max_batch - len(self._running) < min(self._refill_rows, len(self._waiting)):
            self._held_back += 1
            if self._held_back < _MOST_HELD_BACK:
                return ended
        self._held_back = 0
        positions = max((_needed_positions(answer) for answer in self._running), default=0)
        room = self._cache_tokens - (len(self._reading.answer.input_ids) if self._reading is not None else 0)
        while (answer := self._next_to_start(len(self._running) + len(starting))) is not None:
            needed = max(positions, _needed_positions(answer))
            rows = len(self._running) + len(starting) + 1
            if rows * needed > room:
                if rows > 1 or self._reading is not None:
                    break
                error = f"prompt and grant need {needed} cache positions, there is memory for {self._cache_tokens}"
                self._waiting.remove(answer)
                ended.append(answer.end("cancelled", error))
                continue
            positions = needed
            self._waiting.remove(answer)
            starting.append(answer)
        if starting:
            self._make_room(len(self._running) + len(starting), positions)
            starting, known = self._with_prefixes(self._start_read(starting))
            for part in in_passes(known, self._prefill_tokens):
                ended += self._read_rests(part)
            heads = [answer.input_ids[:-1] for answer in starting]
            for group in reading_groups(heads, pass_tokens=self._prefill_tokens, pass_cost=self._pass_cost):
                ended += self._prefill([starting[row] for row in group])
        return ended

    def _make_room(self, rows: int, positions: int) -> None:
        if rows <= self._cache.slots and positions <= self._cache.positions:
            return
        rounded = next_bucket(positions)
        if rounded * rows <= self._cache_tokens:  # where memory is scarce, positions for more rows are worth more
            positions = rounded
        slots = max(rows, min(self._max_batch, self._cache_tokens // positions))
        self._runner.forget()
        left = max(0, self._cache_tokens - slots * positions)
        self._kept.leave(left)
        self._prefixes.leave(left - self._kept.tokens)
        self._cache.reserve(slots, positions, kept_rows=len(self._running))

    def _start_read(self, starting: list[RunningGrant]) -> list[RunningGrant]:
        """Start those whose prompts were read before; return the others."""
        left = []
        for answer in starting:
            if self._kept.copy_to(self._cache, len(self._running), answer.input_ids):
                answer.cached_tokens = len(answer.input_ids) - 1  # decode begins with the last one
                self._running.append(answer)
            else:
                left.append(answer)
        return left

    def _with_prefixes(self, starting: list[RunningGrant]) -> tuple[list[RunningGrant], list[Known]]:
        """Return those of which little was read before, and the others."""
        others, known = [], []
        for answer in starting:
            prefix, tokens = self._prefixes.longest(answer.input_ids[:-1])
            if prefix is not None and 2 * tokens >= len(answer.input_ids) - 1:
                known.append(Known(answer, prefix, tokens))
            else:
                others.append(answer)
        return others, known

    def _read_rests(self, part: list[Known]) -> list[RunningGrant]:
        """Read what follows the known beginnings of some inputs into the next slots; return those that failed."""
        first, heads = len(self._running), [one.answer.input_ids[:-1] for one in part]
        try:
            for slot, one in enumerate(part, start=first):
                self._cache.adopt(slot, one.prefix.cache, one.tokens)
            chunk = max(1, self._prefill_tokens // len(part))
            self._runner.read_rests(self._cache, first, heads, [one.tokens for one in part], chunk)
        except (RuntimeError, IndexError) as error:
            if len(part) == 1:
                return [part[0].answer.end("cancelled", f"the prompt could not be read: {error}")]
            return [failed for one in part for failed in self._read_rests([one])]
        for one in part:
            one.answer.cached_tokens = one.tokens
            self._running.append(one.answer)
        self._prefixes.note_use()
        return []

    def _prefill(self, group: list[RunningGrant]) -> list[RunningGrant]:
        """Read the group's inputs into the next slots; return those that failed."""
        ids_per_row = [answer.input_ids[:-1] for answer in group]
        try:
            if any(ids_per_row):
                chunk = max(1, self._prefill_tokens // len(group))
                # The newest token of a running answer is not in the cache yet: decode reads it first.
                slots = [[*answer.input_ids, *answer.generated][:-1] for answer in self._running]
                self._runner.continue_from(self._cache, len(self._running), ids_per_row, chunk, slots)
        except (RuntimeError, IndexError) as error:
            if len(group) == 1:
                return [group[0].end("cancelled", f"the prompt could not be read: {error}")]
            # One answer's failure is its own: the others are tried by themselves.
            return [failed for answer in group for failed in self._prefill([answer])]
        self._running += group
        return []

    def _decode(self) -> list[RunningGrant]:
        """Generate one token for each running answer; return those that ended."""
        ids_N = [answer.generated[-1] if answer.generated else answer.input_ids[-1] for answer in self._running]
        positions_N = [_length(answer) - 1 for answer in self._running]
        with nullcontext() if self._threads is None else self._threads.timed(len(ids_N)):
            logits_NV: torch.Tensor = self._runner.next_logits(self._cache, ids_N, positions_N)
        chosen_N = next_tokens(self._shaper.shape(logits_NV, self._running), self._running)
        for answer, chosen in zip(self._running, chosen_N, strict=True):
            token_id = chosen
            if self._closing is not None and answer.matcher is None:  # a text put into a structure would break it
                token_id = self._closing.next_token(answer, token_id, is_end=self._is_end(answer, token_id))
            answer.generated.append(token_id)
        read_logprobs(logits_NV, self._running)
        ended: list[RunningGrant] = []
        for row in reversed(range(len(self._running))):
            answer = self._running[row]
            if self._has_ended(answer):
                self._keep(row, answer.input_ids[:-1])
                ended.append(self._remove(row).end("stop"))
            elif answer.matcher is not None and answer.matcher.error:
                ended.append(self._remove(row).end("cancelled", f"its structure: {answer.matcher.error}"))
            elif len(answer.generated) >= answer.grant.max_tokens:
                self._keep(row, [*answer.input_ids, *answer.generated][:-1], may_go_on=self._keeps_cut)
                ended.append(self._remove(row).end("length"))
        return ended

    def _keep(self, row: int, ids: list[int], *, may_go_on: bool = False) -> None:
        """Keep what a slot holds: of an answer that may go on all of it, else what no earlier one has read."""
        if may_go_on or 2 * self._prefixes.longest(ids)[1] < len(ids):
            self._prefixes.keep(ids, self._cache, row, may_go_on=may_go_on)

    def _is_end(self, answer: RunningGrant, token_id: int) -> bool:
        return token_id in self._end_token_ids or token_id in choice_in(answer).stop_token_ids

    def _has_ended(self, answer: RunningGrant) -> bool:
        """Return whether the newest token ends the answer; told once for each token."""
        token_id = answer.generated[-1]
        if self._is_end(answer, token_id):
            return True
        if answer.matcher is not None and answer.matcher.take([token_id]) and answer.matcher.is_over:
            return True
        return answer.stops is not None and answer.stops.has_come(answer.token_ids)

    def _remove(self, row: int) -> RunningGrant:
        """Take an answer out of its slot and move the last one into it."""
        removed, last = self._running[row], self._running.pop()
        if last is not removed:
            # The newest token of an answer is not in the cache yet: decode reads it first.
            self._runner.copy_prefix(self._cache, len(self._running), range(row, row + 1), _length(last) - 1)
            self._running[row] = last
        return removed


def refill_rows(max_batch: int, device: torch.device) -> int:
    """Return how many slots should be free before new prompts are read beside running answers.

    On CUDA a pass that reads one prompt takes as long as one that reads several; on CPU nothing is won by waiting.
    """
    return max(1, max_batch // 16) if device.type == "cuda" else 1


def _length(answer: RunningGrant) -> int:
    return len(answer.input_ids) + len(answer.generated)


def _needed_positions(answer: RunningGrant) -> int:
    """Return the positions that an answer may come to fill: its last token is never read."""
    return len(answer.input_ids) + answer.grant.max_tokens - 1
