"""From a configuration to a loaded engine: the one place that knows all engines."""

from __future__ import annotations

from clear_ray.config import EngineConfig, ReplayConfig
from clear_ray.engine.base import Engine
from clear_ray.ingest import PromptLimit


def build_engine(config: EngineConfig) -> Engine:
    """Load the engine that `config` describes.

    Raises:
        ConfigError: The model or the recordings are not there.
        EngineError: The model cannot be loaded.
    """
    if isinstance(config, ReplayConfig):
        from clear_ray.engine.replay import ReplayEngine

        return ReplayEngine(
            config.rollouts, config.features, tokens_per_second=config.tokens_per_second, max_batch=config.max_batch
        )
    from clear_ray.engine.transformers import TransformersEngine

    return TransformersEngine(
        config.model,
        device=config.device,
        dtype=None if config.dtype == "auto" else config.dtype,
        max_batch=config.max_batch,
        max_context_tokens=config.max_context_tokens,
        chat_template=config.chat_template,
        system_prompt=config.system_prompt,
        temperature=config.temperature,
        top_p=config.top_p,
        threads=config.threads,
    )


def prompt_limit(config: EngineConfig) -> PromptLimit | None:
    """Return how long a prompt may be, told without loading weights; None where the engine knows no limit."""
    return None
