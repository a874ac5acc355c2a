"""Reference answers that are the number of an option: whether they count from 0 or from 1 is told by the whole column.

A column that holds 0 counts from 0; one that holds as many as there are options counts from 1; one with both is refused.
Where no row shows it, 0 is taken for the first, and that is said. -1 stands for no answer, as in test sets that keep theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from clear_ray.errors import SchemaError
from clear_ray.ingest.composing import counts_from_one
from clear_ray.ingest.values import shown

FirstOption = Literal["auto", 0, 1]
_LONGEST = 20


class CountsFromOneError(Exception):
    """The whole input shows that its answers count options from 1, and it was read as if from 0."""


class OptionNumbers:
    """What the reference answers of an input say of how they count options.

    Args:
        first: The number of the first option; `auto` to find it out, reading from 0 until it is known.
    """

    def __init__(self, first: FirstOption = "auto") -> None:
        self._first: FirstOption = first
        self._zero = self._last = ""  # the columns in which a row showed the one or the other
        self._undecided = ""
        self._without = 0

    def read(self, gold: Any, options: Mapping[str, str], column: str, *, columns: Sequence[str] = ()) -> Any:
        """Return a reference answer that names options by number or column as their labels; any other as it is.

        Args:
            gold: The answer; of a list of them all are wanted.
            options: The options, label to text.
            column: Where the answer stands, as errors name it.
            columns: Columns of the options, whose names name them, too, and may be numbered from 1.

        Raises:
            SchemaError: There is no such option.
        """
        if not options or gold is None:
            return gold
        if isinstance(gold, list) and gold and all(_is_number(one) or one in options for one in gold):
            labels = [self._label(one, options, column, columns) for one in gold]
            return ",".join(sorted({str(label) for label in labels}))
        return self._label(gold, options, column, columns)

    def lines(self) -> Iterator[str]:
        """Yield what is to be said of an input that was read to its end.

        Raises:
            SchemaError: Its answers count from 0 and from 1.
            CountsFromOneError: They count from 1, and it has to be read again so.
        """
        if self._last and self._zero:
            what = "some reference answers are 0, and some as high as there are options"
            raise SchemaError(what, f"column {self._last}", "", "Write letters, or set input.first_option to 0 or 1.")
        if self._last:
            raise CountsFromOneError
        if self._undecided and not self._zero:
            yield (
                f"`{self._undecided}` is read as counting options from 0, which no row shows: if it counts from 1, "
                "set input.first_option to 1"
            )
        if self._without:
            rows = "1 row" if self._without == 1 else f"{self._without:,} rows"
            yield f"-1 is read as no reference answer in {rows}"

    def _label(self, gold: Any, options: Mapping[str, str], column: str, columns: Sequence[str]) -> Any:
        if isinstance(gold, str) and gold.strip() in columns:
            place = list(columns).index(gold.strip())
            return list(options)[place] if place < len(options) else gold
        number = _number(gold)
        if number is None:
            return gold
        is_numbered = counts_from_one(columns)
        if not is_numbered and any(str(number) in (label, text.strip()) for label, text in options.items()):
            return gold
        if number == -1:
            self._without += 1
            return None
        first = 1 if is_numbered else self._first
        if first == "auto":
            return self._looked_at(number, options, column)
        if not first <= number < len(options) + first:
            raise _no_such(gold, options, column, first)
        return list(options)[number - first]

    def _looked_at(self, number: int, options: Mapping[str, str], column: str) -> str:
        """Return the label of a number counted from 0, and note what it shows."""
        if not 0 <= number <= len(options):
            raise _no_such(number, options, column, 0)
        if number == 0:
            self._zero = column
        if number == len(options):
            self._last = column
            return list(options)[-1]  # the input is read again, or refused
        self._undecided = column
        return list(options)[number]


def _no_such(gold: Any, options: Mapping[str, str], column: str, first: int) -> SchemaError:
    what = f"there is no such option among {len(options)}, counted from {first}"
    return SchemaError(what, column, shown(gold), "Write the option's letter.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(gold: Any) -> int | None:
    """Return a whole number, also one that a table has as text or as a float; None of anything else."""
    if isinstance(gold, str):
        text = gold.strip().removesuffix(".0")
        return int(text) if len(text) < _LONGEST and text.removeprefix("-").isdecimal() else None
    if isinstance(gold, bool) or not isinstance(gold, int | float) or not math.isfinite(gold) or gold != int(gold):
        return None
    return int(gold)
