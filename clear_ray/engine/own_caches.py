"""Passes of models whose layers keep a state that no slot can hold: every answer has a cache of the model's own class.

A recurrent layer (Mamba, RWKV, gated delta nets, short convolutions) folds what was read into a state of fixed size. It
cannot be cut back to a shorter prefix, nor can rows of unequal length be filled up without changing it. So such answers are
read and decoded one after the other, each with the cache that the model makes, in the passes that `generate` makes: the
whole prompt in one, then a token at a time. That they share no pass is what it costs.

`OwnCacheRunner` and `OwnCaches` stand in for `SlotRunner` and `SlotCache`, with the same calls.

Shapes: N rows of a pass, L tokens of a prompt, V vocabulary, D hidden width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from clear_ray.engine.context import unscaled_context
from clear_ray.engine.shallow import decoder_of, states_of

_SWITCHING = frozenset(("phi3", "phimoe", "phi4_multimodal"))
"""Architectures whose `generate` reads everything again where the scaling of its positions changes."""
_CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""What a model's forward may call its cache, and its output too."""


class OwnCaches:
    """The caches of the running answers, one for each slot; None where nothing has been read."""

    def __init__(self) -> None:
        self.slots = self.positions = 0
        self.rows: list[Any] = []
        self.ids: list[list[int]] = []  # of each slot; those that its cache lacks are read with the token that follows

    def reserve(self, slots: int, positions: int, kept_rows: int) -> None:
        """Change the number of slots, keeping the first `kept_rows`."""
        more = slots - kept_rows
        self.rows = [*self.rows[:kept_rows], *[None] * more]
        self.ids = [*self.ids[:kept_rows], *[[] for _ in range(more)]]
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
        self._model, self._decoder = model, decoder_of(model)
        self._device: torch.device = model.device
        self.passes = 0
        self.pause: Callable[[], None] | None = None  # as `SlotRunner.pause`; a prompt is one pass here
        taken = inspect.signature(model.forward).parameters
        self._cache_name = _cache_name(taken)
        self._takes_positions = "position_ids" in taken
        self._last_logits = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        self._switches_at = unscaled_context(model.config) if model.config.model_type in _SWITCHING else None

    def prefill(self, cache: OwnCaches, first: int, ids_per_row: Sequence[list[int]], chunk: int) -> None:
        """Note what the rows begin with; it is read with the token after it, in one pass as `generate` does."""
        del chunk
        for row, ids in enumerate(ids_per_row, start=first):
            cache.rows[row], cache.ids[row] = None, list(ids)

    def continue_from(
        self, cache: OwnCaches, first: int, ids_per_row: Sequence[list[int]], chunk: int, slots: Sequence[list[int]]
    ) -> None:
        """As `prefill`: what another row has read cannot be shared."""
        del slots
        self.prefill(cache, first, ids_per_row, chunk)

    def decode(self, cache: OwnCaches, ids_N: list[int], positions_N: list[int]) -> Any:
        """Read one token of each of the first N rows, after what was not read yet; return logits (N, 1, V)."""
        logits = []
        for row, (token_id, position) in enumerate(zip(ids_N, positions_N, strict=True)):
            if not position:  # whatever the slot held before, a row begins with nothing
                cache.rows[row], cache.ids[row] = None, []
            cache.ids[row].append(token_id)
            begin = position if self._goes_on(cache.rows[row], position) else 0
            held = cache.rows[row] if begin else None
            output, cache.rows[row] = self._pass(cache.ids[row][begin:], begin, held)
            logits.append(output.logits[:, -1:])
        return SimpleNamespace(logits=torch.cat(logits))

    def next_logits(self, cache: OwnCaches, ids_N: list[int], positions_N: list[int]) -> torch.Tensor:
        """Read one token of each of the first N rows; return logits (N, V)."""
        logits_NV: torch.Tensor = self.decode(cache, ids_N, positions_N).logits[:, -1]
        return logits_NV

    def read(self, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a prompt in one pass; return its hidden states after the last norm (L, D), and the logits after it (V)."""
        with states_of(self._decoder) as states:
            output, _ = self._pass(ids, 0, None)
        return states[0][0], output.logits[0, -1]

    def forget(self) -> None:
        """Do nothing: nothing is kept for the caches."""

    def copy_prefix(self, cache: OwnCaches, source: int, targets: range, length: int) -> None:
        """Let another slot have what one has read, all of it; the one is given up."""
        del length
        for target in targets:
            cache.rows[target], cache.ids[target] = cache.rows[source], cache.ids[source]

    def _goes_on(self, held: Any, position: int) -> bool:
        """Return whether a token at a position can be read after what is held, not with everything before it."""
        return held is not None and position != self._switches_at

    def _pass(self, ids: list[int], position: int, held: Any) -> tuple[Any, Any]:
        """Run the model over the next tokens of a row; return its output and its cache."""
        self.passes += 1
        options: dict[str, Any] = {self._cache_name: held, **self._last_logits}
        if self._takes_positions:
            options["position_ids"] = torch.arange(position, position + len(ids), device=self._device)[None]
        forget_longest(self._model)
        output = self._model(input_ids=torch.tensor([ids], device=self._device), use_cache=True, **options)
        if getattr(output, self._cache_name, None) is None:
            raise NotImplementedError("it keeps what it has read inside its layers, where only one answer has room")
        return output, output[self._cache_name]


def forget_longest(model: Any) -> None:
    """Have dynamically scaled positions forget the longest row that they have seen: it was another answer's."""
    for part in model.modules():
        longest = getattr(part, "max_seq_len_cached", None)
        if longest is not None and longest > part.original_max_seq_len and hasattr(part, "original_inv_freq"):
            part.inv_freq = part.original_inv_freq.to(part.inv_freq.device)
            part.max_seq_len_cached = part.original_max_seq_len


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


def _cache_name(taken: Mapping[str, Any]) -> str:
    for name in _CACHE_NAMES:
        if name in taken:
            return name
    raise NotImplementedError("it keeps no cache: every token would be read again for each that follows")
