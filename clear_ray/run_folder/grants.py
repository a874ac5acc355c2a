"""The grants of a round: written before anything acts on them, so that a resumed run goes on with the same ones."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.running import Round
from clear_ray.run_folder.parquet import damaged
from clear_ray.storage import Folder


def write_grants(folder: Folder, granted: Round) -> None:
    """Keep a round's grants before they are acted on, so that a resumed run goes on with the same ones."""
    clearing = granted.clearing
    optional = {
        "is_fresh": clearing.is_fresh_M,
        "option": clearing.option_M,
        "reserved_parts": clearing.reserved_parts_M,
    }
    columns = {
        "index": clearing.index_M,
        "tokens": clearing.tokens_M,
        "expected_tokens": clearing.expected_tokens_M,
        "expected_utility": clearing.expected_utility_M,
        **{name: column for name, column in optional.items() if column is not None},
    }
    table = pa.table(columns).replace_schema_metadata(
        {
            "shadow_price": repr(clearing.shadow_price),
            "dual_bound": repr(clearing.dual_bound),
            "gap": repr(clearing.gap),
            "available_tokens": str(granted.available_tokens),
            "is_service": "yes" if clearing.is_service else "",
            "later_utility": repr(clearing.later_utility),
            "is_beside": "yes" if granted.is_beside else "",
            "over_queries": "" if clearing.over_queries is None else str(clearing.over_queries),
            "known_queries": "" if granted.known_queries is None else str(granted.known_queries),
        }
    )
    sink = BytesIO()
    pq.write_table(table, sink)
    folder.child("grants").write(f"r{granted.number:02d}.parquet", sink.getvalue())


def read_grants(folder: Folder, number: int) -> Round | None:
    """Return a round's grants, or None if there were none.

    Raises:
        ResumeError: The file is damaged.
    """
    name = f"grants/r{number:02d}.parquet"
    if not folder.exists(name):
        return None
    content = folder.read(name)
    try:
        return _grants_in(number, pq.read_table(BytesIO(content)))
    except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError) as error:
        raise damaged(folder, name, error) from error


def _grants_in(number: int, table: pa.Table) -> Round:
    facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    clearing = Clearing(
        index_M=table["index"].to_numpy(),
        tokens_M=table["tokens"].to_numpy(),
        expected_tokens_M=table["expected_tokens"].to_numpy(),
        expected_utility_M=table["expected_utility"].to_numpy(),
        surplus_N=np.zeros(0),
        shadow_price=float(facts["shadow_price"]),
        dual_bound=float(facts["dual_bound"]),
        gap=float(facts["gap"]),
        is_service=bool(facts.get("is_service")),
        is_fresh_M=_optional(table, "is_fresh"),
        option_M=_optional(table, "option"),
        later_utility=float(facts.get("later_utility", 0.0)),
        reserved_parts_M=_optional(table, "reserved_parts"),
        over_queries=_count(facts.get("over_queries")),
    )
    return Round(
        number,
        int(facts["available_tokens"]),
        clearing,
        is_beside=bool(facts.get("is_beside")),
        known_queries=_count(facts.get("known_queries")),
    )


def _count(fact: str | None) -> int | None:
    return int(fact) if fact else None


def _optional(table: pa.Table, name: str) -> NDArray[Any] | None:
    return table[name].to_numpy() if name in table.column_names else None
