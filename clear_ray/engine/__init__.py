"""Language models behind one protocol. Importing this package loads neither torch, transformers nor vLLM."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clear_ray.engine.base import (
    Engine,
    Features,
    FinishReason,
    Generation,
    Grant,
    ModelCard,
    Prompt,
    check_generation,
)
from clear_ray.engine.smollm2 import resolve_model

if TYPE_CHECKING:
    from clear_ray.engine.replay import ReplayEngine
    from clear_ray.engine.transformers import TransformersEngine
    from clear_ray.engine.vllm import VllmEngine

__all__ = [
    "Engine",
    "Features",
    "FinishReason",
    "Generation",
    "Grant",
    "ModelCard",
    "Prompt",
    "ReplayEngine",
    "TransformersEngine",
    "VllmEngine",
    "check_generation",
    "resolve_model",
]

_HOME_OF = {
    "ReplayEngine": "clear_ray.engine.replay",
    "TransformersEngine": "clear_ray.engine.transformers",
    "VllmEngine": "clear_ray.engine.vllm",
}


def __getattr__(name: str) -> Any:
    """Import an engine when it is first asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """List the engines, too, that are not imported yet."""
    return sorted({*globals(), *__all__})
