"""Whether a model's weight files are what their names say and all there, from their first bytes: no weight is loaded."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clear_ray.errors import EngineError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_POINTER = b"version https://git-lfs"
_HEADER_LIMIT_BYTES = 1 << 28
_AGAIN = "Download or save it again."
_FROM_ONE_MODEL = "Take config.json and weights from the same model."


def refuse_broken_weights(folder: Path, *, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
    """Refuse a folder whose weights cannot be loaded.

    Args:
        folder: Where the model is saved.
        shapes: The shape of each weight that its configuration asks for, under the names of transformers; not compared if
            not given. Where some are saved under other names, those are not looked at.

    Raises:
        EngineError: A file is missing, a pointer, cut off or none; or a weight is missing or has another shape.
    """
    known, held = shapes or {}, set[str]()
    for file in _files(folder):
        for name, shape in _shapes_in(file).items():
            held.add(name)
            wanted = known.get(name, shape)
            if wanted != shape:
                what = f"the weight {name} has another shape than config.json says, {wanted}"
                raise EngineError(what, str(file), str(shape), _FROM_ONE_MODEL)
    if held <= known.keys() and (missing := sorted(known.keys() - held)):  # none of them is saved under another name
        what = f"its files lack {len(missing):,} of the weights that config.json asks for"
        raise EngineError(what, str(folder), missing[0], _FROM_ONE_MODEL)


def has_usual_files(folder: Path) -> bool:
    """Whether weights are saved under the names that transformers gives them."""
    return (folder / _WHOLE).is_file() or (folder / _INDEX).is_file()


def shapes_of(bare: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's weights, by their names; without those that its files may lack."""
    may_lack = [re.compile(pattern) for pattern in getattr(bare, "_keys_to_ignore_on_load_missing", None) or ()]
    weights = bare.named_parameters()
    return {name: tuple(weight.shape) for name, weight in weights if not any(each.search(name) for each in may_lack)}


def _files(folder: Path) -> list[Path]:
    """Return the files that transformers reads, in its order of choice."""
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    index = folder / _INDEX
    if not index.is_file():
        if (folder / _ADAPTER).is_file():
            remedy = "Merge it into its base model, save that, and name its folder."
            raise EngineError("these are the weights of an adapter, not of a model", str(folder), remedy=remedy)
        found = ", ".join(sorted(file.name for file in folder.glob("*.safetensors"))[:3])
        what, remedy = f"there is neither {_WHOLE} nor {_INDEX}", "Save the model with transformers' save_pretrained."
        raise EngineError(what, str(folder), found, remedy)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError("the index of the weights cannot be read", str(index), str(error), _AGAIN) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        found = f"{', '.join(missing[:3])}{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}"
        raise EngineError(f"{len(missing)} of {len(names)} files of weights are missing", str(folder), found, _AGAIN)
    return [folder / name for name in names]


def _shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights in a file, if it is whole."""
    try:
        with file.open("rb") as data:
            start = data.read(len(_POINTER))
            if start == _POINTER:
                remedy = "Fetch it: `git lfs pull`, or download the model again."
                raise EngineError("the file is a pointer of Git LFS, not the weights", str(file), remedy=remedy)
            (header_bytes,) = struct.unpack("<Q", start[:8])
            if header_bytes > _HEADER_LIMIT_BYTES:
                raise ValueError(f"a header of {header_bytes:,} bytes")
            data.seek(8)
            header: dict[str, Any] = json.loads(data.read(header_bytes))
        held = {name: entry for name, entry in header.items() if name != "__metadata__"}
        wanted = 8 + header_bytes + max((entry["data_offsets"][1] for entry in held.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in held.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise EngineError("the file is not safetensors", str(file), str(error), _AGAIN) from error
    size = file.stat().st_size
    if size < wanted:
        raise EngineError("the file of weights is cut off", str(file), f"{size:,} of {wanted:,} bytes", _AGAIN)
    return shapes
