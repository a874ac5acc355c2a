"""Takes input in as a run does, for the tests of this folder."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clear_ray.config.input import InputConfig
from clear_ray.ingest import InputDigest, PromptLimit, ingest, read_input
from clear_ray.storage import open_folder


def take(
    path: str | Path,
    run: Path,
    *,
    most_errors: int = 20,
    limit: PromptLimit | None = None,
    check_sampling: Any = None,
    continues: bool = False,
    temperature: float | None = None,
    splits: bool = True,
    **settings: Any,
) -> InputDigest:
    config = InputConfig.model_validate({"path": str(path), **settings})
    queries = open_folder(str(run / "queries"))
    return ingest(
        read_input(config),
        queries=queries,
        max_tokens=100,
        prompt_limit=limit,
        most_errors=most_errors,
        on_error=config.on_error,
        check_sampling=check_sampling,
        continues=continues,
        temperature=temperature,
        splits=splits,
    )


def taken(run: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run / "queries").to_pylist()
    return rows
