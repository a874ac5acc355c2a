"""The identity of a model: one digest over architecture, weights and tokenizer.

A fitted head is only good for the model whose hidden states it was fitted on, so it names that model by this digest.
The digest must not change when the same model is saved again by another version of transformers: keys that describe
the file rather than the model are left out, and weights are digested tensor by tensor, whatever files they lie in.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clear_ray.engine.smollm2 import cache_folder
from clear_ray.errors import EngineError

_ABOUT_THE_FILE = frozenset(
    ("transformers_version", "_name_or_path", "_model_name_or_path", "dtype", "torch_dtype", "use_cache")
)
_BLOCK_BYTES = 1 << 22
_RULES = "fingerprint 1"  # changes with what is digested, and how
_HEADER_LIMIT_BYTES = 1 << 28


def model_fingerprint(folder: Path) -> str:
    """Return the SHA-256 hex digest of the model saved in `folder`.

    It is kept in the cache folder by path, size and time of change of the files, and so are the digests of each weight file,
    as reading a large model takes as long as loading it.

    Raises:
        EngineError: A file is missing or is not what its name says.
    """
    config, tokenizer, weights = folder / "config.json", folder / "tokenizer.json", sorted(folder.glob("*.safetensors"))
    if not weights:
        raise EngineError("there are no safetensors weights", str(folder), remedy="Save the model as safetensors.")

    def digested() -> str:
        digest = hashlib.sha256()
        digest.update(_canonical_json(config, without=_ABOUT_THE_FILE))
        digest.update(_canonical_json(tokenizer) if tokenizer.is_file() else b"-")
        tensors: dict[str, str] = {}
        for file in weights:
            tensors.update(_kept([file], partial(_read_tensor_digests, file)))
        digest.update(json.dumps(tensors, sort_keys=True).encode())
        return digest.hexdigest()

    found: str = _kept([config, tokenizer, *weights], digested)
    return found


def _canonical_json(file: Path, *, without: frozenset[str] = frozenset()) -> bytes:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(
            "the file is missing or not JSON", str(file), str(error), remedy="Save the model's folder again."
        ) from error
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in without}
    return json.dumps(content, sort_keys=True, ensure_ascii=True).encode()


def _kept(files: Sequence[Path], found: Callable[[], Any]) -> Any:
    """Return what is kept of files as they are, or else what is found of them, and keep that."""
    state = "\0".join([_RULES, *map(_state, files)])
    kept = cache_folder() / "digests" / f"{hashlib.sha256(state.encode()).hexdigest()}.json"
    try:
        return json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = found()
        _keep(kept, json.dumps(known))
        return known


def _state(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return f"{file}\0"
    return f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"


def _read_tensor_digests(file: Path) -> dict[str, str]:
    """Return tensor name -> digest of its type, shape and bytes.

    A safetensors file is 8 bytes of header length, a JSON header, then the data.
    """
    digests: dict[str, str] = {}
    try:
        with file.open("rb") as data:
            (header_bytes,) = struct.unpack("<Q", data.read(8))
            if header_bytes > _HEADER_LIMIT_BYTES:
                raise ValueError(f"a header of {header_bytes} bytes")
            header: dict[str, Any] = json.loads(data.read(header_bytes))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                start, end = entry["data_offsets"]
                digest = hashlib.sha256(f"{entry['dtype']}{entry['shape']}".encode())
                data.seek(8 + header_bytes + start)
                for position in range(start, end, _BLOCK_BYTES):
                    digest.update(data.read(min(_BLOCK_BYTES, end - position)))
                digests[name] = digest.hexdigest()
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise EngineError("the file is not safetensors", str(file), str(error), "Download or save it again.") from error
    return digests


def _keep(file: Path, text: str) -> None:
    """Write a cache file in one step; a cache that cannot be written only costs time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as unfinished:
            unfinished.write(text)
        os.replace(unfinished.name, file)
    except OSError:
        return
