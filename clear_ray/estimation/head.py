"""A head: from the features of a probe to curves, and how it is stored.

A stored head is a folder with `head.safetensors` (arrays) and `head.json` (card and settings). Its card names the model
it was fitted for; another model's features mean something else, so the head is refused for it.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from clear_ray.engine.base import Features, Prompt
from clear_ray.errors import ConfigError
from clear_ray.estimation.curves import Curves

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


@runtime_checkable
class Head(Protocol):
    """Anything that turns features into curves."""

    @property
    def card(self) -> HeadCard:
        """Where this head comes from."""

    def curves(self, features: Features, prompts: Sequence[Prompt], query_ids: Sequence[str]) -> Curves:
        """Estimate one curve for each query, in order.

        Raises:
            ConfigError: The features are not those that the head was fitted on.
        """

    def check_model(self, fingerprint: str) -> None:
        """Return if the head may be used with the model of this fingerprint.

        Raises:
            ConfigError: It was fitted for another model.
        """

    def arrays(self) -> Arrays:
        """Return the numbers to store, by name."""

    def settings(self) -> dict[str, Any]:
        """Return what else is needed to load it again, as plain JSON values."""

    @classmethod
    def restore(cls, card: HeadCard, arrays: Arrays, settings: dict[str, Any]) -> Self:
        """Make the head again from what `arrays` and `settings` returned."""


def check_fingerprint(card: HeadCard, fingerprint: str) -> None:
    """Raise ConfigError if a head with this card is for another model than `fingerprint`."""
    if card.model_fingerprint not in (ANY_MODEL, fingerprint):
        raise ConfigError(
            f"the head was fitted for {card.model_name}, fingerprint {card.model_fingerprint[:12]}",
            "head",
            f"model with fingerprint {fingerprint[:12]}",
            "Calibrate a head for this model with `clear-ray calibrate`, or configure the model the head is for.",
        )


def save_head(head: Head, path: str | os.PathLike[str]) -> None:
    """Write a head as a folder; each file appears whole or not at all."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in head.arrays().items()}
    _replace(folder / ARRAYS_FILE, lambda temporary: save_file(arrays, temporary))
    document = {"format": FORMAT, "card": asdict(head.card), "settings": head.settings()}
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
        card = card_from_json(document["card"])
        return head_class(card.kind).restore(card, arrays, document["settings"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{CARD_FILE} lacks or has an unknown field: {error}", "head", str(folder), remedy) from error


def card_from_json(record: Mapping[str, Any]) -> HeadCard:
    """Make a card from its JSON form, where tuples became lists."""
    return HeadCard(**{**record, "seeds": tuple(record["seeds"]), "tokens_K": tuple(record["tokens_K"])})


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
    os.replace(temporary, target)
