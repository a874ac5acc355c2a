"""What the probe found, as the driver reads it: curves of all queries or of a sample, and a few numbers of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.allocation.in_blocks import ROWS_OF_BLOCK
from clear_ray.errors import BudgetError
from clear_ray.estimation.curves import Curves
from clear_ray.estimation.curves_on_disk import CurvesOnDisk
from clear_ray.records import STATES
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.calls import CallCosts
from clear_ray.run_folder.parquet import damaged, read_columns, told_if_damaged
from clear_ray.storage import Folder

ESTIMATES = "estimates"

ESTIMATES_WHOLE = "estimates.json"


def estimates_name(engine: int) -> str:
    """Return the folder of the estimates of one of several engines, by its place; `NAME.json` says that they are whole."""
    return ESTIMATES if engine == 0 else f"{ESTIMATES}-{engine}"


CURVE_COLUMNS = [
    "index",
    "weight",
    "cost",
    "max_tokens",
    "success_K",
    "spend_K",
    "survival_K",
    "threshold_tokens",
    "solvability",
    "beta",
]
"""What a round is cleared over, of `records.estimate_schema`."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """The slim side of `estimates/`.

    Attributes:
        batch: All queries in order of `index`; of a batch that is priced from sketches an even sample of them.
        sample: Which queries are in `batch`, rising.
        task_names: Tasks of the batch; `all` for queries that name none.
        task_N: Task of every query, an index into them.
        prompt_tokens_N: Length of every prompt, tokens.
        max_tokens_N: Ceiling of every query over all its grants.
        tie_break_N: See `Batch`; of every query.
        error_of_index: Why a query could not be read, of those few.
        calls: What calls take in all, of every query, where prompts are paid for.
        others: Those of the further engines, where there are several; these are of the first, and `error_of_index` has what
            none of them could read.
        is_read_N: Which prompts the probe read; those of others were only measured. All if not given.
        is_known_N: Which queries have an estimate, of a run whose end was ordered before all had one; others have a ceiling
            of 0 and no length. All if not given.
    """

    batch: Batch
    sample: NDArray[np.int64]
    task_names: tuple[str, ...]
    task_N: NDArray[np.int32]
    prompt_tokens_N: NDArray[np.int64]
    max_tokens_N: NDArray[np.int64]
    tie_break_N: NDArray[np.uint64]
    error_of_index: dict[int, str]
    calls: CallCosts | None = None
    is_read_N: NDArray[np.bool_] | None = None
    is_known_N: NDArray[np.bool_] | None = None
    others: tuple[Estimates, ...] = ()

    @property
    def queries(self) -> int:
        """How many queries there are, N."""
        return len(self.task_N)

    @property
    def each(self) -> tuple[Estimates, ...]:
        """Those of each engine."""
        return (self, *self.others)

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The batch by what is believed of each engine."""
        return tuple(estimates.batch for estimates in self.each)

    @property
    def read_tokens_N(self) -> NDArray[np.int64]:
        """Tokens of each prompt that the probe read."""
        return self.prompt_tokens_N if self.is_read_N is None else self.prompt_tokens_N * self.is_read_N

    @property
    def prefill_tokens(self) -> int:
        """Tokens that the probe read in all, of all engines."""
        return int(sum(estimates.read_tokens_N.sum() for estimates in self.each))

    @property
    def is_sample(self) -> bool:
        """Whether the curves in `batch` are only some of them."""
        return len(self.sample) < self.queries


def estimated_already(
    folder: Folder, queries: int, name: str = ESTIMATES, *, place_N: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.bool_], list[str]]:
    """Return for which queries runs before have written estimates, shape (N,), and in which files.

    Files torn or damaged are removed, and so are those whose queries stand in others: what a killed run leaves running for a
    moment may write once more what the next one has begun to write.

    Args:
        folder: The run folder.
        queries: Number of queries, N.
        name: See `estimates_name`.
        place_N: Place of each query in the order of reading, in which files come; by their names if not given.
    """
    is_estimated_N, kept = np.zeros(queries, bool), []
    first: list[int] = []
    for path in folder.child(name).files(".parquet"):
        table = read_columns(folder, path, ["index"])
        index = None if isinstance(table, Exception) else table["index"].to_numpy()
        if index is None or is_estimated_N[index].any():
            folder.filesystem.delete_file(path)
            continue
        is_estimated_N[index] = True
        kept.append(path)
        first.append(len(first) if place_N is None else int(place_N[index].min(initial=queries)))
    return is_estimated_N, [kept[place] for place in np.argsort(first, kind="stable").tolist()]


def read_estimates(
    folder: Folder,
    tokens_K: NDArray[np.int64],
    seed: int,
    *,
    most_curves: int | None = None,
    name: str = ESTIMATES,
    batch: Batch | None = None,
) -> Estimates:
    """Read the numbers of every query's estimate; no prompts.

    Args:
        folder: The run folder.
        tokens_K: Token grid of the curves.
        seed: Seed of the run.
        most_curves: Read the curves of so many queries only, evenly drawn.
        name: See `estimates_name`.
        batch: The curves of all queries, if they have been read.

    Raises:
        ResumeError: A file of them is damaged.
    """
    with told_if_damaged(folder, name):
        return _estimates_in(folder.child(name), tokens_K, seed, most_curves, batch)


def tie_breaks(queries: int, seed: int) -> NDArray[np.uint64]:
    """Return a number of each query that has nothing to do with its place, shape (N,)."""
    return np.random.default_rng(seed).permutation(queries).astype(np.uint64)


def _estimates_in(
    folder: Folder, tokens_K: NDArray[np.int64], seed: int, most_curves: int | None, batch: Batch | None
) -> Estimates:
    source = ds.dataset(folder.files(".parquet"), filesystem=folder.filesystem, format="parquet")
    slim = source.to_table(columns=["index", "task", "prompt_tokens", "max_tokens", "entropy"])
    failed = source.to_table(columns=["index", "error"], filter=ds.field("error") != "")
    slim = slim.take(pa.array(np.argsort(slim["index"].to_numpy())))
    queries = len(slim)
    tasks = slim["task"].fill_null("all").combine_chunks().dictionary_encode()
    tie_break_N = tie_breaks(queries, seed)
    sample, wanted = np.arange(queries), None
    if most_curves is not None and most_curves < queries:
        sample = even_sample(queries, most_curves, seed)
        wanted = ds.field("index").isin(pa.array(sample))
    return Estimates(
        batch=_batch_in(source, wanted, tokens_K, sample, tie_break_N[sample]) if batch is None else batch,
        sample=sample,
        task_names=tuple(tasks.dictionary.to_pylist()),
        task_N=tasks.indices.to_numpy(),
        prompt_tokens_N=slim["prompt_tokens"].to_numpy().astype(np.int64),
        max_tokens_N=slim["max_tokens"].to_numpy().astype(np.int64),
        tie_break_N=tie_break_N,
        error_of_index=dict(zip(failed["index"].to_pylist(), failed["error"].to_pylist(), strict=True)),
        is_read_N=~np.isnan(slim["entropy"].to_numpy()),
    )


def read_batches(
    folder: Folder,
    paths: list[str],
    tokens_K: NDArray[np.int64],
    sample: NDArray[np.int64],
    tie_break_S: NDArray[np.uint64],
) -> Batch:
    """Return what a round is cleared over, of some queries of a batch; those that no file has may be granted nothing.

    Args:
        folder: The run folder.
        paths: Files of estimates.
        tokens_K: Token grid of the curves.
        sample: Which queries, rising, shape (S,).
        tie_break_S: See `Batch`; of these.

    Raises:
        ResumeError: A file is damaged.
    """
    with told_if_damaged(folder, ESTIMATES):
        source = ds.dataset(paths, filesystem=folder.filesystem, format="parquet")
        return _batch_in(source, ds.field("index").isin(pa.array(sample)), tokens_K, sample, tie_break_S)


def _batch_in(
    source: ds.Dataset,
    wanted: ds.Expression | None,
    tokens_K: NDArray[np.int64],
    sample: NDArray[np.int64],
    tie_break_S: NDArray[np.uint64],
) -> Batch:
    """Return what a round is cleared over; curves of very many queries stay on disk."""
    if len(sample) <= ROWS_OF_BLOCK:
        table = source.to_table(columns=CURVE_COLUMNS, filter=wanted)
        if len(table) == len(sample):
            return read_batch(table.take(pa.array(np.argsort(table["index"].to_numpy()))), tokens_K, tie_break_S)
    weight_S, cost_S, max_tokens_S = np.ones(len(sample)), np.ones(len(sample)), np.zeros(len(sample), np.int64)

    def blocks() -> Iterator[tuple[NDArray[np.int64], Curves]]:
        few = {"batch_size": ROWS_OF_BLOCK, "batch_readahead": 1, "fragment_readahead": 1}
        for read in source.to_batches(columns=CURVE_COLUMNS, filter=wanted, **few):
            rows = pa.Table.from_batches([read])
            place_B = np.searchsorted(sample, rows["index"].to_numpy())
            block = read_batch(rows, tokens_K, tie_break_S[place_B])
            weight_S[place_B], cost_S[place_B] = block.weight_N, block.cost_N
            max_tokens_S[place_B] = block.max_tokens_N
            yield place_B, block.curves

    curves = CurvesOnDisk.of(blocks(), len(sample))
    return Batch(curves, weight_S, max_tokens_S, tie_break_S, cost_S)


def even_sample(queries: int, size: int, seed: int) -> NDArray[np.int64]:
    """Return one query at random out of each of so many even parts: a batch may list its tasks in turn."""
    edges = np.linspace(0, queries, size + 1).astype(np.int64)
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def read_batch(table: pa.Table, tokens_K: NDArray[np.int64], tie_break_N: NDArray[np.uint64]) -> Batch:
    """Return rows of `estimates/` as what a round is cleared over, in their order."""

    def grid(name: str) -> NDArray[np.float32]:
        flat: NDArray[np.float32] = pc.list_flatten(table[name]).to_numpy()
        return flat.reshape(len(table), len(tokens_K))

    numbers = (table[name].to_numpy() for name in ("threshold_tokens", "solvability", "beta"))
    return Batch(
        Curves(tokens_K, grid("success_K"), grid("spend_K"), grid("survival_K"), *numbers),
        weight_N=table["weight"].to_numpy(),
        max_tokens_N=table["max_tokens"].to_numpy(),
        tie_break_N=tie_break_N,
        cost_N=table["cost"].to_numpy(),
    )


def rows_of_queries(folder: Folder, name: str, index: NDArray[np.int64], columns: list[str]) -> pa.Table:
    """Return columns of the rows of some queries, in the order of `index`; no other rows are held.

    Args:
        folder: The run folder.
        name: Which of its folders, with files of a row a query.
        index: The queries, each once.
        columns: What to read.

    Raises:
        ResumeError: A file is damaged, or a query is not there.
    """
    child = folder.child(name)
    with told_if_damaged(folder, name):
        source = ds.dataset(child.files(".parquet"), filesystem=child.filesystem, format="parquet")
        number = ds.field("index")
        wanted = (number >= int(index.min(initial=0))) & (number <= int(index.max(initial=0)))
        table = source.to_table(columns=["index", *columns], filter=wanted & number.isin(pa.array(index)))
    found, order = table["index"].to_numpy(), np.argsort(index)
    if not np.array_equal(np.sort(found), index[order]):
        raise damaged(folder, name, ValueError(f"{len(found):,} rows of {len(index):,} queries"))
    place = np.empty(len(index), np.int64)
    place[order] = np.argsort(found)
    return table.take(pa.array(place)).combine_chunks()


def grid_of(rows: pa.Table, name: str) -> NDArray[np.float32]:
    """Return a column of lists of one length as a matrix, a row a query."""
    flat: NDArray[np.float32] = pc.list_flatten(rows[name]).to_numpy()
    return flat.reshape(len(rows), -1) if len(rows) else flat.reshape(0, 0)


def read_states(folder: Folder, index: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return entropy and kept states of the queries at `index`, shapes (B,) and (B, 2 S); zeros for one that was not read.

    Raises:
        ResumeError: A file of the estimates is damaged.
    """
    rows = rows_of_queries(folder, ESTIMATES, index, ["entropy", STATES.name])
    is_known_B = pc.is_valid(rows[STATES.name]).to_numpy(zero_copy_only=False)
    known = grid_of(rows.filter(pa.array(is_known_B)), STATES.name)
    states_BS = np.zeros((len(index), known.shape[1]), np.float32)
    states_BS[is_known_B] = known
    return rows["entropy"].to_numpy(), states_BS


def read_costs(folder: Folder, queries: int) -> NDArray[np.float64]:
    """Return what a token of each query takes from the budget, shape (N,).

    Raises:
        ResumeError: A file of queries is damaged.
    """
    return _numbers_of_queries(folder, queries, "cost")


def read_weights(folder: Folder, queries: int) -> NDArray[np.float64]:
    """Return what a correct answer to each query is worth, shape (N,).

    Raises:
        ResumeError: A file of queries is damaged.
    """
    return _numbers_of_queries(folder, queries, "weight")


def _numbers_of_queries(folder: Folder, queries: int, name: str) -> NDArray[np.float64]:
    found_N = np.ones(queries)
    for path in folder.child("queries").files(".parquet"):
        table = read_columns(folder, path, ["index", name])
        if isinstance(table, Exception):
            raise damaged(folder, path.removeprefix(f"{folder.path}/"), table) from table
        found_N[table["index"].to_numpy()] = table[name].to_numpy()
    return found_N


def read_answers_asked(folder: Folder, queries: int) -> NDArray[np.int64]:
    """Return how many answers each row asks for itself, shape (N,); 0 where it does not say.

    Raises:
        ResumeError: A file of queries is damaged.
    """
    asked_N = np.zeros(queries, np.int64)
    for path in folder.child("queries").files(".parquet"):
        if "n" not in _names_in(folder, path):  # of an older run
            continue
        table = read_columns(folder, path, ["index", "n"])
        if isinstance(table, Exception):
            raise damaged(folder, path.removeprefix(f"{folder.path}/"), table) from table
        asked_N[table["index"].to_numpy()] = table["n"].fill_null(0).to_numpy()
    return asked_N


def _names_in(folder: Folder, path: str) -> list[str]:
    with folder.filesystem.open_input_file(path) as source:
        names: list[str] = pq.read_schema(source).names
    return names


def lost_estimates(folder: Folder, queries: int, estimates: int) -> BudgetError:
    """Return what is raised where not every query of a run has an estimate: a defect."""
    return BudgetError(
        f"{queries} queries came in and {estimates} estimates came out",
        folder.path,
        remedy="Delete the run folder and run again; if it comes back, please report it.",
    )
