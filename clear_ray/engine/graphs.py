"""CUDA graphs of the passes over a slot cache: one launch for a pass, where the model alone needs several hundred.

A pass of a small model on a GPU takes as long as its kernels take to be launched. A graph is launched at once, but only
for the shapes and the memory it was captured with. So rows and positions are rounded up to few sizes, tokens and
positions are copied into the graph's own inputs, and a graph is captured when its sizes are met again. What the
rounding adds is harmless: a row beyond the running ones writes to a free slot, which the answer that gets it writes
over; a column beyond the last token of a row is written again before any token sees it; a row that fills up a group
repeats the group's last one.

Shapes: N rows of a pass, L positions of a pass, V vocabulary.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clear_ray.engine.slot_cache import SlotCache, SlotRunner

_log = logging.getLogger(__name__)

# A pass over more positions than this computes for longer than it launches.
_MOST_POSITIONS = 2048
_LEAST_COLUMNS, _LEAST_VISIBLE = 32, 256
_LEAST_BUCKET = 64
# A capture costs about as much as this many passes save; sizes that come up once are not worth one.
_USES_BEFORE_CAPTURE = 2
_MOST_GRAPHS = 128
_capturing = threading.Lock()  # torch captures one graph at a time in a process


def next_bucket(positions: int) -> int:
    """Return the next of the sizes to which positions are rounded up: at most a quarter too many, past the first few."""
    step = max(_LEAST_BUCKET, (1 << (positions - 1).bit_length()) // 8)
    return -(-positions // step) * step


def _power_of_two(least: int, count: int) -> int:
    return max(least, 1 << (count - 1).bit_length())


@dataclass
class _Captured:
    """A graph with the tensors it reads; until it is captured, `run` does the same work one kernel at a time."""

    inputs: tuple[torch.Tensor, ...]
    run: Callable[..., object]
    graph: Any = None
    uses: int = 0


class GraphRunner(SlotRunner):
    """A `SlotRunner` whose small passes are replayed from CUDA graphs. For one cache, and without hidden states.

    On another device than CUDA, where a capture fails (a model that asks the host for a number in the middle of a pass), and
    past `_MOST_GRAPHS`, the same rounded passes run without one.

    Args:
        model: As for `SlotRunner`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._captured: dict[tuple[Any, ...], _Captured] = {}
        self._pool: Any = None
        self._stream: Any = None
        self._can_capture = self._device.type == "cuda"
        self._logits_NV = torch.zeros(0, 0)

    def forget(self) -> None:
        """Drop all graphs: the memory they were captured with is about to go."""
        self._captured.clear()
        self._pool, self._logits_NV = None, torch.zeros(0, 0)

    def next_logits(self, cache: SlotCache, ids_N: list[int], positions_N: list[int]) -> torch.Tensor:
        """As `SlotRunner.next_logits`."""
        count = len(ids_N)
        rows = min(_power_of_two(1, count), cache.slots)
        visible = min(next_bucket(max(positions_N) + 1), cache.positions)
        padding = [0] * (rows - count)

        def run(ids_N1: torch.Tensor, position_N1: torch.Tensor) -> None:
            logits_NV = self.forward(self._model, cache, slice(0, rows), ids_N1, position_N1, visible).logits[:, -1]
            if self._logits_NV.shape[0] != cache.slots:
                # One for all graphs: each would otherwise keep its own for as long as it lives.
                self._logits_NV = logits_NV.new_empty(cache.slots, logits_NV.shape[1])
            self._logits_NV[:rows] = logits_NV

        inputs = (torch.tensor([ids_N + padding]).T, torch.tensor([positions_N + padding]).T)
        self._replay(("decode", rows, visible), inputs, run)
        return self._logits_NV[:count]

    def copy_prefix(self, cache: SlotCache, source: int, targets: range, length: int) -> None:
        """As `SlotRunner.copy_prefix`, with more positions than those."""
        rows = _power_of_two(1, len(targets))
        positions = min(next_bucket(length), cache.positions)
        target_N = torch.tensor([*targets, *[targets[-1]] * (rows - len(targets))])

        def run(source_N: torch.Tensor, target_N: torch.Tensor) -> None:
            cache.copy_rows(source_N, target_N, positions)

        self._replay(("copy", rows, positions), (torch.full_like(target_N, source), target_N), run)

    def _read(
        self, cache: SlotCache, first: int, ids_per_row: Sequence[list[int]], begin_N: Sequence[int], chunk: int
    ) -> torch.Tensor | None:
        rests = [ids[begin:] for ids, begin in zip(ids_per_row, begin_N, strict=True)]
        longest = max(map(len, rests))
        rows, columns = _power_of_two(1, len(rests)), _power_of_two(_LEAST_COLUMNS, longest)
        if not longest or rows * columns > _MOST_POSITIONS:
            return super()._read(cache, first, ids_per_row, begin_N, chunk)
        # Coarser than for decoding: these passes are rarer, and each size is a graph.
        visible = min(_power_of_two(_LEAST_VISIBLE, max(begin_N) + longest), cache.positions)

        def run(row_N: torch.Tensor, ids_NL: torch.Tensor, position_NL: torch.Tensor) -> None:
            self.forward(self.decoder, cache, row_N, ids_NL, position_NL, visible)

        order = [min(row, len(rests) - 1) for row in range(rows)]
        # Past the end of the cache every column writes to its last position.
        begin_N1 = torch.tensor([begin_N[row] for row in order])[:, None]
        inputs = (
            torch.tensor([first + row for row in order]),
            torch.tensor([rests[row] + [0] * (columns - len(rests[row])) for row in order]),
            (begin_N1 + torch.arange(columns)).clamp(max=cache.positions - 1),
        )
        self._replay(("read", rows, columns, visible), inputs, run)
        return None

    def _replay(self, key: tuple[Any, ...], inputs: tuple[torch.Tensor, ...], run: Callable[..., object]) -> None:
        """Do what `run` does to `inputs`, from the graph of that key."""
        passes = self.passes
        captured = self._captured.get(key)
        if captured is None:
            captured = _Captured(tuple(tensor.to(self._device) for tensor in inputs), run)
            self._captured[key] = captured
        for held, new in zip(captured.inputs, inputs, strict=True):
            held.copy_(new)
        if captured.graph is None and self._can_capture and captured.uses == _USES_BEFORE_CAPTURE:
            captured.graph = self._capture(captured)
        captured.uses += 1
        if captured.graph is not None:
            captured.graph.replay()
        else:
            try:
                captured.run(*captured.inputs)
            except torch.OutOfMemoryError:
                # What graphs keep for themselves is room that a pass of another size cannot use; a pass may run twice.
                self.forget()
                torch.cuda.empty_cache()
                captured.run(*captured.inputs)
        self.passes = passes + (key[0] != "copy")

    def _capture(self, captured: _Captured) -> Any:
        """Capture what has run before, so that nothing is allocated at first use any more; None where that fails."""
        if sum(one.graph is not None for one in self._captured.values()) >= _MOST_GRAPHS:
            return None
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            with _capturing, torch.cuda.device(self._device):
                if self._pool is None:
                    self._pool = torch.cuda.graph_pool_handle()
                    self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    captured.run(*captured.inputs)
        except RuntimeError as error:
            # A capture that breaks off leaves its stream behind as the current one.
            torch.cuda.set_stream(stream)
            self._can_capture = False
            _log.warning("decoding goes on without further CUDA graphs: %s", str(error).splitlines()[0])
            return None
        return graph
