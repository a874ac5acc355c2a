"""What loading an engine would refuse, as far as the files say it: told without loading a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from clear_ray.config.engine import (
    EngineConfig,
    ModelConfig,
    OpenAIConfig,
    ReplayConfig,
    TransformersConfig,
    VllmConfig,
)
from clear_ray.engine.build import build_engine, check_pin, refuse_layers
from clear_ray.engine.endpoint.check import endpoint_notes, fingerprint_of
from clear_ray.engine.vllm_settings import check_installed
from clear_ray.errors import ConfigError, EngineError, SchemaError


def check_engine(
    config: EngineConfig, *, probe_layers: int | None, check_model: Callable[[str], None], is_for_any_model: bool
) -> None:
    """Raise what building this engine would, or refuse its head.

    Args:
        config: Which engine.
        probe_layers: Layers of the model that the head's features are read from; None for all.
        check_model: The head's: raises for the fingerprint of a model that it was not fitted for.
        is_for_any_model: Whether it accepts every model, so that no weights need be read to know this one.

    Raises:
        ConfigError: The model, its files, the pin, the head or a setting do not fit each other.
        EngineError: A file of the model is missing or damaged.
        SchemaError: A recording cannot be read.
    """
    if isinstance(config, ReplayConfig):
        check_model(build_engine(config).card.fingerprint)
        return
    refuse_layers(config, probe_layers)
    if isinstance(config, OpenAIConfig):
        check_model(fingerprint_of(config.model))
        return
    if isinstance(config, VllmConfig) and not os.environ.get("RAY_ADDRESS"):  # else it runs on that cluster's machines
        check_installed()
    from clear_ray.engine.notes import silent_transformers

    with silent_transformers():
        _check_files(config, probe_layers)
    from clear_ray.engine.fingerprint import model_fingerprint
    from clear_ray.engine.loading import model_folder

    folder = model_folder(config.model)
    if not any(folder.glob("*.safetensors")):
        return  # of a hub's model the weights come when it is loaded
    if config.fingerprint is not None:
        check_pin(config.model, config.fingerprint)
    if not is_for_any_model:
        check_model(model_fingerprint(folder))


def _check_files(config: ModelConfig, probe_layers: int | None) -> None:
    """Raise for a tokenizer, an architecture, a context or a folder that no engine can use."""
    from pathlib import Path

    from transformers import AutoConfig

    from clear_ray.engine.architectures import refuse_unfit
    from clear_ray.engine.closing import make_closing
    from clear_ray.engine.context import context_tokens
    from clear_ray.engine.fingerprint import model_fingerprint
    from clear_ray.engine.quantized import refuse_unreadable
    from clear_ray.engine.rendering import rendering_of
    from clear_ray.engine.shallow import first_layers
    from clear_ray.engine.smollm2 import resolve_model
    from clear_ray.engine.weights import has_usual_files, refuse_broken_weights, shapes_of

    make_closing(rendering_of(config), config)
    _refuse_broken_template(rendering_of(config), config.model)
    source = resolve_model(config.model)
    try:
        architecture: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if isinstance(config, TransformersConfig):
            refuse_unfit(architecture)  # first: making some models changes what they are made from
            refuse_unreadable(architecture, runs_here=not os.environ.get("RAY_ADDRESS"))
        bare = _without_weights(architecture) if isinstance(config, TransformersConfig) else None
    except ConfigError:
        raise
    except Exception as error:  # of as many kinds as there are architectures
        remedy = "Look whether its folder is whole, and a model that transformers knows as a causal language model."
        raise EngineError("the model cannot be loaded", f"model {config.model}", str(error), remedy) from error
    context_tokens(config, architecture)
    if bare is not None and probe_layers is not None:
        first_layers(bare, probe_layers)
    if isinstance(config, TransformersConfig) and config.device is not None:
        _check_device(config.device)
    if isinstance(source, Path) and not any(source.glob("*.safetensors")):
        model_fingerprint(source)  # says that there are none
    if isinstance(source, Path) and (bare is not None or has_usual_files(source)):  # vLLM reads others, too
        is_quantized = getattr(architecture, "quantization_config", None) is not None
        refuse_broken_weights(source, shapes=None if bare is None or is_quantized else shapes_of(bare))


def _refuse_broken_template(rendering: Any, model: str) -> None:
    """Raise for a chat template that is none: it would fail every row."""
    from jinja2 import TemplateSyntaxError

    try:
        rendering.token_ids(["a"])
    except SchemaError as error:
        if isinstance(error.__cause__, TemplateSyntaxError):
            remedy = "Save the tokenizer with the template that the model came with."
            raise EngineError(
                "its chat template cannot be read", f"model {model}", str(error.__cause__), remedy
            ) from error


def engine_notes(config: EngineConfig) -> tuple[str, ...]:
    """Return a line for each thing about the model that a user would not expect; arguments and errors of `model_notes`.

    Raises:
        ConfigError: An endpoint does not take the key or has no such model.
        EngineError: It cannot be reached.
    """
    if isinstance(config, ReplayConfig):
        return ()
    if isinstance(config, OpenAIConfig):
        return endpoint_notes(config)
    from clear_ray.engine.notes import model_notes

    return model_notes(config)


def _without_weights(architecture: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            architecture, trust_remote_code=False
        )


def _check_device(name: str) -> None:
    import torch

    from clear_ray.engine.grouping import PREFILL_TOKENS

    try:
        is_known = torch.device(name).type in PREFILL_TOKENS
    except RuntimeError:
        is_known = False
    if not is_known:
        raise ConfigError("no such device here", "device", name, "Give cpu or cuda.")
