"""Models whose weights are saved quantized: what transformers lacks to read them is told from `config.json`."""

from __future__ import annotations

from typing import Any

from clear_ray.errors import ConfigError


def refuse_unreadable(saved: Any, *, runs_here: bool = True) -> None:
    """Refuse a model whose weights transformers could not read, or would pass over and leave as they are drawn.

    Args:
        saved: Its own configuration, as transformers reads it.
        runs_here: Whether it is loaded on this machine, so that the packages that are installed here tell.

    Raises:
        ConfigError: Its quantization is not known, or lacks a package or a device.
    """
    given = getattr(saved, "quantization_config", None) or getattr(saved.get_text_config(), "quantization_config", None)
    if given is None:
        return
    from transformers.quantizers import auto

    quantizers: Any = auto.AutoHfQuantizer
    settings = given if isinstance(given, dict) else given.to_dict()
    method = str(settings.get("quant_method", "an unnamed method"))
    remedy = "Install what it names, use a model that is not quantized, or set engine.kind to vllm."
    try:
        if quantizers.supports_quant_method(settings):
            if runs_here:
                merged = quantizers.merge_quantization_configs(settings, None)
                quantizers.from_config(merged, pre_quantized=True).validate_environment(
                    device_map=None, weights_only=True
                )
            return
        said = "transformers does not know it"
    except Exception as error:  # each method checks in its own way
        said = next(iter(str(error).splitlines()), repr(error))
    what = f"the model's weights are quantized by {method}: {said.rstrip(' .')}"
    raise ConfigError(what, "engine.model", remedy=remedy)
