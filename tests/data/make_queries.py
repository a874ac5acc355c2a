"""Write queries.parquet beside recorded rollouts: one row a query, so that `clear-ray run` can replay them.

python tests/data/make_queries.py tests/data/rollouts
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clear_ray.tasks.recorded import text_digest


def main(folder: Path) -> None:
    columns = ["query_id", "task", "prompt", "gold", "correct", "text"]
    queries: dict[str, dict[str, object]] = {}
    right: dict[str, set[str]] = {}
    for row in pq.read_table(folder / "rollouts.parquet", columns=columns).to_pylist():
        queries.setdefault(row["query_id"], {name: row[name] for name in ("query_id", "task", "prompt", "gold")})
        if row["correct"]:
            right.setdefault(row["query_id"], set()).add(text_digest(row["text"]))
    rows = [
        query | {"metadata": json.dumps({"right": sorted(right.get(query_id, ()))})}
        for query_id, query in sorted(queries.items())
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "queries.parquet", compression="zstd")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
