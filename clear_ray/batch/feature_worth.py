"""What each feature set is worth on a run's own answers: how much better they are predicted with it alone than without any.

Shapes: M observed answers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.batch.coordinates import READ_COLUMNS, read_block
from clear_ray.batch.earlier_runs import called
from clear_ray.batch.learning import ENCODER, Lesson
from clear_ray.batch.size_limits import is_spread
from clear_ray.config.estimate import PROBED_SETS
from clear_ray.config.run import RunConfig
from clear_ray.estimation.factorised import fit_coordinates
from clear_ray.estimation.factors import Label, Observed
from clear_ray.estimation.learning import learn
from clear_ray.storage import Folder

MOST_ANSWERS = 400
"""Answers that a set is judged by: enough to tell one from another, in a fraction of a second."""
_ALIKE = 1e-6


def worth_of_sets(
    folder: Folder,
    config: RunConfig,
    lesson: Lesson,
    observed: Observed,
    prompt_tokens_N: NDArray[np.int64],
    *,
    tokens_K: NDArray[np.int64],
) -> dict[str, float]:
    """Return by each feature set alone how much better answers are predicted that the fit has not seen, nats an answer.

    Args:
        folder: The run folder, with queries and estimates.
        config: Of the run.
        lesson: What it learned from.
        observed: Its answers, by query of the whole batch.
        prompt_tokens_N: Length of every prompt.
        tokens_K: Grid of the curves.
    """
    if len(lesson.features) < 2 or not len(observed):
        return {}
    if len(observed) > MOST_ANSWERS:
        drawn = np.random.default_rng([config.seed, 4]).permutation(len(observed))[:MOST_ANSWERS]
        observed = observed.take(np.sort(drawn))
    how = (lesson.features, lesson.label, config.estimate.encoder, config.seed)
    is_few = not is_spread(len(prompt_tokens_N))
    found: dict[str, float] = called(_worth, folder, observed, prompt_tokens_N, tokens_K, how, is_few=is_few)
    return found


def _worth(
    folder: Folder,
    observed: Observed,
    prompt_tokens_N: NDArray[np.int64],
    tokens_K: NDArray[np.int64],
    how: tuple[tuple[str, ...], Label, str | None, int],
) -> dict[str, float]:
    """Read the queries of the answers once more, and fit by each set; runs in a task."""
    features, label, encoder, seed = how
    wanted, tables = np.unique(observed.query_M), []
    for path in folder.child("queries").files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem, columns=READ_COLUMNS)
        tables.append(table.filter(pa.array(np.isin(table["index"].to_numpy(), wanted))))
    rows = pa.concat_tables(tables).sort_by("index")
    states = None if PROBED_SETS.isdisjoint(features) else folder
    known, texts, tasks = read_block(rows, prompt_tokens_N, encoder, states)
    own = replace(observed, query_M=np.searchsorted(wanted, observed.query_M))
    found = {}
    for name in features:
        sets = ("hidden",) if name == ENCODER else (name,)
        x_MP = fit_coordinates(known, texts, sets=sets, tasks=tasks, seed=seed)(known, texts, tasks)
        found[name] = 0.0  # where all queries are alike by it
        if np.ptp(x_MP, axis=0).max(initial=0.0) > _ALIKE:
            nats = learn(x_MP, own, tokens_K=tokens_K, label=label, seed=seed).evidence.learned_nats
            found[name] = nats / len(own)
    return found
