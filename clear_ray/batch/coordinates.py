"""Coordinates of a batch's queries, by which a run learns from its own answers (docs/method.md, section 8).

    queries/ --a sample of the prompts, in one task--> map --every block, in tasks--> coordinates/ --> driver: numbers alone

No label and no answer goes into the map, and no prompt comes to the driver. `coordinates/` is replaced in one step and
`coordinates.json` is written when it is whole, before the first grant that depends on it: a resumed run reads the same
numbers. They are kept in single precision and held in double, at most 400 of them: 1.6 kB a query on disk and 3.2 kB on the
driver, 320 MB at a hundred thousand queries; of a larger batch the driver reads those of a sample alone.

Shapes: N queries of the batch, P coordinates, B rows of a block.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from clear_ray.batch.size_limits import is_spread
from clear_ray.config.estimate import PROBED_SETS
from clear_ray.engine.base import Features, words_of
from clear_ray.errors import BudgetError, own_error
from clear_ray.estimation.encoder import encoded_features, encoder_folder
from clear_ray.estimation.factorised import Coordinates, fit_coordinates
from clear_ray.estimation.states import features_of
from clear_ray.run_folder.estimates import read_states
from clear_ray.stages.probe import prompts_of
from clear_ray.storage import Folder

COORDINATES = "coordinates"
COORDINATES_WHOLE = "coordinates.json"
COORDINATES_MAP = "coordinates.map"
"""The map of a batch that was priced while it was read (`part_coordinates`), as safetensors."""
MOST_SAMPLED = 5_000
"""Most prompts that the map is fitted on."""
READ_COLUMNS = ["index", "prompt", "is_conversation", "task", "prompt_form", "input_error"]
"""What a map may read of a query."""
_BATCH_ROWS = 2_048


def coordinates_of(
    folder: Folder,
    prompt_tokens_N: NDArray[np.int64],
    *,
    features: Sequence[str],
    seed: int,
    encoder: str | None = None,
    sample: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return coordinates of queries, shape (N, P); all are made and written if the run folder does not hold them yet.

    Args:
        folder: The run folder, with its queries.
        prompt_tokens_N: Length of every prompt, tokens.
        features: Names out of `estimation.feature_sets.FEATURE_SETS`; hidden states are read of the estimates in the folder.
        seed: Which prompts the map is fitted on, where there are many.
        encoder: Encoder whose states are read as well; None for none.
        sample: Which queries to return, rising; all if not given.

    Raises:
        BudgetError: Not every query has coordinates; a defect.
        ConfigError: There is no such encoder.
    """
    if not folder.exists(COORDINATES_WHOLE):
        _write(folder, prompt_tokens_N, tuple(features), seed, encoder)
        whole = {"rows": len(prompt_tokens_N), "features": list(features), "seed": seed}
        folder.write(COORDINATES_WHOLE, json.dumps(whole).encode())
    return read_coordinates(folder, len(prompt_tokens_N), sample)


def read_coordinates(folder: Folder, queries: int, sample: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Return the coordinates in a run folder, in the order of the queries, shape (N, P), or of some of them.

    Args:
        folder: The run folder.
        queries: Number of queries, N.
        sample: Which queries, rising; all if not given.

    Raises:
        BudgetError: Not every query has coordinates.
    """
    place_N = np.arange(queries)
    if sample is not None:
        place_N = np.full(queries, -1)
        place_N[sample] = np.arange(len(sample))
    wanted = queries if sample is None else len(sample)
    x_NP, seen_N = np.zeros((wanted, 0)), np.zeros(queries, np.int64)
    for path in folder.child(COORDINATES).files(".parquet"):
        table = pq.read_table(path, filesystem=folder.filesystem).combine_chunks()
        index, x_BP = table["index"].to_numpy(), points_of(table)
        if not seen_N.any():
            x_NP = np.zeros((wanted, x_BP.shape[1]))
        is_wanted_B = place_N[index] >= 0
        x_NP[place_N[index[is_wanted_B]]] = x_BP[is_wanted_B]
        seen_N += np.bincount(index, minlength=queries)
    if (seen_N != 1).any():
        said = f"query {int((seen_N != 1).argmax())} of {queries}"
        raise BudgetError(
            "a query has no coordinates, or has them twice",
            folder.path,
            said,
            f"Delete {COORDINATES} and {COORDINATES_WHOLE} in the run folder, and run again.",
        )
    return x_NP


def points_of(block: pa.Table) -> NDArray[np.float64]:
    """Return the coordinates in rows of `coordinates/`, shape (B, P)."""
    flat: NDArray[np.float32] = block["x"].combine_chunks().flatten().to_numpy()
    return flat.reshape(len(block), block.schema.field("x").type.list_size).astype(np.float64)


@dataclass(frozen=True)
class AddCoordinates:
    """Callable for `map_batches`: from the columns of `records.QUERY_SCHEMA` to coordinates.

    Attributes:
        fitted: Reference to the map.
        prompt_tokens: Reference to the length of every prompt, shape (N,).
        encoder: Encoder whose states it reads.
        states: Run folder whose estimates hold the hidden states that it reads; None if it reads none.
    """

    fitted: Any
    prompt_tokens: Any
    encoder: str | None
    states: Folder | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return index and coordinates of each row."""
        return _mapped(batch, ray.get(self.fitted), ray.get(self.prompt_tokens), self.encoder, self.states)


def _mapped(
    batch: pa.Table,
    fitted: Coordinates,
    prompt_tokens_N: NDArray[np.int64],
    encoder: str | None,
    states: Folder | None,
) -> pa.Table:
    return table_of(batch["index"].combine_chunks(), fitted(*read_block(batch, prompt_tokens_N, encoder, states)))


def table_of(index: pa.Array, points_BP: NDArray[np.float64]) -> pa.Table:
    """Return rows of `coordinates/`, in single precision."""
    x_BP = np.ascontiguousarray(points_BP, np.float32)
    return pa.table({"index": index, "x": pa.FixedSizeListArray.from_arrays(pa.array(x_BP.ravel()), x_BP.shape[1])})


def _write(
    folder: Folder, prompt_tokens_N: NDArray[np.int64], features: tuple[str, ...], seed: int, encoder: str | None
) -> None:
    if encoder is not None:
        encoder_folder(encoder)  # refused here, not in a task
        features = (*features, "hidden")  # an encoder's states stand in their place
    states = None if encoder is not None or PROBED_SETS.isdisjoint(features) else folder
    queries = folder.child("queries")
    paths = queries.files(".parquet")
    if not is_spread(len(prompt_tokens_N)) and encoder is None:
        with folder.replacing(COORDINATES) as target:
            _write_here(folder, paths, prompt_tokens_N, features, seed, target, states)
        return
    fit: Any = ray.remote(_fit)
    prompt_tokens = ray.put(prompt_tokens_N)
    fitted = fit.remote(folder, paths, prompt_tokens, features, seed, encoder, states)
    try:
        from ray.data import read_parquet

        ray.wait([fitted], fetch_local=False)
        with folder.replacing(COORDINATES) as target:
            (
                read_parquet(paths, filesystem=folder.filesystem)
                .select_columns(READ_COLUMNS)
                .map_batches(
                    AddCoordinates(fitted, prompt_tokens, encoder, states),
                    batch_size=_BATCH_ROWS,
                    batch_format="pyarrow",
                )
                .write_parquet(target.path, filesystem=folder.filesystem)
            )
    except Exception as error:
        raise own_error(error) or error from error
    folder.child(COORDINATES).sync()


def _write_here(
    folder: Folder,
    paths: Sequence[str],
    prompt_tokens_N: NDArray[np.int64],
    features: Sequence[str],
    seed: int,
    target: Folder,
    states: Folder | None,
) -> None:
    """Write the coordinates of a small batch without a task: starting one takes longer than they do."""
    fitted = _fit(folder, paths, prompt_tokens_N, features, seed, None, states)
    for path in paths:
        table = pq.read_table(path, filesystem=folder.filesystem, columns=READ_COLUMNS).combine_chunks()
        sink = BytesIO()
        pq.write_table(_mapped(table, fitted, prompt_tokens_N, None, states), sink)
        target.write(path.rpartition("/")[2], sink.getvalue())


def _fit(
    folder: Folder,
    paths: Sequence[str],
    prompt_tokens_N: NDArray[np.int64],
    features: Sequence[str],
    seed: int,
    encoder: str | None,
    states: Folder | None,
) -> Coordinates:
    """Return the map, fitted on the prompts of a sample; runs in a task."""
    drawn = np.random.default_rng(seed).permutation(len(prompt_tokens_N))[:MOST_SAMPLED]
    sample = rows_where(folder, paths, drawn)
    known, prompts, tasks = read_block(sample, prompt_tokens_N, encoder, states)
    return fit_coordinates(known, prompts, sets=features, tasks=tasks, seed=seed)


def rows_where(folder: Folder, paths: Sequence[str], index: NDArray[np.int64]) -> pa.Table:
    """Return what a map may read of the queries at `index`, rising; of the files of `queries/` one is held at a time."""
    found = []
    for path in paths:
        table = pq.read_table(path, filesystem=folder.filesystem, columns=READ_COLUMNS)
        found.append(table.filter(pa.array(np.isin(table["index"].to_numpy(), index))))
    return pa.concat_tables(found).sort_by("index")


def read_block(
    batch: pa.Table, prompt_tokens_N: NDArray[np.int64], encoder: str | None = None, states: Folder | None = None
) -> tuple[Features, list[str], list[str]]:
    """Return what a map may read of rows: numbers of the probe or an encoder, texts as heads are shown them, and labels.

    Args:
        batch: Rows with `READ_COLUMNS`.
        prompt_tokens_N: Length of every prompt of the batch.
        encoder: Encoder whose states are read; None for none.
        states: Run folder whose estimates hold the hidden states that are read; None for none.
    """
    rows, index = len(batch), batch["index"].to_numpy()
    entropy_B, states_BS = np.full(rows, np.nan, np.float32), np.zeros((rows, 0), np.float32)
    if states is not None:
        entropy_B, states_BS = read_states(states, index)
    known = features_of(prompt_tokens_N[index], entropy_B, states_BS)
    texts, tasks = read_words(batch)
    if encoder is not None:
        known = encoded_features(known, texts, encoder=encoder)
    return known, texts, tasks


def read_words(batch: pa.Table) -> tuple[list[str], list[str]]:
    """Return texts as heads are shown them, and labels."""
    is_query = pc.is_null(batch["input_error"])
    words = iter(words_of(prompt) for prompt in prompts_of(batch.filter(is_query)))
    texts = [next(words) if is_one else "" for is_one in is_query.to_pylist()]
    return texts, [task or "" for task in batch["task"].to_pylist()]
