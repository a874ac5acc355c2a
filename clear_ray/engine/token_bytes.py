"""What single tokens stand for, in bytes: a token may be a part of a character, which has no text of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_WORD_MARK = "\u2581"  # in sentencepiece's vocabularies, a space


class TokenBytes:
    """Bytes of a tokenizer's tokens.

    Args:
        tokenizer: As transformers loads it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._added = {token_id: str(token.content) for token_id, token in added.items()}
        special = {token_id for token_id, token in added.items() if token.special}
        self._special_ids = special.union(tokenizer.all_special_ids)
        named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        self._special = {self._added[token_id]: token_id for token_id in special} | {str(text): k for text, k in named}
        self._is_by_bytes = "ByteLevel" in _decoders(tokenizer)

    def is_special(self, token_id: int) -> bool:
        """Whether a token has no text in an answer."""
        return token_id in self._special_ids

    def special_ids(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of those of the texts that are special tokens' names, and so never stand in an answer."""
        return [self._special[text] for text in texts if text in self._special]

    def of(self, token_id: int) -> bytes:
        """Return the bytes of a token; of one that stands for nothing, those of its name."""
        if (content := self._added.get(token_id)) is not None:
            return content.encode()
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:  # of a vocabulary that was made larger than the tokenizer's
            return b""
        if isinstance(token, bytes):
            return token
        if self._is_by_bytes and all(sign in _byte_of_sign() for sign in token):
            return bytes(_byte_of_sign()[sign] for sign in token)
        if byte := _BYTE.match(token):
            return bytes([int(byte[1], 16)])
        if _WORD_MARK in token:
            return str(token).replace(_WORD_MARK, " ").encode()
        text: str = self._tokenizer.convert_tokens_to_string([token])
        return text.encode()


def _decoders(tokenizer: Any) -> str:
    """Return the steps in which a fast tokenizer makes text of tokens, as it writes them itself."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return "" if decoder is None else str(decoder.__getstate__())


@lru_cache(maxsize=1)
def _byte_of_sign() -> dict[str, int]:
    """Return which byte each sign of a vocabulary of bytes stands for: printable ones for themselves, others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}
