"""Answers on disk in parts: a row of `rounds/` holds what its grant added, and says where the part before it lies.

    r01/a.parquet   token_ids [5, 7]   text "We"           before null
    r04/b.parquet   token_ids [9]      text " add 3."      before r01/a.parquet     together: [5, 7, 9], "We add 3."

So what a grant writes is as long as what it generated, however many came before. A text so far does not always begin with the
one before it: the last token may have been half a character. `kept_characters` says how much of that one stays.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.errors import ResumeError
from clear_ray.storage import Folder

Row = dict[str, Any]
PARTS = ("text", "before", "before_attempt", "kept_characters", "logprobs", "kept_logprobs")
"""Columns that `WholeTexts` needs."""
_READ = ["index", "attempt", "token_ids", *PARTS]
_MOST_BYTES = 64_000_000


@dataclass(frozen=True, slots=True, eq=False)
class AnswerSoFar:
    """An answer so far: its tokens and text, and the log-probabilities, if they were asked for."""

    token_ids: NDArray[np.int32]
    text: str
    logprobs: str | None


NOTHING = AnswerSoFar(np.zeros(0, np.int32), "", None)


def kept(before: str | None, after: str | None) -> int:
    """Return how many characters two texts begin with alike."""
    if not before or not after:
        return 0
    if after.startswith(before):
        return len(before)
    low, high = 0, min(len(before), len(after))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if after.startswith(before[:middle]) else (low, middle - 1)
    return low


def part_of(attempt: Row) -> Row:
    """Return an attempt as it is written: without what the part before it holds."""
    if attempt.get("before") is None:
        return attempt
    logprobs = attempt["logprobs"]
    return attempt | {
        "text": attempt["text"][attempt["kept_characters"] :],
        "token_ids": attempt["token_ids"][len(attempt["token_ids"]) - attempt["attempt_tokens"] :],
        "logprobs": None if logprobs is None else logprobs[attempt["kept_logprobs"] :],
    }


class AnswerParts:
    """Puts answers together from the files that hold their parts; some files are kept at hand. Any thread may ask.

    Args:
        folder: The run folder.
        most_bytes: What the files at hand may hold, at least one of them.
    """

    def __init__(self, folder: Folder, most_bytes: int = _MOST_BYTES) -> None:
        self._rounds, self._most_bytes = folder.child("rounds"), most_bytes
        self._at_hand: OrderedDict[str, _File] = OrderedDict()
        self._held_bytes = 0
        self._one_at_a_time = threading.Lock()

    def __reduce__(self) -> tuple[type[AnswerParts], tuple[Folder, int]]:
        path = self._rounds.path.rpartition("/")[0]
        return AnswerParts, (Folder(self._rounds.filesystem, path, self._rounds.is_local), self._most_bytes)

    def answer(self, file: str, index: int, attempt: int) -> AnswerSoFar:
        """Return the answer as it stood when an attempt of a query had ended.

        Args:
            file: The file of `rounds/` that holds the attempt; empty for no answer.
            index: The query.
            attempt: Its attempt.

        Raises:
            ResumeError: A part of it is gone.
        """
        parts: list[Row] = []
        while file:
            parts.append(self._file(file).row(index, attempt))
            file, attempt = parts[-1]["before"] or "", parts[-1]["before_attempt"]
        text, logprobs = "", None
        for part in reversed(parts):
            text = text[: part["kept_characters"] or 0] + part["text"]
            logprobs = _joined(logprobs, part)
        tokens = [part["token_ids"] for part in reversed(parts)]
        return AnswerSoFar(np.concatenate(tokens) if tokens else NOTHING.token_ids, text, logprobs)

    def whole(self, attempts: pa.Table) -> pa.Table:
        """Return attempts with their whole texts and log-probabilities, from the columns `PARTS`."""
        rows = [number for number, file in enumerate(attempts["before"].to_pylist()) if file]
        if not rows:
            return attempts
        texts, logprobs = attempts["text"].to_pylist(), attempts["logprobs"].to_pylist()
        columns = ("index", "before", "before_attempt", "kept_characters", "kept_logprobs")
        for number, row in zip(rows, attempts.select(columns).take(pa.array(rows)).to_pylist(), strict=True):
            before = self.answer(row["before"], row["index"], row["before_attempt"])
            texts[number] = before.text[: row["kept_characters"]] + texts[number]
            logprobs[number] = _joined(before.logprobs, row | {"logprobs": logprobs[number]})
        for name, values in (("text", texts), ("logprobs", logprobs)):
            place = attempts.schema.get_field_index(name)
            attempts = attempts.set_column(place, attempts.schema.field(place), pa.array(values, pa.string()))
        return attempts

    def _file(self, name: str) -> _File:
        with self._one_at_a_time:
            if (file := self._at_hand.get(name)) is not None:
                self._at_hand.move_to_end(name)
                return file
        path = self._rounds.child(name).path
        try:
            with self._rounds.filesystem.open_input_file(path) as source:
                table = pq.ParquetFile(source).read(columns=_READ, use_threads=False).combine_chunks()
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise ResumeError(
                "a part of an answer is gone", path, str(error), "Restore the file from a copy."
            ) from error
        file = _File(path, table)
        with self._one_at_a_time:
            if name not in self._at_hand:
                self._at_hand[name] = file
                self._held_bytes += table.nbytes
            while self._held_bytes > self._most_bytes and len(self._at_hand) > 1:
                _, dropped = self._at_hand.popitem(last=False)
                self._held_bytes -= dropped.table.nbytes
        return file


class _File:
    """One file's rows, found by query and attempt."""

    def __init__(self, path: str, table: pa.Table) -> None:
        self._path, self.table = path, table
        keys = zip(table["index"].to_pylist(), table["attempt"].to_pylist(), strict=True)
        self._place_of = {key: place for place, key in enumerate(keys)}

    def row(self, index: int, attempt: int) -> Row:
        place = self._place_of.get((index, attempt))
        if place is None:
            raise ResumeError("a part of an answer is gone", self._path, f"query {index}, attempt {attempt}")
        row: Row = {name: self.table[name][place].as_py() for name in PARTS}
        return row | {"token_ids": self.table["token_ids"][place].values.to_numpy()}


def _joined(before: str | None, part: Row) -> str | None:
    """Return the log-probabilities up to a part, None where none are asked for."""
    if part["logprobs"] is None:
        return None
    whole: str = (before or "")[: part["kept_logprobs"] or 0] + part["logprobs"]
    return whole
