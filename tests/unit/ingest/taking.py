"""Takes input in as a run does, for the tests of this folder."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clear_ray.config.input import InputConfig
from clear_ray.ingest import InputDigest, IntakeRules, PromptLimit, ReadingRules, ingest, read_input
from clear_ray.storage import open_folder


def rules(**settings: Any) -> ReadingRules:
    return ReadingRules(max_tokens=100, **settings)


def take(
    path: str | Path,
    run: Path,
    *,
    most_errors: int = 20,
    limit: PromptLimit | None = None,
    reading: ReadingRules | None = None,
    **settings: Any,
) -> InputDigest:
    config = InputConfig.model_validate({"path": str(path), **settings})
    queries = open_folder(str(run / "queries"))
    intake_rules = IntakeRules(
        reading=reading or rules(),
        prompt_limit=limit,
        most_errors=most_errors,
        on_error=config.on_error,
    )
    return ingest(read_input(config), queries=queries, rules=intake_rules)


def taken(run: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(run / "queries").to_pylist()
    return rows
