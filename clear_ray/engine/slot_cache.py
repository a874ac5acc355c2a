"""One key-value cache cut into slots, and passes of a model over it.

The running answers are the first n slots, without gaps, so that a pass reads the cache as a view and copies nothing.
Slots are left-aligned: entry j of a slot is the token at position j. Prefill and decode are the same pass over rows and
positions; decode has one position a row.

Shapes: N rows of a pass, L positions of a pass, T positions that the pass may see, V vocabulary, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from clear_ray.engine.grouping import common_prefix_tokens, shared_tokens
from clear_ray.engine.masks import LayerMasks
from clear_ray.engine.shallow import decoder_of


class SlotCache(Cache):  # type: ignore[misc, unused-ignore]
    """Keys and values of every layer, (slots, heads, T, head width), written and read at given rows and positions."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self.slots = self.positions = 0
        self._visible = 0
        self._rows: slice | torch.Tensor = slice(0, 0)
        self._row_N1 = self._position_NL = torch.zeros(0, 0, dtype=torch.long)

    def reserve(self, slots: int, positions: int, kept_rows: int) -> None:
        """Change the size, keeping the first `kept_rows` slots as far as they fit."""
        for tensors in (self._keys, self._values):
            for layer, old in enumerate(tensors):
                new = old.new_zeros(slots, old.shape[1], positions, old.shape[3])
                shared = min(self.positions, positions)
                new[:kept_rows, :, :shared] = old[:kept_rows, :, :shared]
                tensors[layer] = new
        self.slots, self.positions = slots, positions

    @property
    def bytes_per_position(self) -> int:
        """What one position of one slot takes, over the layers that have written so far."""
        return sum(tensor[:1, :, :1].numel() * tensor.element_size() for tensor in (*self._keys, *self._values))

    def aim(self, rows: slice | torch.Tensor, position_NL: torch.Tensor, visible: int) -> None:
        """Set where the next pass writes: these rows, at their positions; it reads the first `visible` ones.

        A slice of rows is read as a view; rows by number, a tensor (N), may be any and are copied.
        """
        self._rows, self._position_NL, self._visible = rows, position_NL, visible
        if isinstance(rows, slice):
            self._row_N1 = torch.arange(position_NL.shape[0], device=position_NL.device)[:, None]
        else:
            self._row_N1 = rows[:, None]

    def copy_prefix(self, source: int, targets: range, length: int) -> None:
        """Copy the first `length` positions of one slot over those of a run of others."""
        for tensor in (*self._keys, *self._values):
            tensor[targets.start : targets.stop, :, :length] = tensor[source, :, :length]

    def adopt(self, row: int, other: SlotCache, length: int, *, source: int = 0, first: int = 0) -> None:
        """Copy the first `length` positions of another cache's slot into one of this cache, from position `first` on."""
        if not self._keys:  # nothing was read into this one yet
            self._keys, self._values = [
                [tensor.new_zeros(self.slots, tensor.shape[1], self.positions, tensor.shape[3]) for tensor in tensors]
                for tensors in (other._keys, other._values)
            ]
        for mine, theirs in zip((*self._keys, *self._values), (*other._keys, *other._values), strict=True):
            mine[row, :, first : first + length] = theirs[source, :, :length]

    def cut(self, slots: int, begin: int, end: int, *, first: int = 0) -> SlotCache:
        """Return a cache of its own with some positions of so many slots, from the slot `first` on."""
        part = SlotCache()
        part.slots, part.positions = slots, end - begin
        part._keys, part._values = [
            [tensor[first : first + slots, :, begin:end].clone() for tensor in tensors]
            for tensors in (self._keys, self._values)
        ]
        return part

    def copy_rows(self, source_N: torch.Tensor, target_N: torch.Tensor, length: int) -> None:
        """Copy the first `length` positions of some slots over those of others, which are not among them."""
        for tensor in (*self._keys, *self._values):
            tensor[target_N, :, :length] = tensor[source_N, :, :length]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values and return all that the rows may see; called by the model."""
        del args, kwargs
        while len(self._keys) <= layer_idx:
            # Zeros, not uninitialised memory: a masked entry is multiplied by 0, and 0 x NaN is NaN.
            shape = (self.slots, key_states.shape[1], self.positions, key_states.shape[3])
            self._keys.append(key_states.new_zeros(shape))
            self._values.append(value_states.new_zeros((*shape[:3], value_states.shape[3])))
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if isinstance(self._rows, slice):
            keys, values = keys[self._rows], values[self._rows]
        keys[self._row_N1, :, self._position_NL] = key_states.transpose(1, 2)
        values[self._row_N1, :, self._position_NL] = value_states.transpose(1, 2)
        if isinstance(self._rows, slice):
            return keys[:, :, : self._visible], values[:, :, : self._visible]
        return keys[self._rows, :, : self._visible], values[self._rows, :, : self._visible]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions and masks are always given."""
        del layer_idx
        return 0


class SlotRunner:
    """Runs a model over rows and positions of a SlotCache.

    Args:
        model: A causal language model of transformers whose layers do nothing but attend to earlier positions.
    """

    def __init__(self, model: Any) -> None:
        self._model, self.decoder = model, decoder_of(model)
        self._device: torch.device = model.device
        self.passes = 0
        self._masks = LayerMasks(model.config, model.dtype, self._device)
        self.pause: Callable[[], None] | None = None  # between two chunks: lets others have the model

    def prefill(
        self, cache: SlotCache, first: int, ids_per_row: Sequence[list[int]], chunk: int
    ) -> torch.Tensor | None:
        """Read whole rows from position 0 on, `chunk` positions at a time; what all begin with, once.

        Returns:
            The sum of final-norm hidden states over each row's own tokens, float32 (N, D); None for rows of length 0.
        """
        shared = shared_tokens(ids_per_row) if len(ids_per_row) > 1 else 0
        shared_1D: torch.Tensor | None = None
        if shared:
            shared_1D = self._read(cache, first, [ids_per_row[0][:shared]], [0], chunk * len(ids_per_row))
            self.copy_prefix(cache, first, range(first + 1, first + len(ids_per_row)), shared)
        own_ND = self._read(cache, first, ids_per_row, [shared] * len(ids_per_row), chunk)
        if shared_1D is None or own_ND is None:
            return own_ND if shared_1D is None else shared_1D.expand(len(ids_per_row), -1)
        return own_ND + shared_1D

    def continue_from(
        self, cache: SlotCache, first: int, ids_per_row: Sequence[list[int]], chunk: int, slots: Sequence[list[int]]
    ) -> None:
        """Read whole rows as `prefill` does, but copy their beginning from a slot that already has it, if one has.

        `slots` are the tokens that each of the first slots holds.
        """
        opening = ids_per_row[0][: shared_tokens(ids_per_row)]
        known = [common_prefix_tokens(opening, ids) for ids in slots]
        if max(known, default=0) == 0:
            self.prefill(cache, first, ids_per_row, chunk)
            return
        length = max(known)
        self.copy_prefix(cache, known.index(length), range(first, first + len(ids_per_row)), length)
        self._read(cache, first, ids_per_row, [length] * len(ids_per_row), chunk)

    def read_rests(
        self, cache: SlotCache, first: int, ids_per_row: Sequence[list[int]], known_N: Sequence[int], chunk: int
    ) -> None:
        """Read what follows in each row after the positions that its slot holds already, `chunk` positions at a time."""
        self._read(cache, first, ids_per_row, known_N, chunk)

    def _read(
        self, cache: SlotCache, first: int, ids_per_row: Sequence[list[int]], begin_N: Sequence[int], chunk: int
    ) -> torch.Tensor | None:
        """Read each row from its position `begin` on; return the sum of hidden states of what was read, None if nothing."""
        rests = [ids[begin:] for ids, begin in zip(ids_per_row, begin_N, strict=True)]
        longest = max(map(len, rests))
        length_N1 = torch.tensor([[len(ids)] for ids in rests], device=self._device)
        begin_N1 = torch.tensor(begin_N, device=self._device)[:, None]
        # Rows shorter than the longest are filled up on the right: those positions are written again by the tokens that
        # belong there before any token can see them.
        padded_NL = torch.tensor([ids + [0] * (longest - len(ids)) for ids in rests], device=self._device)
        total_ND: torch.Tensor | None = None
        for start in range(0, longest, chunk):
            if start and self.pause is not None:
                self.pause()
            end = min(start + chunk, longest)
            place_NL = torch.arange(start, end, device=self._device).expand(len(rests), -1)
            # Past the end of the cache all that fills a row up is written to the last position.
            position_NL = (begin_N1 + place_NL).clamp(max=cache.positions - 1)
            rows, visible = slice(first, first + len(rests)), min(max(begin_N) + end, cache.positions)
            output = self.forward(self.decoder, cache, rows, padded_NL[:, start:end], position_NL, visible)
            is_own_NL1 = (place_NL < length_N1)[:, :, None]
            sum_ND = output.last_hidden_state.float().mul(is_own_NL1).sum(dim=1)
            total_ND = sum_ND if total_ND is None else total_ND + sum_ND
        return total_ND

    def read_on(self, cache: SlotCache, ids: list[int], begin: int) -> None:
        """Read the first slot's tokens from position `begin` on, in one pass."""
        self._read(cache, 0, [ids], [begin], len(ids))

    def decode(self, cache: SlotCache, ids_N: list[int], positions_N: list[int]) -> Any:
        """Read one token of each of the first N rows; return the model's output, logits (N, 1, V)."""
        position_N1 = torch.tensor(positions_N, device=self._device)[:, None]
        ids_N1 = torch.tensor(ids_N, device=self._device)[:, None]
        # Attention kernels of GPUs want the length of a mask divisible by 8 or 16.
        visible = min(-(-(max(positions_N) + 1) // 16) * 16, cache.positions)
        rows = slice(0, len(ids_N))
        return self.forward(self._model, cache, rows, ids_N1, position_N1, visible)

    def next_logits(self, cache: SlotCache, ids_N: list[int], positions_N: list[int]) -> torch.Tensor:
        """Read one token of each of the first N rows; return logits (N, V), good until the next pass."""
        logits_NV: torch.Tensor = self.decode(cache, ids_N, positions_N).logits[:, -1]
        return logits_NV

    def forget(self) -> None:
        """Drop what was kept for the cache as it is: its memory is about to change."""

    def copy_prefix(self, cache: SlotCache, source: int, targets: range, length: int) -> None:
        """Copy the first `length` positions of one slot over those of a run of others."""
        cache.copy_prefix(source, targets, length)

    def forward(
        self,
        module: Any,
        cache: SlotCache,
        rows: slice | torch.Tensor,
        ids_NL: torch.Tensor,
        position_NL: torch.Tensor,
        visible: int,
        **options: Any,
    ) -> Any:
        """Run the model or its layers over given rows and positions, which see the first `visible` positions."""
        self.passes += 1
        cache.aim(rows, position_NL, visible)
        return module(
            input_ids=ids_NL,
            position_ids=position_NL,
            attention_mask=self._masks.masks(position_NL, visible),
            past_key_values=cache,
            use_cache=True,
            **options,
        )
