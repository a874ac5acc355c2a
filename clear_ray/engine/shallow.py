"""The first layers of a model as a model of its own, which shares their weights and has the model's last norm and head.

A probe needs to know how hard a query is, not what comes next, and that is told well before the last layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from clear_ray.errors import ConfigError


def first_layers(model: Any, layers: int) -> Any:
    """Return `model` without what comes between its first layers and its last norm; no weight is copied.

    Args:
        model: A causal language model of transformers.
        layers: How many layers to keep, from 1 to all.

    Raises:
        ConfigError: It has fewer, or they are not one list.
    """
    depth = int(model.config.get_text_config().num_hidden_layers)
    if layers > depth:
        raise ConfigError(
            f"the model has {depth} layers", "estimate.layers", str(layers), "Give fewer, or none for all of them."
        )
    base, base_name = model.base_model, model.base_model_prefix
    names = [name for name, part in base.named_children() if isinstance(part, nn.ModuleList) and len(part) == depth]
    if len(names) != 1 or getattr(model, base_name, None) is not base:
        raise ConfigError(
            f"the layers of the architecture {model.config.model_type} cannot be told apart",
            "estimate.layers",
            str(layers),
            "Have the probe run all of them.",
        )
    short_base, short_model = _sharing(base), _sharing(model)
    setattr(short_base, names[0], getattr(base, names[0])[:layers])
    setattr(short_model, base_name, short_base)
    return short_model


def decoder_of(model: Any) -> Any:
    """Return what turns tokens into hidden states: the model without its head.

    Args:
        model: A causal language model of transformers.
    """
    decoder = model.get_decoder()
    if decoder is not model and decoder is not model.get_output_embeddings():  # which some call their decoder
        return decoder
    return getattr(model, "model", model) if model.base_model is model else model.base_model


@contextmanager
def states_of(decoder: Any) -> Iterator[list[Any]]:
    """Collect the hidden states of every pass in the block, after the last norm, without keeping those of other layers.

    Args:
        decoder: As `decoder_of` returns it.
    """
    states: list[Any] = []
    hook = decoder.register_forward_hook(lambda module, inputs, output: states.append(output[0]))
    try:
        yield states
    finally:
        hook.remove()


def _sharing(module: Any) -> Any:
    """Return a module with the same parts, of which each can be replaced without touching the other's."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    twin._forward_hooks = type(module._forward_hooks)()
    return twin
