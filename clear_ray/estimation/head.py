"""A head: from the features of a probe to curves, and how it is stored.

A stored head is a folder with `head.safetensors` (arrays) and `head.json` (card and settings). Its card names the model
it was fitted for; another model's features mean something else, so the head is refused for it.
"""

from __future__ import annotations

import importlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pyarrow.fs import LocalFileSystem
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from clear_ray.engine.base import Features, Prompt
from clear_ray.errors import ConfigError
from clear_ray.estimation.curves import Curves
from clear_ray.storage import Folder, sync_path

ARRAYS_FILE, CARD_FILE = "head.safetensors", "head.json"
FORMAT = 1
ANY_MODEL = ""

# Which module holds the class of each kind; imported on demand, so that heads can contain heads.
_KINDS = {
    "prior": ("clear_ray.estimation.prior", "PriorHead"),
    "competing_risks": ("clear_ray.estimation.competing_risks", "CompetingRisksHead"),
    "factorised": ("clear_ray.estimation.factorised", "FactorisedHead"),
    "regressed_threshold": ("clear_ray.estimation.parametric", "RegressedThresholdHead"),
    "shifted_erlang": ("clear_ray.estimation.parametric", "ShiftedErlangHead"),
    "encoded": ("clear_ray.estimation.encoder", "EncodedHead"),
    "cross_fitted": ("clear_ray.estimation.cross_fitted", "CrossFittedHead"),
}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class HeadCard:
    """Where a head comes from.

    Attributes:
        kind: Which model of curves it is: a key of the table of kinds.
        model_name: Human-readable name of the language model whose features it reads.
        model_fingerprint: Fingerprint of that model and tokenizer; empty for a head that fits any model.
        data_digest: SHA-256 of the rollouts and features it was fitted on; empty for a prior.
        seeds: Seeds of sampling and fit.
        tokens_K: Token grid of its curves.
        diagnostics: Held-out figures by name, e.g. `log_likelihood`, `log_likelihood_pooled`.
        created_by: Command that made it.
        probe_layers: Layers of the model that its features come from; None for all.
        label: What it has learned to expect: `verdict`, right answers; `agreement`, those that agree with others to the same
            query; `ended`, those that end by themselves.
    """

    kind: str
    model_name: str
    model_fingerprint: str
    data_digest: str
    seeds: tuple[int, ...]
    tokens_K: tuple[int, ...]
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    created_by: str = ""
    probe_layers: int | None = None
    label: str = "verdict"


class Head(ABC):
    """Anything that turns features into curves.

    Args:
        card: Where it comes from.
    """

    def __init__(self, card: HeadCard) -> None:
        self._card = card

    @property
    def card(self) -> HeadCard:
        """Where this head comes from."""
        return self._card

    @property
    def tokens_K(self) -> NDArray[np.int64]:
        """Token grid of its curves."""
        return np.array(self._card.tokens_K, np.int64)

    def check_model(self, fingerprint: str) -> None:
        """Return if the head may be used with the model of this fingerprint.

        Raises:
            ConfigError: It was fitted for another model.
        """
        if self._card.model_fingerprint not in (ANY_MODEL, fingerprint):
            raise ConfigError(
                f"the head was fitted for {self._card.model_name}, fingerprint {self._card.model_fingerprint[:12]}",
                "head",
                f"model with fingerprint {fingerprint[:12]}",
                "Calibrate a head for this model with `clear-ray calibrate`, or configure the model the head is for.",
            )

    @abstractmethod
    def curves(self, features: Features, prompts: Sequence[Prompt], query_ids: Sequence[str]) -> Curves:
        """Estimate one curve for each query, in order.

        Raises:
            ConfigError: The hidden states have another width than the head was fitted on.
        """

    @abstractmethod
    def arrays(self) -> Arrays:
        """Return the numbers to store, by name."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what else is needed to load it again, as plain JSON values."""

    @classmethod
    @abstractmethod
    def restore(cls, card: HeadCard, arrays: Arrays, settings: dict[str, Any]) -> Self:
        """Make the head again from what `arrays` and `settings` returned."""


def join_arrays(parts: Mapping[str, Arrays]) -> Arrays:
    """Return the arrays of several parts in one, each as `PART.NAME`."""
    return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def arrays_of(part: str, arrays: Arrays, *, mark: str = ".") -> Arrays:
    """Return the arrays of one part by the names that they have there."""
    before = f"{part}{mark}"
    return {name.removeprefix(before): array for name, array in arrays.items() if name.startswith(before)}


def save_head(head: Head, path: str | os.PathLike[str]) -> None:
    """Write a head as a folder; each file appears whole or not at all, and a loss of power does not undo it."""
    folder = Path(path)
    Folder(LocalFileSystem(), os.path.abspath(path), is_local=True).make()
    arrays = {name: np.ascontiguousarray(array) for name, array in head.arrays().items()}
    _replace(folder / ARRAYS_FILE, lambda temporary: save_file(arrays, temporary))
    document = {"format": FORMAT, **head_to_json(head)}
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"
    _replace(folder / CARD_FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def load_head(path: str | os.PathLike[str]) -> Head:
    """Read a head that `save_head` wrote.

    Raises:
        ConfigError: The folder holds no head, or one of an unknown kind or format.
    """
    folder = Path(path)
    remedy = "Name a folder written by `clear-ray calibrate`."
    try:
        document = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        arrays = load_file(folder / ARRAYS_FILE)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise ConfigError(f"no head can be read: {error}", "head", str(folder), remedy) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ConfigError(f"{CARD_FILE} is not of format {FORMAT}", "head", str(folder), remedy)
    try:
        return head_from_json(document, arrays)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{CARD_FILE} lacks or has an unknown field: {error}", "head", str(folder), remedy) from error


def head_to_json(head: Head) -> dict[str, Any]:
    """Return card and settings of a head as plain JSON values; its arrays are stored beside them."""
    return {"card": asdict(head.card), "settings": head.settings()}


def head_from_json(record: Mapping[str, Any], arrays: Arrays) -> Head:
    """Make a head from what `head_to_json` returned, where tuples became lists, and its arrays.

    Raises:
        ConfigError: There is no such kind.
        KeyError: A field is missing.
        TypeError: A field is unknown.
    """
    stored = record["card"]
    card = HeadCard(**{**stored, "seeds": tuple(stored["seeds"]), "tokens_K": tuple(stored["tokens_K"])})
    return head_class(card.kind).restore(card, arrays, record["settings"])


def head_class(kind: str) -> type[Head]:
    """Return the class of a kind of head.

    Raises:
        ConfigError: No such kind.
    """
    if kind not in _KINDS:
        raise ConfigError("unknown kind of head", "head", kind, f"Use one of {', '.join(sorted(_KINDS))}.")
    module, name = _KINDS[kind]
    found: type[Head] = getattr(importlib.import_module(module), name)
    return found


def _replace(target: Path, write: Any) -> None:
    temporary = target.with_name(f".{target.name}.partial")
    write(temporary)
    sync_path(temporary)
    os.replace(temporary, target)
    sync_path(target.parent)
