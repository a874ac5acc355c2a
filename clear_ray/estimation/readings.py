"""What the cheap feature sets read of a query: enough to fit a map on in a later run, and not its text.

Scalar features of the question, the hashed columns of its words and pairs of words, the length of the prompt, its label. The
same hash everywhere, so readings of different runs go together.

Shapes: N queries, T scalar features, D hashed columns.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, vstack

from clear_ray.engine.base import Features, Prompt
from clear_ray.estimation.text_features import question_text, text_features

HASHED = 1 << 14
_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """What was read of some queries.

    Attributes:
        prompt_tokens_N: Length of each prompt, tokens.
        text_NT: Scalar features (`text_features.TEXT_NAMES`); NaN where one is not known.
        terms_ND: 1 for each word and pair of words that a question has, by its hash; of no width if it was not asked for.
        tasks: Label of each query; None if the input has none.
    """

    prompt_tokens_N: NDArray[np.int64]
    text_NT: NDArray[np.float64]
    terms_ND: csr_array
    tasks: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """Return N."""
        return len(self.prompt_tokens_N)

    def take(self, index: ArrayLike) -> Readings:
        """Return the readings at `index`, which are integers."""
        rows = np.asarray(index, np.int64)
        tasks = None if self.tasks is None else tuple(self.tasks[row] for row in rows.tolist())
        return Readings(self.prompt_tokens_N[rows], self.text_NT[rows], self.terms_ND[rows], tasks)


def read_prompts(
    features: Features, prompts: Sequence[Prompt], tasks: Sequence[str] | None = None, *, has_terms: bool = True
) -> Readings:
    """Read prompts.

    Args:
        features: Of the probe; only the lengths of the prompts and the entropy are read.
        prompts: What is asked.
        tasks: Labels.
        has_terms: Whether to read the words too.
    """
    terms_ND = _terms(prompts) if has_terms else csr_array((len(prompts), 0))
    given = None if tasks is None else tuple(tasks)
    return Readings(features.prompt_tokens_N, text_features(features, prompts), terms_ND, given)


def join_readings(parts: Sequence[Readings]) -> Readings:
    """Return the readings of several runs in one, in order; labels only if all have them."""
    tasks = [part.tasks for part in parts]
    known = None if any(each is None for each in tasks) else tuple(itertools.chain(*(each or () for each in tasks)))
    return Readings(
        np.concatenate([part.prompt_tokens_N for part in parts]),
        np.concatenate([part.text_NT for part in parts]),
        csr_array(vstack([part.terms_ND for part in parts], format="csr")),
        known,
    )


def _terms(prompts: Sequence[Prompt]) -> csr_array:
    """Return one row a query: which words and pairs of words it has; digits are masked."""
    columns, ends = [], [0]
    for prompt in prompts:
        words = ["0" if word[0].isdigit() else word.lower() for word in _WORD.findall(question_text(prompt))]
        pairs = [f"{one} {two}" for one, two in itertools.pairwise(words)]
        columns += sorted({crc32(term.encode()) % HASHED for term in (*words, *pairs)})
        ends.append(len(columns))
    shape = (len(prompts), HASHED)
    return csr_array((np.ones(len(columns)), np.array(columns, np.int64), np.array(ends)), shape=shape)
