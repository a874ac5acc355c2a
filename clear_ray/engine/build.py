"""From a configuration to a loaded engine: the one place that knows all engines."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from clear_ray.config.engine import EngineConfig, ModelConfig, OpenAIConfig, ReplayConfig, VllmConfig
from clear_ray.config.uncollected import uncollected
from clear_ray.engine.base import Engine, Prompt, read_prompt
from clear_ray.engine.plain_files import plain_config, plain_folder
from clear_ray.engine.threads import have_waiting_threads_sleep
from clear_ray.errors import ConfigError, SchemaError
from clear_ray.ingest import PromptLimit

if TYPE_CHECKING:
    from clear_ray.engine.rendering import Rendering

_TEMPLATE_TOKENS = 256  # more than any chat template adds to one conversation of ordinary length


@uncollected()
def build_engine(
    config: EngineConfig, *, probe_layers: int | None = None, told: Callable[[float], None] = lambda _: None
) -> Engine:
    """Load the engine that `config` describes.

    Args:
        config: Which engine.
        probe_layers: Layers of the model that its features are read from; None for all. Recorded features are what they are.
        told: Hears which share of a model's weights has been read, from 0 to 1; vLLM and endpoints do not tell.

    Raises:
        ConfigError: The model, the recordings, the endpoint's key or vLLM are not there, it is not the model that was
            pinned, or the engine cannot stop at a layer.
        EngineError: The model cannot be loaded.
    """
    if isinstance(config, ReplayConfig):
        from clear_ray.engine.replay import ReplayEngine

        return ReplayEngine(config)
    refuse_layers(config, probe_layers)
    if isinstance(config, OpenAIConfig):
        from clear_ray.engine.endpoint.engine import OpenAIEngine

        return OpenAIEngine(config)
    if config.fingerprint is not None:
        check_pin(config.model, config.fingerprint)
    if isinstance(config, VllmConfig):
        from clear_ray.engine.vllm import VllmEngine

        return VllmEngine(config)
    have_waiting_threads_sleep()
    from clear_ray.engine.transformers import TransformersEngine

    return TransformersEngine(config, probe_layers=probe_layers, told=told)


def with_key(config: EngineConfig) -> EngineConfig:
    """Return settings that carry the endpoint's key, read where the user is, to where the engine is; others as they are.

    Raises:
        ConfigError: The key is not there.
    """
    if not isinstance(config, OpenAIConfig):
        return config
    from clear_ray.engine.endpoint.connection import key_of

    return config.carrying(key_of(config))


def refuse_layers(config: EngineConfig, probe_layers: int | None) -> None:
    """Raise ConfigError if vLLM, or a model that is not here, is to stop at a layer."""
    if isinstance(config, VllmConfig | OpenAIConfig) and probe_layers is not None:
        raise ConfigError(
            "vLLM runs all layers of a model"
            if isinstance(config, VllmConfig)
            else "an endpoint's layers are not ours",
            "estimate.layers",
            str(probe_layers),
            "Leave it out; a head that was fitted with it has to be fitted again.",
        )


def check_pin(model: str, pinned: str) -> None:
    """Raise ConfigError if a model does not have the fingerprint that was pinned."""
    from clear_ray.engine.fingerprint import model_fingerprint
    from clear_ray.engine.loading import model_folder

    seen = model_fingerprint(model_folder(model))
    if seen != pinned:
        raise ConfigError(
            f"the model is not the one that was pinned, whose fingerprint is {pinned}",
            f"engine.fingerprint of {model}",
            seen,
            "Look where its files come from before you pin this one.",
        )


def prompt_limit(config: EngineConfig) -> PromptLimit | None:
    """Return how long a prompt may be, told without loading weights; None where the engine knows no limit.

    Raises:
        ConfigError: The model is not there, or its context is shorter than what is wanted, or unknown.
    """
    if isinstance(config, ReplayConfig | OpenAIConfig):
        return None
    from clear_ray.engine.context import context_tokens

    limit_tokens = context_tokens(config, _saved_config(config.model))
    added = _TEMPLATE_TOKENS + len((config.system_prompt or "").encode())
    counting = _Counting(config)
    return PromptLimit(limit_tokens, counting.count, template_tokens=added, vocabulary_tokens=counting.vocabulary)


def _saved_config(model: str) -> Any:
    if (folder := plain_folder(model)) is not None:
        return plain_config(folder)
    from clear_ray.engine.architectures import read_model_config
    from clear_ray.engine.loading import model_folder

    return read_model_config(model_folder(model))


class _Counting:
    """Counts the tokens of prompts; reads the tokenizer when it is first asked."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    @cached_property
    def _rendering(self) -> Rendering:
        from clear_ray.engine.rendering import rendering_of

        return rendering_of(self._config)

    def count(self, prompts: list[str], forms: list[str]) -> list[int]:
        return [
            _length(self._rendering, read_prompt(text, is_conversation=form == "conversation", form=form))
            for text, form in zip(prompts, forms, strict=True)
        ]

    def vocabulary(self) -> int:
        return len(self._rendering.tokenizer)


def _length(rendering: Rendering, prompt: Prompt) -> int:
    """Return the tokens of a prompt; 0 of one that its template refuses, which is not refused for its length."""
    try:
        return len(rendering.token_ids([prompt])[0])
    except SchemaError:
        return 0
