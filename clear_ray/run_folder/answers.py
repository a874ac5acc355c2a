"""Where each query's answer so far lies in `rounds/`: what a caller is told that goes on with it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class AnswerFiles:
    """File and attempt of the last answer of each query, eight bytes a query and a name a file.

    Args:
        prompt_tokens_N: Length of every prompt, tokens.

    Attributes:
        asked_tokens: What all grants had to begin with: their prompts and, where they went on, the answers so far.
        cached_tokens: Of these, tokens that were not read for the grant again.
    """

    def __init__(self, prompt_tokens_N: NDArray[np.int64]) -> None:
        self._prompt_tokens_N = prompt_tokens_N
        self._file_N = np.zeros(len(prompt_tokens_N), np.int32)
        self._attempt_N = np.zeros(len(prompt_tokens_N), np.int32)
        self._names = [""]
        self.asked_tokens = self.cached_tokens = 0
        self._number_of: dict[str, int] = {"": 0}

    def note(self, rows: pa.Table) -> None:
        """Note attempts in the schema `SLIM_ATTEMPT_SCHEMA`, later ones after those before."""
        self.cached_tokens += pc.sum(rows["cached_tokens"]).as_py() or 0
        files = rows["file"].combine_chunks().dictionary_encode()
        numbers = np.array([self._number(name) for name in files.dictionary.to_pylist()], np.int32)
        index = rows["index"].to_numpy()
        before = pc.sum(pc.subtract(rows["answer_tokens"], rows["attempt_tokens"])).as_py() or 0
        self.asked_tokens += int(self._prompt_tokens_N[index].sum()) + before
        self._file_N[index] = numbers[files.indices.to_numpy()]
        self._attempt_N[index] = rows["attempt"].to_numpy()

    def of(
        self, index_M: NDArray[np.int64], *, begins_M: NDArray[np.bool_] | None = None
    ) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        """Return the file and the attempt of some queries' answers so far; an empty name for those without.

        Args:
            index_M: The queries.
            begins_M: Which of them begin an answer, whatever they had before; none if not given.
        """
        goes_on_M = np.ones(len(index_M), bool) if begins_M is None else ~begins_M
        names = tuple(self._names[number] for number in np.where(goes_on_M, self._file_N[index_M], 0))
        return names, np.where(goes_on_M, self._attempt_N[index_M], 0).astype(np.int32)

    def _number(self, name: str) -> int:
        if name not in self._number_of:
            self._number_of[name] = len(self._names)
            self._names.append(name)
        return self._number_of[name]
