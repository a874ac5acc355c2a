"""Passes of models whose layers keep a state that no slot can hold: every answer has a cache of the model's own class.

A recurrent layer (Mamba, RWKV, gated delta nets, short convolutions) folds what was read into a state of fixed size. It
cannot be cut back to a shorter prefix, nor can rows of unequal length be filled up without changing it. So such answers are
read and decoded one after the other, each with the cache that transformers makes for the model. They get the tokens that
they get from `generate`; that they share no pass is what it costs.

`OwnCacheRunner` and `OwnCaches` stand in for `SlotRunner` and `SlotCache`, with the same calls.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from clear_ray.engine.shallow import decoder_of

_CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""What a model's forward may call its cache, and its output too."""


class OwnCaches:
    """The caches of the running answers, one for each slot; None where nothing has been read."""

    def __init__(self) -> None:
        self.slots = self.positions = 0
        self.rows: list[Any] = []

    def reserve(self, slots: int, positions: int, kept_rows: int) -> None:
        """Change the number of slots, keeping the first `kept_rows`."""
        self.rows = [*self.rows[:kept_rows], *[None] * (slots - kept_rows)]
        self.slots, self.positions = slots, positions

    def row_bytes(self, row: int) -> int:
        """Return what the cache of a slot takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(self.rows[row]))


class OwnCacheRunner:
    """Runs a model over the rows of `OwnCaches`, one at a time.

    Args:
        model: A causal language model of transformers.

    Raises:
        NotImplementedError: Its forward takes no cache.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device: torch.device = model.device
        self.passes = 0
        self.decoder = decoder_of(model)
        self._config = model.config.get_text_config(decoder=True)
        self._cache_name = _cache_name(model)

    def prefill(
        self, cache: OwnCaches, first: int, ids_per_row: Sequence[list[int]], chunk: int
    ) -> torch.Tensor | None:
        """Read whole rows, each in one pass; arguments and result as of `SlotRunner.prefill`."""
        del chunk  # not every recurrent layer goes on from a state with more than one token
        sums = [self._read(cache, first + row, ids) for row, ids in enumerate(ids_per_row)]
        return torch.stack(sums) if any(ids_per_row) else None

    def continue_from(
        self, cache: OwnCaches, first: int, ids_per_row: Sequence[list[int]], chunk: int, slots: Sequence[list[int]]
    ) -> None:
        """Read whole rows: what another one has read cannot be shared."""
        del slots
        self.prefill(cache, first, ids_per_row, chunk)

    def decode(self, cache: OwnCaches, ids_N: list[int], positions_N: list[int]) -> Any:
        """Read one token of each of the first N rows, one after the other; return logits (N, 1, V)."""
        logits = [
            self._pass(self._model, cache, row, [token_id], position).logits[:, -1:]
            for row, (token_id, position) in enumerate(zip(ids_N, positions_N, strict=True))
        ]
        return SimpleNamespace(logits=torch.cat(logits))

    def next_logits(self, cache: OwnCaches, ids_N: list[int], positions_N: list[int]) -> torch.Tensor:
        """Read one token of each of the first N rows; return logits (N, V)."""
        logits_NV: torch.Tensor = self.decode(cache, ids_N, positions_N).logits[:, -1]
        return logits_NV

    def forget(self) -> None:
        """Do nothing: nothing is kept for the caches."""

    def copy_prefix(self, cache: OwnCaches, source: int, targets: range, length: int) -> None:
        """Put what one slot has read in the place of others; it is as long as it is."""
        del length
        for target in targets:
            cache.rows[target] = copy.deepcopy(cache.rows[source]) if len(targets) > 1 else cache.rows[source]

    def _read(self, cache: OwnCaches, row: int, ids: list[int]) -> torch.Tensor:
        """Read a row from its beginning; return the sum of its hidden states, float32 (D)."""
        cache.rows[row] = None
        if not ids:
            return torch.zeros(int(self._config.hidden_size), device=self._device)
        output = self._pass(self.decoder, cache, row, ids, 0)
        total_D: torch.Tensor = output[0][0].float().sum(dim=0)
        return total_D

    def _pass(self, module: Any, cache: OwnCaches, row: int, ids: list[int], position: int, **options: Any) -> Any:
        """Run the model or its layers over the next tokens of a row."""
        self.passes += 1
        # Whatever the slot held before, a row begins with nothing: the model makes the cache that fits it.
        name, held = self._cache_name, cache.rows[row] if position else None
        if "position_ids" in inspect.signature(module.forward).parameters:
            options["position_ids"] = torch.arange(position, position + len(ids), device=self._device)[None]
        output = module(input_ids=torch.tensor([ids], device=self._device), use_cache=True, **{name: held}, **options)
        if getattr(output, name, None) is None:
            raise NotImplementedError("it keeps what it has read inside its layers, where only one answer has room")
        cache.rows[row] = output[name]
        return output


def _tensors_in(cache: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors that a cache holds, whatever it is made of."""
    if isinstance(cache, torch.Tensor):
        yield cache
        return
    if isinstance(cache, dict):
        parts: list[Any] = list(cache.values())
    elif isinstance(cache, (list, tuple)):
        parts = list(cache)
    else:
        parts = list(vars(cache).values()) if hasattr(cache, "__dict__") else []
    for part in parts:
        if part is None or isinstance(part, (torch.dtype, torch.device, type, str, int, float)):
            continue
        yield from _tensors_in(part)


def _cache_name(module: Any) -> str:
    taken = inspect.signature(module.forward).parameters
    for name in _CACHE_NAMES:
        if name in taken:
            return name
    raise NotImplementedError("it keeps no cache: every token would be read again for each that follows")
