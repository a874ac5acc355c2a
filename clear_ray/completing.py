"""The end of a run: every query's completion, the report and its page; the summary last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray.data
from numpy.typing import NDArray

from clear_ray.account import make_report
from clear_ray.errors import BudgetError
from clear_ray.generating import mark_lost_answers, union
from clear_ray.ingest import InputDigest, write_openai_outputs
from clear_ray.open_run import OpenRun
from clear_ray.pricing import all_reservation_prices
from clear_ray.report.page import write_page
from clear_ray.report.summary import RoundReport, RunReport
from clear_ray.run_folder import SUMMARY
from clear_ray.stages.grants import Abandon, Complete, Verdicts, VoidAttempts
from clear_ray.storage import Folder


def close_run(work: OpenRun, rounds: list[RoundReport], digest: InputDigest) -> RunReport:
    """Write every query's completion and the report; the summary last."""
    folder, states, estimates, hiring = work.folder, work.states, work.estimates, work.hiring
    work.progress.begin("write")
    mark_lost_answers(work, states.written_tokens_N)
    spent_N, _ = work.market.charges()
    verdicts = Verdicts(
        last_round_N=states.last_round_N,
        rounds_N=states.rounds_N,
        max_tokens_N=states.granted_tokens_N,
        is_served_N=states.is_served_N,
        spent_tokens_N=spent_N,
        price_N=states.price_N,
        expected_utility_N=states.expected_utility_N,
        surplus_N=states.surplus_N,
        reservation_price_N=all_reservation_prices(folder, estimates),
        prompt_tokens_N=estimates.prompt_tokens_N,
        error_of_index=estimates.error_of_index,
    )
    _write_completions(folder, verdicts, work.void_attempts())
    report = make_report(
        work.config,
        hiring.crew.model,
        hiring.crew.head,
        estimates,
        states,
        work.market.balance(),
        spent_N,
        tuple(rounds),
        has_gold_N=_gold_of_completions(folder, len(spent_N)),
        workers=hiring.most_up,
        worker_tokens_per_second=hiring.tokens_per_second,
        seconds=work.progress.seconds,
        notes=work.notes,
    )
    if digest.openai_url is not None:
        write_openai_outputs(_completion_rows(folder), folder, model=hiring.crew.model.name, url=digest.openai_url)
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


def _gold_of_completions(folder: Folder, queries: int) -> NDArray[np.bool_]:
    """Return which completions can be scored, shape (N,), after making sure that every query has one and no second.

    Raises:
        BudgetError: It is not so; a defect of clear_ray.
    """
    has_gold_N, completions_N = np.zeros(queries, bool), np.zeros(queries, np.int64)
    for path in folder.child("completions").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem, columns=["index", "gold"])
        index = table["index"].to_numpy()
        has_gold_N[index] = table["gold"].is_valid().to_numpy()
        completions_N += np.bincount(index, minlength=queries)
    if (completions_N != 1).any():
        first = int((completions_N != 1).argmax())
        said = f"query {first} has {completions_N[first]} completions"
        raise BudgetError(said, folder.path, remedy="This is a defect of clear_ray: keep the run folder and report it.")
    return has_gold_N


def _completion_rows(folder: Folder) -> Iterator[dict[str, Any]]:
    """Yield completions one by one, with one batch of them in memory."""
    for path in folder.child("completions").files(".parquet"):
        with folder.filesystem.open_input_file(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=1_024):
                yield from batch.to_pylist()
