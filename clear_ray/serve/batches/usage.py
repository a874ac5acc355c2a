"""What the answers of a batch took, as OpenAI's clients read it.

Where an endpoint answered and said what it read and wrote, that is it: the prompt of each of its calls, cached and reasoning
tokens. A model of ours keeps no cache that outlives a query, and does not tell its thinking from its answer. There the
prompt of each line that was run counts once, as in the lines' own usage, and cached and reasoning tokens are none.
"""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from clear_ray.storage import Folder

_TOLD = ("usage_prompt_tokens", "usage_cached_tokens", "usage_output_tokens", "usage_reasoning_tokens")


def usage_of(folder: Folder) -> dict[str, Any]:
    """Return the usage of a batch.

    Args:
        folder: Its run folder.
    """
    prompts, generated = _of_completions(folder)
    told = _told(folder)
    cached = reasoning = 0
    if told["usage_prompt_tokens"]:
        prompts, cached, reasoning = (told[f"usage_{name}_tokens"] for name in ("prompt", "cached", "reasoning"))
    return {
        "input_tokens": prompts,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompts + generated,
    }


def _of_completions(folder: Folder) -> tuple[int, int]:
    """Return prompt tokens, once for each prompt of a line, and all tokens that were charged."""
    prompts, generated, before = 0, 0, ("", 0)
    for path in folder.child("completions").files(".parquet"):
        names = ["query_id", "prompt_tokens", "spent_tokens", "rounds", "n", "choice"]
        table = pq.read_table(path, filesystem=folder.filesystem, columns=names)
        columns = (table[name].to_pylist() for name in ("query_id", "prompt_tokens", "rounds", "n", "choice"))
        for query_id, tokens, rounds, n, choice in zip(*columns, strict=True):
            one = query_id, (choice or 0) // (n or 1)  # the answers that a prompt asks for follow each other
            if rounds and one != before:
                prompts, before = prompts + tokens, one
        generated += int(table["spent_tokens"].to_numpy().sum())
    return prompts, generated


def _told(folder: Folder) -> dict[str, int]:
    """Return what an endpoint said of all its calls together."""
    sums, filesystem = dict.fromkeys(_TOLD, 0), folder.filesystem
    rounds = pafs.FileSelector(folder.child("rounds").path, allow_not_found=True, recursive=True)
    for info in filesystem.get_file_info(rounds):
        if not info.path.endswith(".parquet"):
            continue
        file = pq.ParquetFile(info.path, filesystem=filesystem)
        names = [name for name in _TOLD if name in file.schema_arrow.names]
        table = file.read(columns=names)
        for name in names:
            sums[name] += pc.sum(table[name]).as_py() or 0
    return sums
