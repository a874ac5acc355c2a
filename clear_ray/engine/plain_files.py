"""A model's small files, read without transformers: importing it with torch takes the driver of a run five seconds of a core.

Only what is the same as transformers reads it is answered here; for all else the caller asks transformers. The architectures
are plain decoders whose `config.json` says everything itself, which a test holds for each of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from clear_ray.engine.smollm2 import resolve_model

PLAIN_ARCHITECTURES = frozenset(
    [
        *("cohere", "gemma", "gemma2", "glm", "granite", "llama", "mistral", "olmo", "olmo2", "phi"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2"),
    ]
)
_PLAIN_TOKENIZERS = frozenset(("TokenizersBackend", "PreTrainedTokenizerFast"))


def plain_folder(model: str) -> Path | None:
    """Return the folder of a model if it is a plain one that lies here; None if transformers has to be asked.

    Raises:
        ConfigError: As of `resolve_model`.
    """
    folder = resolve_model(model)
    return folder if isinstance(folder, Path) and plain_config(folder) is not None else None


def plain_config(folder: Path) -> Any | None:
    """Return what a model's `config.json` says, as far as a run asks before it loads weights; None if it is not plain."""
    saved = _read(folder / "config.json")
    positions = [saved.get(name) for name in ("rope_parameters", "rope_scaling")]
    is_scaled = any(isinstance(rope, dict) and _rope_type(rope) != "default" for rope in positions)
    is_plain = saved.get("model_type") in PLAIN_ARCHITECTURES and "auto_map" not in saved
    if not is_plain or is_scaled or not isinstance(saved.get("max_position_embeddings"), int):
        return None
    config = SimpleNamespace(**{**saved, "rope_parameters": None, "rope_scaling": None})
    config.get_text_config = lambda: config
    return config


def has_plain_tokenizer(folder: Path) -> bool:
    """Return whether a model's tokenizer is its `tokenizer.json` and no more."""
    settings = _read(folder / "tokenizer_config.json")
    is_plain = settings.get("tokenizer_class") in _PLAIN_TOKENIZERS and "auto_map" not in settings
    return is_plain and (folder / "tokenizer.json").is_file() and plain_config(folder) is not None


def has_template_file(folder: Path) -> bool:
    """Return whether a model has a chat template."""
    named = _read(folder / "tokenizer_config.json").get("chat_template")
    return bool(named) or any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json"))


def _rope_type(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
