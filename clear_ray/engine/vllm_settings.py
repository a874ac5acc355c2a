"""From our settings to those of vLLM: the model's files, where it runs, how it thinks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from clear_ray.config.engine import VllmConfig
from clear_ray.engine.rendering import Rendering
from clear_ray.engine.smollm2 import refuse_own_code, resolve_model
from clear_ray.errors import ConfigError, EngineError

_GIB = 1 << 30
_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def whole_model_folder(model: str | Path) -> Path:
    """Return the local folder of a model with all its files; a hub name is downloaded first, without code or pickles.

    Raises:
        ConfigError: There is no such model, here or on the hub, the hub cannot be reached, or the model brings code.
    """
    source = resolve_model(str(model))
    if isinstance(source, Path):
        return source
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(source, allow_patterns=_MODEL_FILES, ignore_patterns=["consolidated*"]))
    except (OSError, ValueError) as error:
        raise ConfigError(
            "the model is not on this machine and cannot be had from the hub",
            "model",
            source,
            f"Download it first and name its folder. {next(iter(str(error).splitlines()), repr(error))}",
        ) from error
    refuse_own_code(folder)
    return folder


def check_installed() -> None:
    """Raise ConfigError if vLLM cannot be imported; import it with our defaults for what it says and reports."""
    # vLLM reports its use to its makers unless told otherwise, and says much that is not for users of ours.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "vLLM cannot be imported",
            "engine.kind",
            str(error),
            "Install it with `pip install 'clear_ray[vllm]'`, or choose the engine transformers.",
        ) from error


def read_configs(folder: Path) -> tuple[Any, Any]:
    """Return the model's configuration and its generation configuration, None if it has none."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        has_own = (folder / "generation_config.json").is_file()
        return config, GenerationConfig.from_pretrained(folder) if has_own else None
    except (OSError, ValueError) as error:
        raise EngineError(
            "the model's configuration cannot be read", str(folder), str(error), remedy="Save the model's folder again."
        ) from error


def placement(config: VllmConfig) -> dict[str, Any]:
    """Return the arguments that depend on the device."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        # Inside a Ray actor vLLM would otherwise look for a placement group and start actors of its own.
        split = {"distributed_executor_backend": "mp"} if config.tensor_parallel > 1 else {}
        return {"dtype": config.dtype, **split}
    if config.tensor_parallel > 1:
        raise ConfigError("a model is split over GPUs only", "tensor_parallel", str(config.tensor_parallel), "Give 1.")
    dtype = "float32" if config.dtype == "auto" else config.dtype
    return {"dtype": dtype, "kv_cache_memory_bytes": int(config.cpu_cache_gib * _GIB)}


def reasoning(rendering: Rendering, config: VllmConfig) -> Any:
    """Return vLLM's settings of a model's thinking.

    Raises:
        ConfigError: The model's tokenizer does not have what begins and ends it as one token each: it does not think.
    """
    from vllm.config import ReasoningConfig

    for setting, text in (("thinking_start", config.thinking_start), ("thinking_end", config.thinking_end)):
        tokens = len(rendering.plain_token_ids(text))
        if tokens != 1:
            raise ConfigError(
                f"the model does not think: its tokenizer writes {text} with {tokens} tokens",
                f"engine.{setting}",
                text,
                "Leave thinking_tokens out, or name the tokens between which this model thinks.",
            )
    return ReasoningConfig(reasoning_start_str=config.thinking_start, reasoning_end_str=config.thinking_end)
