"""Saved tiny models with a tokenizer of single characters, as a user would have them in a folder."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.unit.engine.zoo import tiny_config, tiny_model

ALTERNATING = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<{{ message['role'][0] }}>{{ message['content'] }}"
    "{% if not (loop.last and continue_final_message) %}|{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<a>{% if enable_thinking is defined and not enable_thinking %}[]{% endif %}{% endif %}"
)
"""Such as Gemma has: no system message, turns that alternate; with a setting for thinking."""


def save_model(folder: Path, name: str = "llama", *, template: str | None = None, **generation: Any) -> Path:
    """Save a tiny model of an architecture with its tokenizer, a chat template and a generation_config.json."""
    tiny_model(tiny_config(name)).save_pretrained(folder)
    characters = ["#", *string.ascii_letters, *string.digits, *" .,?!:'|<>[]\n"]
    tokens = Tokenizer(models.WordLevel({token: k for k, token in enumerate(characters)}, unk_token="#"))  # noqa: S106
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokens.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="#")  # noqa: S106
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder
