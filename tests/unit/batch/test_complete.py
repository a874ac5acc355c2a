"""What the end of a run says beside its figures."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clear_ray.batch.complete import _without_logprobs
from clear_ray.ingest.logprobs import NOT_GIVEN
from clear_ray.storage import open_folder


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([[None, "[]"]], ()),
        ([[]], ()),
        ([[NOT_GIVEN, None], [NOT_GIVEN, "[]"]], ("logprobs: asked for and not given by the endpoint in 2 answers",)),
    ],
)
def test_log_probabilities_that_an_endpoint_did_not_give_are_counted(
    tmp_path: Path, files: list[list[str | None]], said: tuple[str, ...]
) -> None:
    (tmp_path / "completions").mkdir()
    for number, values in enumerate(files):
        table = pa.table({"logprobs": pa.array(values, pa.string())})
        pq.write_table(table, tmp_path / f"completions/{number}.parquet")
    assert _without_logprobs(open_folder(str(tmp_path))) == said
