"""What a run folder remembers: the manifest, the rounds, and which of their rows are whole.

manifest.json   configuration, versions, input digest, model and head; written before the first estimate
estimates/      one file of estimates for every block of queries, as it is read; estimates.json says that they are whole
grants/rNN.parquet  the grants of round NN in order of dispatch, with price and expectations; written before its first token
rounds/rNN/     attempts, written as they end
summary.json    written last: a folder that has it is done
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clear_ray.config.bounds import MOST_ROWS
from clear_ray.config.run import CHANGEABLE, RunConfig
from clear_ray.config.units import MOST_BUDGET_TOKENS
from clear_ray.errors import ConfigError, ResumeError
from clear_ray.estimation.curves import Curves
from clear_ray.ingest import InputDigest, read_digest
from clear_ray.ledger.identity import RUN_ID, has_only_begun
from clear_ray.ledger.journal import FIRST_SEGMENT, JOURNAL, read_journal
from clear_ray.ledger.ledger import Entry, Ledger
from clear_ray.ledger.void import VoidAttempts
from clear_ray.locations import PATH_SETTINGS, absolute
from clear_ray.records import ATTEMPT_SCHEMA
from clear_ray.report.summary import RunReport
from clear_ray.rounds.attempts import Attempts
from clear_ray.rounds.batch import Batch
from clear_ray.rounds.clearing import Clearing
from clear_ray.rounds.running import Round
from clear_ray.storage import Folder, is_plain_path, read_many, reading_errors

MANIFEST = "manifest.json"
SUMMARY = "summary.json"
ESTIMATES = "estimates"
ESTIMATES_WHOLE = "estimates.json"
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
_BEFORE_MANIFEST = re.compile(
    r"queries(\.partial)?/(part-\d{6,}\.parquet|_input\.json)(\.partial)?|manifest\.json\.partial"
)
"""What a run that ended before it had a manifest may have left, each name whole: what is taken in replaces it."""
_LIBRARIES = ("clear_ray", "ray", "torch", "transformers", "numpy", "scipy", "pyarrow")
_READ_OF_ATTEMPT = [
    "index",
    "attempt",
    "granted_tokens",
    "attempt_tokens",
    "token_ids",
    "finish_reason",
    "correct",
    "error",
]
_KEPT_OF_ATTEMPT = ("index", "attempt", "granted_tokens", "attempt_tokens", "correct")
SLIM_ATTEMPT_SCHEMA = pa.schema(
    [
        *(ATTEMPT_SCHEMA.field(name).with_nullable(True) for name in _KEPT_OF_ATTEMPT),
        pa.field("answer_tokens", pa.int64()),
        pa.field("has_stopped", pa.bool_()),
        pa.field("has_failed", pa.bool_()),
        pa.field("is_at_end", pa.bool_()),
    ]
)
"""What the driver keeps of an attempt: numbers, and whether it ended by itself, failed, or cannot go on."""


def read_manifest(folder: Folder) -> dict[str, Any] | None:
    """Return the manifest, or None if the folder is new.

    Raises:
        ConfigError: The folder holds something else.
        ResumeError: The manifest is damaged.
        StorageError: The folder cannot be read.
    """
    with reading_errors(folder):
        content = folder.read(MANIFEST) if folder.exists(MANIFEST) else None
    if content is not None:
        try:
            return _checked(json.loads(content))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(folder, MANIFEST, error) from error
    with reading_errors(folder):
        names = [path.removeprefix(f"{folder.path}/") for path in folder.files()]
        strangers = [name for name in names if not _may_precede_manifest(folder, name)]
    if strangers:
        raise ConfigError(
            "the run folder is not empty and holds no run", folder.path, strangers[0], "Name a new or empty folder."
        )
    return None


def _checked(manifest: Any) -> dict[str, Any]:
    """Return a manifest whose parts are what `describe` writes, as far as any code relies on them."""
    if not isinstance(manifest["config"], dict):
        raise TypeError("config is no group of settings")
    numbers = {"input.rows": (manifest["input"]["rows"], MOST_ROWS)}
    numbers["budget_tokens"] = (manifest["budget_tokens"], MOST_BUDGET_TOKENS)
    for name, (number, most) in numbers.items():
        if type(number) is not int or not 1 <= number <= most:
            raise ValueError(f"{name} is {number!r}, not a whole number from 1 to {most:,}")
    if not RUN_ID.fullmatch(manifest.get("run_id") or "0" * 32):
        raise ValueError(f"run_id is {manifest['run_id']!r}, not 32 hexadecimal digits")
    whole: dict[str, Any] = manifest
    return whole


def _may_precede_manifest(folder: Folder, name: str) -> bool:
    """Tell what a run leaves that ended before it had a manifest: its input, and a journal in which it has only begun."""
    is_journal = name == JOURNAL if folder.is_local else name == FIRST_SEGMENT
    return bool(_BEFORE_MANIFEST.fullmatch(name)) or (is_journal and has_only_begun(folder))


def describe_config(config: RunConfig) -> dict[str, Any]:
    """Return the part of the manifest that says what was asked for."""
    return {"config": json.loads(config.model_dump_json())}


def describe_input(digest: InputDigest) -> dict[str, Any]:
    """Return the part of the manifest that says what was taken in."""
    return {"input": {"rows": digest.rows, "sha256": digest.sha256, "openai_url": digest.openai_url}}


def describe(config: RunConfig, digest: InputDigest, **cards: Any) -> dict[str, Any]:
    """Return the manifest of a new run."""
    return {
        "format": 1,
        **describe_config(config),
        "budget_tokens": config.budget_tokens,
        "seed": config.seed,
        **describe_input(digest),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        **cards,
    }


def check_same_run(manifest: dict[str, Any], wanted: dict[str, Any], folder: Folder) -> None:
    """Refuse to go on with a run under another configuration, input, model or head; compares the parts that are given.

    Raises:
        ResumeError: They differ; the first difference is named.
    """
    for part in ("config", "input", "model", "head"):
        if part not in wanted:
            continue
        kept = manifest.get(part, {})
        old, new = _flat(_with_defaults(kept) if part == "config" else kept, part), _flat(wanted[part], part)
        for key in sorted(old.keys() | new.keys()):
            is_free = key == "config.run_dir" or key.startswith(f"config.{CHANGEABLE}.")
            is_same = old.get(key) == new.get(key) or (key in PATH_SETTINGS and _is_same_path(key, old, new))
            if not is_same and not is_free:
                raise ResumeError(
                    f"{key} was {old.get(key)!r} when the run began and is {new.get(key)!r} now",
                    folder.path,
                    remedy="Name a new run_dir, or put the setting back to go on with this run.",
                )


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return kept settings with those that have come since at their defaults, under which the run began."""
    try:
        whole: dict[str, Any] = describe_config(RunConfig.model_validate(config))["config"]
    except ValueError:  # settings that are gone: what differs is named one by one
        return config
    return whole


def _is_same_path(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two paths lead to the same place from their run folders: both moved together, or one is written relative."""
    if not isinstance(old.get(key), str) or not isinstance(new.get(key), str):
        return False
    before, after = ([absolute(settings[name]) for name in (key, "config.run_dir")] for settings in (old, new))
    if before[0] == after[0]:
        return True
    is_local = all(map(is_plain_path, (*before, *after)))
    return is_local and os.path.relpath(*before) == os.path.relpath(*after)


def read_summary(folder: Folder) -> RunReport | None:
    """Return the report of a run that is done, or None.

    Raises:
        ResumeError: The summary is damaged.
        StorageError: The folder cannot be read.
    """
    with reading_errors(folder):
        content = folder.read(SUMMARY) if folder.exists(SUMMARY) else None
    if content is None:
        return None
    try:
        return RunReport.model_validate_json(content)
    except ValueError as error:
        raise _damaged(folder, SUMMARY, error) from error


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
    """

    batch: Batch
    sample: NDArray[np.int64]
    task_names: tuple[str, ...]
    task_N: NDArray[np.int32]
    prompt_tokens_N: NDArray[np.int64]
    max_tokens_N: NDArray[np.int64]
    tie_break_N: NDArray[np.uint64]
    error_of_index: dict[int, str]

    @property
    def queries(self) -> int:
        """N."""
        return len(self.task_N)

    @property
    def is_sample(self) -> bool:
        """Whether the curves in `batch` are only some of them."""
        return len(self.sample) < self.queries

    @property
    def prefill_tokens(self) -> int:
        """Tokens that the probe read in all."""
        return int(self.prompt_tokens_N.sum())


def estimated_already(folder: Folder, queries: int) -> tuple[NDArray[np.bool_], list[str]]:
    """Return for which queries runs before have written estimates, shape (N,), and in which files.

    Files torn or damaged are removed, and so are those whose queries stand in others: what a killed run leaves running for a
    moment may write once more what the next one has begun to write.
    """
    is_estimated_N, kept = np.zeros(queries, bool), []
    for path in folder.child(ESTIMATES).files(".parquet"):
        table = _read_parquet(folder, path, ["index"])
        index = None if isinstance(table, Exception) else table["index"].to_numpy()
        if index is None or is_estimated_N[index].any():
            folder.filesystem.delete_file(path)
            continue
        is_estimated_N[index] = True
        kept.append(path)
    return is_estimated_N, kept


def read_estimates(
    folder: Folder, tokens_K: NDArray[np.int64], seed: int, *, most_curves: int | None = None
) -> Estimates:
    """Read the numbers of every query's estimate; no prompts.

    Args:
        folder: The run folder.
        tokens_K: Token grid of the curves.
        seed: Seed of the run.
        most_curves: Read the curves of so many queries only, evenly drawn.

    Raises:
        ResumeError: A file of them is damaged.
    """
    try:
        return _estimates_in(folder, tokens_K, seed, most_curves)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's doing
            raise
        raise _damaged(folder, ESTIMATES, error) from error


def _estimates_in(folder: Folder, tokens_K: NDArray[np.int64], seed: int, most_curves: int | None) -> Estimates:
    source = ds.dataset(folder.child(ESTIMATES).files(".parquet"), filesystem=folder.filesystem, format="parquet")
    slim = source.to_table(columns=["index", "task", "prompt_tokens", "max_tokens"])
    failed = source.to_table(columns=["index", "error"], filter=ds.field("error") != "")
    slim = slim.take(pa.array(np.argsort(slim["index"].to_numpy())))
    queries = len(slim)
    tasks = slim["task"].fill_null("all").combine_chunks().dictionary_encode()
    tie_break_N = np.random.default_rng(seed).permutation(queries).astype(np.uint64)
    sample, wanted = np.arange(queries), None
    if most_curves is not None and most_curves < queries:
        sample = np.unique(np.linspace(0, queries - 1, most_curves).astype(np.int64))
        wanted = ds.field("index").isin(pa.array(sample))
    table = source.to_table(columns=CURVE_COLUMNS, filter=wanted)
    table = table.take(pa.array(np.argsort(table["index"].to_numpy())))
    return Estimates(
        batch=read_batch(table, tokens_K, tie_break_N[sample]),
        sample=sample,
        task_names=tuple(tasks.dictionary.to_pylist()),
        task_N=tasks.indices.to_numpy(),
        prompt_tokens_N=slim["prompt_tokens"].to_numpy().astype(np.int64),
        max_tokens_N=slim["max_tokens"].to_numpy().astype(np.int64),
        tie_break_N=tie_break_N,
        error_of_index=dict(zip(failed["index"].to_pylist(), failed["error"].to_pylist(), strict=True)),
    )


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


def write_grants(folder: Folder, granted: Round) -> None:
    """Keep a round's grants before they are acted on, so that a resumed run goes on with the same ones."""
    clearing = granted.clearing
    table = pa.table(
        {
            "index": clearing.index_M,
            "tokens": clearing.tokens_M,
            "expected_tokens": clearing.expected_tokens_M,
            "expected_utility": clearing.expected_utility_M,
        }
    ).replace_schema_metadata(
        {
            "shadow_price": repr(clearing.shadow_price),
            "dual_bound": repr(clearing.dual_bound),
            "gap": repr(clearing.gap),
            "available_tokens": str(granted.available_tokens),
            "is_service": "yes" if clearing.is_service else "",
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
        raise _damaged(folder, name, error) from error


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
    )
    return Round(number, int(facts["available_tokens"]), clearing)


def read_costs(folder: Folder, queries: int) -> NDArray[np.float64]:
    """Return what a token of each query takes from the budget, shape (N,).

    Raises:
        ResumeError: A file of queries is damaged.
    """
    cost_N = np.ones(queries)
    for path in folder.child("queries").files(".parquet"):
        table = _read_parquet(folder, path, ["index", "cost"])
        if isinstance(table, Exception):
            raise _damaged(folder, path.removeprefix(f"{folder.path}/"), table) from table
        cost_N[table["index"].to_numpy()] = table["cost"].to_numpy()
    return cost_N


def round_folder(folder: Folder, number: int) -> Folder:
    """Return the folder of a round's attempts."""
    return folder.child("rounds").child(f"r{number:02d}")


def completion_rows(folder: Folder) -> Iterator[dict[str, Any]]:
    """Yield completions one by one in the order of the input, with one batch of them in memory."""
    firsts = {path: _first_index(folder, path) for path in folder.child("completions").files(".parquet")}
    for path in sorted(firsts, key=lambda path: firsts[path]):
        with folder.filesystem.open_input_file(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=1_024):
                yield from batch.to_pylist()


def _first_index(folder: Folder, path: str) -> int:
    with folder.filesystem.open_input_file(path) as source:
        for batch in pq.ParquetFile(source).iter_batches(batch_size=1, columns=["index"]):
            return int(batch["index"][0].as_py())
    return -1


def read_attempts(folder: Folder, number: int, queries: int, void: VoidAttempts) -> Iterator[Attempts]:
    """Yield a round's whole attempts, some files' at a time, each query once.

    Files torn or damaged are removed.

    Args:
        folder: The run folder.
        number: The round.
        queries: N.
        void: Attempts that do not count.
    """
    attempts, is_seen_N = round_folder(folder, number), np.zeros(queries, bool)
    for tables in read_many(partial(_read_attempt_file, attempts), attempts.files(".parquet")):
        found = void.dropped_from(pa.concat_tables(tables)).combine_chunks()
        index, first_of_index = np.unique(found["index"].to_numpy(), return_index=True)
        is_new = ~is_seen_N[index]
        is_seen_N[index] = True
        yield attempts_of(found.take(pa.array(first_of_index[is_new])))


def _read_attempt_file(attempts: Folder, path: str) -> pa.Table:
    table = _read_parquet(attempts, path, _READ_OF_ATTEMPT)
    if isinstance(table, Exception):  # the writer died, mostly; its tokens are marked as wasted by the caller
        attempts.filesystem.delete_file(path)
        return SLIM_ATTEMPT_SCHEMA.empty_table()
    return slim_attempts(table)


def _read_parquet(folder: Folder, path: str, columns: list[str]) -> pa.Table | Exception:
    """Return columns of a file, or what is wrong with its content; what is wrong with its disk or store is raised."""
    try:
        with folder.filesystem.open_input_file(path) as source:
            return pq.ParquetFile(source).read(columns=columns, use_threads=False)
    except pa.ArrowInvalid as error:
        return error
    except OSError:  # a broken page, or a store that did not answer, which must not look like one
        with folder.filesystem.open_input_stream(path) as stream:
            content = BytesIO(stream.read())
    try:
        return pq.ParquetFile(content).read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        return error


def slim_attempts(table: pa.Table) -> pa.Table:
    """Return attempts as the driver keeps them, from the columns of `ATTEMPT_SCHEMA`."""
    has_failed = pc.not_equal(table["error"], "").fill_null(False)
    is_cut = pc.equal(table["finish_reason"], "length").fill_null(False)
    is_short = pc.less(table["attempt_tokens"], table["granted_tokens"])
    columns = {
        "answer_tokens": table["token_ids"].combine_chunks().value_lengths(),
        "has_stopped": pc.and_not(pc.equal(table["finish_reason"], "stop").fill_null(False), has_failed),
        "has_failed": has_failed,
        "is_at_end": pc.and_(is_cut, is_short),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table.select(SLIM_ATTEMPT_SCHEMA.names).cast(SLIM_ATTEMPT_SCHEMA)


def attempts_of(table: pa.Table) -> Attempts:
    """Return a table of `SLIM_ATTEMPT_SCHEMA` as the law of a run takes it."""

    def column(name: str, kind: type[Any]) -> NDArray[Any]:
        return np.asarray(table[name].to_numpy(zero_copy_only=False), kind)

    return Attempts(
        index_M=column("index", np.int64),
        granted_tokens_M=column("granted_tokens", np.int64),
        attempt_tokens_M=column("attempt_tokens", np.int64),
        answer_tokens_M=column("answer_tokens", np.int64),
        has_stopped_M=column("has_stopped", np.bool_),
        has_failed_M=column("has_failed", np.bool_),
        is_at_end_M=column("is_at_end", np.bool_),
        correct_M=column("correct", np.float64),
    )


def _damaged(folder: Folder, name: str, error: Exception) -> ResumeError:
    return ResumeError(
        "the file is damaged",
        f"{folder.path}/{name}",
        " ".join(str(error).split()),
        "Restore it from a copy, or name a new run_dir.",
    )


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _flat(value: Any, key: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in _flat(part, f"{key}.{name}").items()}
    return {key: value}


def read_progress(folder: Folder) -> dict[str, Any]:
    """Return how far an unfinished run is, from its folder alone.

    Raises:
        ConfigError: There is no run in the folder.
        ResumeError: The manifest is damaged.
        StorageError: The folder cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ConfigError("there is no run in this folder", folder.path, remedy="Name the run_dir of a run.")
    with reading_errors(folder):
        return _progress(folder, manifest)


def _progress(folder: Folder, manifest: dict[str, Any]) -> dict[str, Any]:
    rows = manifest["input"]["rows"]
    digest = read_digest(folder.child("queries"))
    if digest is not None and digest.rows != rows:
        raise _damaged(folder, MANIFEST, ValueError(f"input.rows is {rows}, and queries/ holds {digest.rows}"))
    ledger = Ledger(manifest["budget_tokens"], rows, cost_N=read_costs(folder, rows))
    rounds = 0
    for record in read_journal(folder):
        if "op" in record:
            ledger.apply(Entry(record["op"], record["i"], record["a"], record["t"]))
        else:
            rounds = record.get("round", rounds)
    return {
        "state": "unfinished",
        "queries": rows,
        "estimated": folder.exists(ESTIMATES_WHOLE),
        "rounds": rounds,
        "budget_tokens": ledger.budget_tokens,
        "spent_tokens": ledger.spent_tokens,
        "reserved_tokens": ledger.reserved_tokens,
        "wasted_tokens": ledger.wasted_tokens,
    }
