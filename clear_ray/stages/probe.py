"""Stage 1: a thin caller that has prompts read by the engine workers and hands on curve parameters.

Reads the columns of `records.QUERY_SCHEMA`; writes those of `records.estimate_schema`. Every row comes out exactly once. When
an engine dies, or cannot read one of the prompts, the prompts of that call are read one by one, and one that an engine
dies of again with no other query on it. A prompt that fails even so is a row with its error; the rest goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clear_ray.config.run import RunConfig
from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Prompt, read_prompt
from clear_ray.errors import EngineError, SchemaError
from clear_ray.records import QUERY_COLUMNS_ADDED, QUERY_SCHEMA, STATES, estimate_schema
from clear_ray.stages.causes import ENGINE_DIED, ENGINE_FAILED, UNREADABLE
from clear_ray.stages.failures import LoneFailures, engine_failure
from clear_ray.stages.first_tokens import FirstTokenFee
from clear_ray.stages.gate import Gate
from clear_ray.stages.homes import Homes
from clear_ray.stages.roster import Roster, Workers

_MOST_QUARANTINED = 8
_MOST_ROWS = 128
CARRIED = ("index", "query_id", "task", "weight", "cost")


class Probe:
    """A call of some prompts is one prefill on the least busy worker.

    Args:
        workers: The engine workers.
        tokens_K: Token grid of their head.
        direct_text: What a minimum service would put after every prompt; nothing if empty.
        gate: Holds the first calls back; None if the workers may be called at once.
        homes: Where queries are at home, if there are several workers.
        has_states: Whether what is kept of hidden states is written too.
        fee: What each call is charged before it is made, where it asks for first tokens; nothing if not given.
    """

    def __init__(
        self,
        workers: Workers,
        tokens_K: tuple[int, ...],
        direct_text: str = "",
        gate: Gate | None = None,
        homes: Homes | None = None,
        has_states: bool = False,
        fee: FirstTokenFee | None = None,
    ) -> None:
        self._homes, self._has_states, self._fee = homes, has_states, fee
        self._roster, self._is_death, self._gate = Roster(workers), workers.is_death, gate
        self._tokens_K, self._direct_text = tokens_K, direct_text
        self._quarantined = 0
        self._lone_failures = LoneFailures()

    async def __call__(self, batch: pa.Table) -> AsyncIterator[pa.Table]:
        """Yield the estimates of one batch of queries.

        Raises:
            EngineError: Engines die of whatever they read.
        """
        is_query = pc.is_null(with_added_columns(batch)["input_error"])
        for query in _one_by_one(batch.filter(pc.invert(is_query))):
            yield estimate_table(query, self._worthless(query, query["input_error"][0].as_py()))
        batch = batch.filter(is_query)
        if not len(batch):
            return
        if self._gate is not None:
            await self._gate.passed()
            self._gate = None
        columns = await self._read(batch, is_alone=False)
        if not isinstance(columns, Exception):
            self._note_answer()
            yield estimate_table(batch, columns)
            return
        has_said = engine_failure(columns) is not None
        for query in _one_by_one(batch):
            # An engine that said what it failed of does so again: alone, this query shows whether it is the cause.
            columns = await self._read(query, is_alone=has_said)
            if isinstance(columns, Exception) and self._is_death(columns) and not has_said:
                columns = await self._read(query, is_alone=True)
            if isinstance(columns, Exception):
                columns = self._unread(query, columns)
            else:
                self._note_answer()
            yield estimate_table(query, columns)

    async def _read(self, batch: pa.Table, *, is_alone: bool) -> dict[str, Any] | Exception:
        """Return the estimates, or what one of these prompts may have been the cause of."""
        try:
            home = None if self._homes is None else int(self._homes.of(batch["index"][:1].to_numpy())[0])
            async with self._roster.worker(home) as worker:
                if self._fee is not None:
                    await self._fee.charge(prompts_of(batch), batch["cost"].to_numpy())
                asked = batch["query_id"].to_pylist(), prompts_of(batch), is_alone, self._direct_text
                states = (True,) if self._has_states else ()
                columns: dict[str, Any] = await worker.probe.remote(*asked, *states)
                return columns
        except Exception as error:
            if self._is_death(error) or isinstance(error, SchemaError):
                return error
            raise

    def _note_answer(self) -> None:
        self._quarantined = 0
        self._lone_failures.forget()

    def _unread(self, query: pa.Table, error: Exception) -> dict[str, Any]:
        """Return an estimate that is worth nothing, with the reason."""
        query_id = query["query_id"][0].as_py()
        reason = f"{UNREADABLE}{error.what}" if isinstance(error, SchemaError) else ""
        if self._is_death(error):  # a refusal says nothing about whether engines live on
            self._quarantined += 1
            reason = f"{ENGINE_DIED} three times while it read the prompt, the last time with no other query on it"
            if (failure := engine_failure(error)) is not None:
                self._lone_failures.note(failure, query_id)
                reason = f"{ENGINE_FAILED}{failure.value}"
            if self._quarantined > _MOST_QUARANTINED:
                raise EngineError(
                    f"engines died of each of {self._quarantined} prompts in a row, though each had one to itself",
                    f"query {query_id}",
                    repr(error),
                    "Look for the cause in the logs of the workers; then run the same command again.",
                ) from error
        return self._worthless(query, reason)

    def _worthless(self, query: pa.Table, reason: str) -> dict[str, Any]:
        """Return an estimate of a query that fails."""
        points = len(self._tokens_K)
        return {
            **{name: np.zeros(1) for name in ("prompt_tokens", "entropy", "threshold_tokens", "solvability")},
            "room_tokens": query["max_tokens"].to_numpy(),
            "beta": np.ones(1),
            "success_K": np.zeros((1, points)),
            "spend_K": np.asarray([self._tokens_K], float),
            "survival_K": np.ones((1, points)),
            "error": np.asarray([reason]),
            **({"states": None} if self._has_states else {}),
        }


def _one_by_one(batch: pa.Table) -> Iterator[pa.Table]:
    return (batch.slice(row, 1) for row in range(len(batch)))


def call_rows(config: RunConfig, queries: int, *, workers: int) -> int:
    """Return how many queries one call reads.

    What prompts begin with alike is read once a call, so many together cost less; with four calls an engine all are busy to
    the end, and the display moves.
    """
    share = -(-queries // (4 * workers))
    return config.estimate.batch_rows or max(1, min(_MOST_ROWS, share))


def homes_of(config: RunConfig, queries: int, *, workers: int) -> Homes:
    """Return which of an engine's workers the queries of a batch are at home with."""
    return Homes(call_rows(config, queries, workers=workers), workers)


def prompts_of(batch: pa.Table) -> list[Prompt]:
    """Return each row's prompt as text or as a conversation."""
    names = ("prompt", "is_conversation", "prompt_form", "sampling")
    columns = (with_added_columns(batch)[name].to_pylist() for name in names)
    return [
        read_prompt(prompt, is_conversation=is_conversation, form=form, sampling=Sampling.load(sampling))
        for prompt, is_conversation, form, sampling in zip(*columns, strict=True)
    ]


def with_added_columns(batch: pa.Table) -> pa.Table:
    """Return queries or attempts with the columns that those of older runs lack."""
    known = set(batch.column_names)
    for name in QUERY_COLUMNS_ADDED:
        if name not in known:
            batch = batch.append_column(name, pa.nulls(len(batch), QUERY_SCHEMA.field(name).type))
    return batch


def estimate_table(batch: pa.Table, columns: dict[str, Any]) -> pa.Table:
    """Join what the probe found to the columns that are carried along; no ceiling is above what the context leaves."""
    grid_points = columns["success_K"].shape[1]
    schema = estimate_schema(grid_points)
    arrays = []
    for field in schema:
        if field.name in CARRIED:
            arrays.append(batch[field.name].combine_chunks())
        elif field.name == "max_tokens":
            ceiling = np.minimum(batch["max_tokens"].to_numpy(), columns["room_tokens"])
            arrays.append(pa.array(ceiling, pa.int64()))
        elif pa.types.is_fixed_size_list(field.type):
            flat = np.ascontiguousarray(columns[field.name], np.float32).ravel()
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), grid_points))
        elif field.name == "error" and "error" not in columns:
            arrays.append(pa.array([""] * len(batch)))
        else:
            arrays.append(pa.array(columns[field.name]).cast(field.type))
    table = pa.table(arrays, schema=schema)
    return table.append_column(STATES, _lists(columns["states"], len(batch))) if "states" in columns else table


def _lists(states_NS: NDArray[np.float32] | None, rows: int) -> pa.Array:
    """Return rows of numbers as a column; nulls where there are none."""
    if states_NS is None:
        return pa.nulls(rows, STATES.type)
    ends = np.arange(rows + 1, dtype=np.int32) * states_NS.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.ascontiguousarray(states_NS, np.float32).ravel()))
