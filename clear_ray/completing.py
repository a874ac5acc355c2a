"""The end of a run: every query's completion, the report and its page; the summary last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import ray.data

from clear_ray.account import make_report
from clear_ray.generating import mark_lost_answers, union
from clear_ray.ingest import InputDigest, write_openai_outputs
from clear_ray.open_run import OpenRun
from clear_ray.pricing import all_reservation_prices
from clear_ray.report.page import write_page
from clear_ray.report.summary import RoundReport, RunReport
from clear_ray.run_folder import SUMMARY
from clear_ray.scores import read_scores
from clear_ray.stages.grants import Abandon, Complete, Verdicts, VoidAttempts
from clear_ray.storage import Folder


def close_run(work: OpenRun, rounds: list[RoundReport], digest: InputDigest) -> RunReport:
    """Write every query's completion and the report; the summary last."""
    folder, estimates = work.folder, work.estimates
    work.progress.begin("write")
    mark_lost_answers(work, work.states.written_tokens_N)
    spent_N, _ = work.market.charges()
    verdicts = Verdicts(
        states=work.states,
        spent_tokens_N=spent_N,
        reservation_price_N=all_reservation_prices(folder, estimates),
        prompt_tokens_N=estimates.prompt_tokens_N,
        error_of_index=estimates.error_of_index,
    )
    _write_completions(folder, verdicts, work.void_attempts())
    scores = read_scores(folder, len(spent_N))
    report = make_report(work, tuple(rounds), spent_tokens_N=spent_N, has_gold_N=scores.has_gold_N)
    report = report.model_copy(update=scores.facts(folder, work.config.scoring.scorer))
    if digest.openai_url is not None:
        model = work.hiring.crew.model.name
        write_openai_outputs(_completion_rows(folder), folder, model=model, url=digest.openai_url)
    write_page(report, completions=_completion_rows(folder), folder=folder)
    folder.write(SUMMARY, report.model_dump_json(indent=2).encode())
    return report


def _write_completions(folder: Folder, verdicts: Verdicts, void: VoidAttempts) -> None:
    sources: list[tuple[Folder, Any]] = [
        (folder.child("queries"), Abandon(verdicts)),
        (folder.child("rounds"), Complete(verdicts, void)),
    ]
    parts = [
        ray.data.read_parquet(paths, filesystem=folder.filesystem).map_batches(finish, batch_format="pyarrow")
        for source, finish in sources
        if (paths := source.files(".parquet"))
    ]
    with folder.replacing("completions") as target:
        union(parts).write_parquet(target.path, filesystem=folder.filesystem)


def _completion_rows(folder: Folder) -> Iterator[dict[str, Any]]:
    """Yield completions one by one, with one batch of them in memory."""
    for path in folder.child("completions").files(".parquet"):
        with folder.filesystem.open_input_file(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=1_024):
                yield from batch.to_pylist()
