"""Answers that conform to a structure: a JSON schema, an expression, a list of choices, a grammar. Needs llguidance.

llguidance compiles the structure against the model's tokenizer and tells at each token which ones may follow. Where
nothing may follow, the answer is complete and ends there.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clear_ray.config.sampling import Structure
from clear_ray.engine.rendering import Rendering
from clear_ray.errors import ConfigError, SchemaError

# JSON may have white space anywhere, and a weak model writes nothing else until its tokens are spent.
_JSON: Any = {"whitespace_flexible": True, "whitespace_pattern": r"[ \t\n\r]{0,16}"}


_BACKUS_NAUR = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


class Matcher:
    """How far one answer has come in its structure.

    Args:
        tokenizer: llguidance's.
        grammar: Grammar of the structure.
    """

    def __init__(self, tokenizer: Any, grammar: str) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def is_over(self) -> bool:
        """Whether it can but end here."""
        return bool(self._matcher.is_stopped()) and self.is_complete

    @property
    def error(self) -> str:
        """Why the answer can go no further, if it is not complete; empty while it can."""
        return str(self._matcher.get_error())

    def take(self, token_ids: list[int]) -> bool:
        """Go on by these tokens; return whether they fit."""
        return bool(self._matcher.consume_tokens(token_ids))

    def allowed(self, vocabulary: int) -> NDArray[np.bool_]:
        """Return which tokens may follow, shape (V,)."""
        words = np.zeros(-(-vocabulary // 32), dtype=np.uint32)
        if not self._matcher.is_stopped():
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        return np.unpackbits(words.view(np.uint8), bitorder="little")[:vocabulary].astype(bool)


class Structures:
    """Makes matchers for one model.

    Args:
        rendering: Its tokenizer.
        vocabulary: Tokens that the model knows.
        end_token_ids: Tokens that end an answer.
    """

    def __init__(self, rendering: Rendering, *, vocabulary: int, end_token_ids: frozenset[int]) -> None:
        self._rendering, self._vocabulary, self._end_token_ids = rendering, vocabulary, sorted(end_token_ids)
        self._tokenizer: Any = None

    def matcher(self, structure: Structure, prefix: tuple[int, ...]) -> Matcher:
        """Return the matcher of an answer that begins, or goes on after `prefix`.

        Raises:
            ConfigError: llguidance is not installed, or does not know the tokenizer.
            SchemaError: The structure cannot be compiled, or the prefix does not keep to it.
        """
        check_structure(structure)
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        matcher = Matcher(self._tokenizer, grammar_of(structure))
        if matcher.error or not matcher.take(list(prefix)):
            raise SchemaError("the structure cannot be kept", structure.kind, matcher.error, "Simplify it.")
        return matcher

    def _make_tokenizer(self) -> Any:
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(
                self._rendering.tokenizer, n_vocab=self._vocabulary, eos_token=self._end_token_ids or None
            )
        except Exception as error:  # of as many kinds as there are tokenizers
            remedy = "Use a model whose tokenizer it can read, or leave structured outputs out."
            raise ConfigError(
                "llguidance cannot read this model's tokenizer", "engine.model", str(error), remedy
            ) from error


def is_installed() -> bool:
    """Return whether llguidance is there."""
    return find_spec("llguidance") is not None


def check_installed() -> None:
    """Raise ConfigError if llguidance is not there."""
    if not is_installed():
        raise ConfigError(
            "structured outputs need llguidance, which is not installed",
            "input",
            remedy="Run `pip install 'clear_ray[structured]'`, or remove the fields that ask for a structure.",
        )


@lru_cache(maxsize=4_096)
def check_structure(structure: Structure) -> None:
    """Refuse a structure that cannot be compiled; told without a model.

    Raises:
        ConfigError: llguidance is not installed.
        SchemaError: The structure is wrong, or asks for what llguidance does not keep.
    """
    check_installed()
    from llguidance import LLMatcher

    is_error, told = LLMatcher.validate_grammar_with_warnings(grammar_of(structure))
    if is_error:
        said = " ".join(" ".join(told).split())
        raise SchemaError("no answer can be kept to this structure", structure.kind, said, "Change or simplify it.")


def grammar_of(structure: Structure) -> str:
    """Return a structure as llguidance reads it.

    Raises:
        SchemaError: A schema is no JSON object.
    """
    from llguidance import LLMatcher

    try:
        if structure.kind == "json_object":
            return str(LLMatcher.grammar_from_json_schema('{"type":"object"}', defaults=_JSON))
        if structure.kind == "json_schema":
            return str(LLMatcher.grammar_from_json_schema(structure.value, defaults=_JSON))
        if structure.kind == "choice":
            choices = " | ".join(json.dumps(text, ensure_ascii=False) for text in json.loads(structure.value))
            return str(LLMatcher.grammar_from_lark(f"start: {choices}"))
        if structure.kind == "regex":
            return str(LLMatcher.grammar_from_regex(structure.value))
        return str(LLMatcher.grammar_from_lark(_lark(structure.value)))
    except ValueError as error:
        raise SchemaError("the schema cannot be read", structure.kind, str(error), "Write a JSON object.") from error


def _lark(grammar: str) -> str:
    """Return a grammar as Lark has it; one that is written `root ::= …`, as for llama.cpp and xgrammar, is rewritten."""
    if _BACKUS_NAUR.search(grammar) is None:
        return grammar
    from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

    try:
        return str(gbnf_to_lark(grammar))
    except GbnfToLarkError as error:
        raise SchemaError(
            "the grammar cannot be read", "grammar", str(error), "Correct it, or write it as Lark does."
        ) from error
