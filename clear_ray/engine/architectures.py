"""What is known of an architecture before its weights are loaded: whether it runs, and whether its answers share passes.

`architectures.json` is what the zoo found (tests/unit/engine/test_zoo.py): tiny random models of every causal architecture
that transformers has, beside transformers' own `generate`. An architecture that it does not name is tried when it is loaded.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from clear_ray.engine.context import moving_positions, unscaled_context
from clear_ray.errors import ConfigError

TABLE = Path(__file__).with_name("architectures.json")
_ENCODER_DECODER = "it is an encoder-decoder model"
_ENCODER = "it is an encoder, whose tokens look ahead (its config.json does not set is_decoder)"
_ASSISTANT = "it drafts for another model, whose states it reads"
_BY_SETTING = frozenset((_ENCODER, _ENCODER_DECODER, _ASSISTANT))
_REMEDY = "Set engine.kind to vllm, or use another model."


@dataclass(frozen=True, slots=True)
class Architecture:
    """How models of one architecture run.

    Attributes:
        way: `slots`: all running answers in one pass. `own_caches`: one after the other. `refused`, or `untried`.
        reason: Why it does not run in slots; empty if it does.
        package: Python package without which it cannot be made; empty for none beside transformers.
    """

    way: Literal["slots", "own_caches", "refused", "untried"]
    reason: str = ""
    package: str = ""


@cache
def known_architectures() -> dict[str, Architecture]:
    """Return what the zoo found, by the `model_type` of a configuration."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Architecture(**row) for name, row in table["architectures"].items()}


def read_model_config(folder: Path) -> Any:
    """Return the configuration of a saved model, as transformers reads it; none of its code is run.

    Raises:
        ConfigError: transformers does not know the architecture, or its configuration is broken.
    """
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # configurations are checked by their own classes, each in its own way
        raise ConfigError(
            f"the model cannot be loaded: transformers {transformers.__version__} does not read its configuration",
            str(folder / "config.json"),
            next(iter(str(error).splitlines()), repr(error)),
            "Look whether the file is whole, and whether a newer transformers knows the architecture.",
        ) from error


def refuse_unfit(config: Any) -> None:
    """Refuse a model that cannot be run here, told from its configuration alone.

    Args:
        config: As transformers reads it.

    Raises:
        ConfigError: Its architecture is known not to run, or needs a package that is not installed.
    """
    known = known_architectures().get(config.model_type)
    if known is not None and known.package and importlib.util.find_spec(known.package) is None:
        remedy = f"pip install {known.package}, and try again: it is tried when it is loaded. Or use another model."
        raise unfit(config, f"{known.reason}, which is not installed", remedy)
    reason = unfit_reason(config)
    # What the zoo refused by a setting is not refused where the setting is another.
    if not reason and known is not None and known.way == "refused" and known.reason not in _BY_SETTING:
        reason = known.reason
    if reason:
        raise unfit(config, reason)


def unfit(config: Any, reason: str, remedy: str = _REMEDY) -> ConfigError:
    """Return the refusal of a model, which names its architecture."""
    return ConfigError(
        f"the architecture {config.model_type} cannot be run by this engine: {reason}", "engine.model", remedy=remedy
    )


def unfit_reason(config: Any) -> str:
    """Return why a model is no causal language model by its own settings; empty if it may be one."""
    if getattr(config, "is_encoder_decoder", False):
        return _ENCODER_DECODER
    if hasattr(config, "backbone_hidden_size"):
        return _ASSISTANT
    # Those that know cross-attention are encoders unless they are told to decode.
    if hasattr(config, "add_cross_attention") and not getattr(config, "is_decoder", True):
        return _ENCODER
    return ""


def way_note(config: Any, context_tokens: int) -> str | None:
    """Return a line for a model whose answers share no passes; None if they do, or nothing is known of it.

    Args:
        config: As transformers reads it.
        context_tokens: The longest row that there will be.
    """
    known = known_architectures().get(config.model_type)
    reason = known.reason if known is not None and known.way == "own_caches" else ""
    remedy = "engine.kind vllm batches them"
    if not reason and (reason := moving_positions(config, context_tokens)):
        remedy = f"engine.max_context_tokens of at most {unscaled_context(config)} batches them, and so does engine.kind vllm"
    if not reason:
        return None
    return f"answers of {config.model_type} are run one after the other, not in one batch: {reason}; {remedy}"
