"""Generated queries: reasoning-gym tasks with fixed seeds, worked examples and what their scorer needs.

reasoning-gym gives item k of a dataset the seed `seed + k`. Two sources of one task are therefore disjoint only if their
seeds lie further apart than their counts; worked examples are drawn from a seed far away and never asked as queries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from clear_ray.config.input import EXAMPLE_SEEDS_AWAY, ReasoningGymSource
from clear_ray.errors import ConfigError
from clear_ray.tasks.referee import shared_referee
from clear_ray.tasks.scorers import require

_WHERE = "input.tasks"


def generate_queries(sources: Sequence[ReasoningGymSource]) -> Iterator[dict[str, Any]]:
    """Yield the queries of all sources, source by source.

    Args:
        sources: What to generate; names must differ.

    Yields:
        Rows with `query_id` (`chain_sum-easy-0003`), `prompt` (text) or `messages` (JSON text of a list of {role, content}),
        `gold` (None for tasks with many right answers), `task` (the display name) and `metadata` (JSON text from which
        the `reasoning_gym` scorer restores reasoning-gym's own check in any process). The same settings give the same
        rows in every process and on every machine with the same version of reasoning-gym.

    Raises:
        ConfigError: Two sources have one name, reasoning-gym is missing, or it refuses a task or its params.
    """
    names = [source.display_name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("two sources have the same name", _WHERE, name, "Give each a name of its own.")
    if sources:
        require("reasoning_gym", where=_WHERE)
    for source in sources:
        yield from _rows(source)


def _rows(source: ReasoningGymSource) -> Iterator[dict[str, Any]]:
    taken = [shown.question for shown in source.demonstrations]
    drawn = _entries(source, seed=source.seed + EXAMPLE_SEEDS_AWAY, count=source.examples, skip=taken)
    shots = [(shown.question, shown.answer) for shown in source.demonstrations]
    shots += [(str(entry["question"]).strip(), f"Answer: {entry['answer']}") for entry in drawn]
    taken += [str(entry["question"]) for entry in drawn]
    entries = _entries(source, seed=source.seed, count=source.count, skip=taken)
    for k, entry in enumerate(entries):
        metadata = {"task": source.task, "params": source.params, "entry": entry}
        yield {
            "query_id": f"{source.display_name}-{k:04d}",
            **_prompt(str(entry["question"]).strip(), shots, source.style),
            "gold": None if entry["answer"] is None else str(entry["answer"]),
            "task": source.display_name,
            "metadata": json.dumps(metadata, sort_keys=True),
        }


def _prompt(question: str, shots: Sequence[tuple[str, str]], style: str) -> dict[str, str | None]:
    if not shots:
        return {"prompt": question, "messages": None}
    if style == "text":
        blocks = [f"Question: {asked}\n{answer}" for asked, answer in shots]
        return {"prompt": "\n\n".join([*blocks, f"Question: {question}"]), "messages": None}
    turns = [(("user", asked), ("assistant", answer)) for asked, answer in shots]
    messages = [{"role": role, "content": content} for turn in turns for role, content in turn]
    return {"prompt": None, "messages": json.dumps([*messages, {"role": "user", "content": question}])}


def _entries(source: ReasoningGymSource, *, seed: int, count: int, skip: Sequence[str]) -> list[dict[str, Any]]:
    if count == 0:
        return []
    request = {"do": "generate", "task": source.task, "params": source.params, "seed": seed, "count": count}
    reply = shared_referee().ask({**request, "skip": list(skip)})
    if reply is None or "error" in reply:
        reason = "its process ended" if reply is None else str(reply["error"])
        raise ConfigError(
            f"reasoning-gym cannot generate {source.task}: {reason}",
            f"{_WHERE}: {source.display_name}",
            json.dumps(source.params),
            "See the task's configuration in reasoning-gym.",
        )
    entries: list[dict[str, Any]] = reply["value"]
    return entries
