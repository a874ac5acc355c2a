"""A file that is one object: around the list of its rows, or a table as pandas writes it.

`{"version": 1, "data": [{"question": …}, …]}`; `{"question": {"0": …, "1": …}}`, `{"0": {"question": …}}`,
`{"columns": …, "data": …}` and `{"question": […], "answer": […]}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from clear_ray.config.input import ColumnsConfig
from clear_ray.ingest.messages import has_messages
from clear_ray.ingest.nested import outermost
from clear_ray.ingest.requests import is_request
from clear_ray.ingest.shapes import is_known
from clear_ray.ingest.source import SourceBatch


def unfolded(batches: Iterator[SourceBatch]) -> Iterator[SourceBatch]:
    """Yield the batches of a JSON file as they are; of a file that is one object around a list, the rows of that list."""
    first = next(batches, None)
    second = next(batches, None)
    rest = (batch for batch in (first, second) if batch is not None)
    name = _list_in(first) if first is not None and second is None else None
    if first is not None and second is None and (table := _table_in(first)) is not None:
        yield table
        return
    if first is None or name is None:
        yield from chain(rest, batches)
        return
    (row,) = first.rows
    rows = row[name]  # type: ignore[index]
    others = ", ".join(f"`{other}`" for other in row if other != name)  # type: ignore[union-attr]
    said = f"reading the list `{name}`{f', and not {others}, ' if others else ' '}of an object that is the whole file"
    columns, is_openai = first.columns, is_request(rows[0])
    yield SourceBatch(rows, first.origin, range(1, len(rows) + 1), "row", columns, is_openai, said=said)


def _list_in(batch: SourceBatch) -> str | None:
    """Return the name of the one list of objects in the one row of a batch that has nothing else to ask."""
    row = batch.rows[0] if len(batch.rows) == 1 else None
    if not isinstance(row, Mapping) or is_request(row) or _is_a_row(row, batch.columns):
        return None
    lists = [name for name, value in row.items() if _is_list_of_rows(value)]
    return lists[0] if len(lists) == 1 else None


def _table_in(batch: SourceBatch) -> SourceBatch | None:
    """Return the rows of the one object in a batch if it is a table as pandas writes one; None if it is none."""
    row = batch.rows[0] if len(batch.rows) == 1 else None
    if not isinstance(row, Mapping) or is_request(row):
        return None
    rows = _split(row) if "data" in row else _crossed(row) if len(row) > 1 else []
    if not rows:
        return None
    said = "reading an object that is the whole file as a table, as pandas writes it"
    return SourceBatch(rows, batch.origin, range(1, len(rows) + 1), "row", batch.columns, said=said)


def _split(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of `{"columns": [names], "data": [[cells]]}`; none of anything else."""
    names, data = row.get("columns"), row["data"]
    if not row.keys() <= {"columns", "index", "data"} or not isinstance(names, list) or not isinstance(data, list):
        return []
    are_rows = all(isinstance(cells, list) and len(cells) == len(names) for cells in data)
    return [dict(zip(map(str, names), cells, strict=True)) for cells in data] if are_rows else []


def _crossed(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an object of columns or of rows, each an object or a list; none of anything else."""
    values = list(row.values())
    if all(isinstance(value, list) for value in values):
        is_table = len(set(map(len, values))) == 1 and not any(map(has_messages, values))
        return [dict(zip(row, cells, strict=True)) for cells in zip(*values, strict=True)] if is_table else []
    if not all(isinstance(value, Mapping) for value in values):
        return []
    keys = [list(value) for value in values]
    if any(map(is_known, row)) and all(of_one == keys[0] for of_one in keys):
        return [{name: row[name][key] for name in row} for key in keys[0]]
    is_by_row = not any(map(is_known, row)) and all(any(map(is_known, of_one)) for of_one in keys)
    return [{"query_id": name, **value} for name, value in row.items()] if is_by_row else []


def _is_a_row(row: Mapping[str, Any], columns: ColumnsConfig) -> bool:
    named = {outermost(getattr(columns, setting), row) for setting in columns.model_fields_set}
    return any(is_known(name) or name in named for name in row if name != "metadata")


def _is_list_of_rows(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(element, dict) for element in value)
        and not has_messages(value)
    )
