"""What each layer of a model may look back at: one mask for each type of layer, made once a pass.

transformers makes the masks of a pass for rows that all stand at the same position. The rows of a slot cache do not, so
the masks are made here, from the positions and from what the configuration says of the layers.

Shapes: N rows of a pass, L positions of a pass, T positions that the pass may see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Rule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Returns where a token at a position (N, L, 1) may look among the positions T."""


class LayerMasks:
    """The masks of one model.

    Args:
        config: Its configuration, as transformers reads it.
        dtype: Dtype of the model.
        device: Where it runs.

    Raises:
        NotImplementedError: It has a type of layer whose rule is not one of full, sliding and chunked attention.
    """

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        text_config = config.get_text_config()
        self._rules: dict[str, Rule] = {
            layer_type: _rule(layer_type, text_config) for layer_type in sorted(layer_types(text_config))
        }
        # Models whose layers are all alike take the mask itself, the others choose theirs from a mapping.
        self._is_mapping = bool(getattr(text_config, "layer_types", None))
        self._hidden_below = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=device)

    def masks(self, position_NL: torch.Tensor, visible: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return what is added to the scores of a pass, (N, 1, L, T), for each type of layer if there are several.

        Args:
            position_NL: Positions of the tokens that are read.
            visible: How many positions a token may look at, T.
        """
        position_T = torch.arange(visible, device=position_NL.device)
        masks = {
            layer_type: (self._hidden_below * ~rule(position_NL[:, :, None], position_T))[:, None]
            for layer_type, rule in self._rules.items()
        }
        return masks if self._is_mapping else next(iter(masks.values()))


def layer_types(text_config: Any) -> frozenset[str]:
    """Return the types of a model's layers, in transformers' words."""
    if named := getattr(text_config, "layer_types", None):
        return frozenset(named)
    if getattr(text_config, "sliding_window", None) is not None:
        return frozenset(("sliding_attention",))
    if getattr(text_config, "attention_chunk_size", None) is not None:
        return frozenset(("chunked_attention",))
    return frozenset(("full_attention",))


def _rule(layer_type: str, text_config: Any) -> Rule:
    if layer_type == "full_attention":
        return _is_earlier
    if layer_type == "sliding_attention" and (window := getattr(text_config, "sliding_window", None)):
        return lambda position, seen: _is_earlier(position, seen) & (seen > position - window)
    if layer_type == "chunked_attention" and (chunk := getattr(text_config, "attention_chunk_size", None)):
        return lambda position, seen: _is_earlier(position, seen) & (seen // chunk == position // chunk)
    raise NotImplementedError(f"its layers of type {layer_type} do not just look back at earlier positions")


def _is_earlier(position: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    return seen <= position
