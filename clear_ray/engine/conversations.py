"""Whether a model's chat template takes the conversations of a batch: told from its tokenizer, before weights are loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pyarrow.parquet as pq

from clear_ray.config.engine import EngineConfig, OpenAIConfig, ReplayConfig
from clear_ray.engine.base import Prompt, read_prompt
from clear_ray.engine.rendering import Rendering, rendering_of
from clear_ray.errors import SchemaError
from clear_ray.storage import Folder

_MOST_RENDERED = 20_000
_MOST_REASONS = 3


def check_conversations(config: EngineConfig, queries: Folder) -> tuple[str, ...]:
    """Return a line for each reason for which the chat template refuses prompts; those rows will fail, the others run.

    Args:
        config: Configuration of the engine.
        queries: Folder of the queries that were taken in; of very many only the first ones are rendered.

    Raises:
        SchemaError: There are conversations and the model has no chat template, or it refuses every prompt.
    """
    if isinstance(config, ReplayConfig | OpenAIConfig):  # the endpoint's template is not here
        return ()
    conversations = _conversations(queries)
    first = next(conversations, None)
    if first is None:
        return ()
    rendering = rendering_of(config)
    if not rendering.has_template:
        raise SchemaError(
            "the model has no chat template, so it cannot read a conversation",
            f"query {first[0]}",
            remedy="Give the prompts as plain text, or use an instruction-tuned model.",
        )
    rendered, refused, first_of = 1, Counter[str](), dict[str, str]()
    while first is not None and rendered <= _MOST_RENDERED:
        if reason := _refusal(rendering, first[1]):
            refused[reason] += 1
            first_of.setdefault(reason, first[0])
        first, rendered = next(conversations, None), rendered + 1
    tried = rendered - 1
    if refused.total() == tried and tried == sum(1 for _ in _rows(queries)):
        reason, _ = refused.most_common(1)[0]
        raise SchemaError(f"every one of {tried} prompts: {reason}", "input", remedy="Give roles that the model knows.")
    return tuple(
        f"{count} of {tried} conversations will fail: {reason} (first: query {first_of[reason]})"
        for reason, count in refused.most_common(_MOST_REASONS)
    )


def _refusal(rendering: Rendering, prompt: Prompt) -> str:
    try:
        rendering.token_ids([prompt])
    except SchemaError as error:
        return error.what
    return ""


def _conversations(queries: Folder) -> Iterator[tuple[str, Prompt]]:
    for query_id, prompt, is_conversation in _rows(queries):
        if is_conversation:
            yield query_id, read_prompt(prompt, is_conversation=True)


def _rows(queries: Folder) -> Iterator[tuple[str, str, bool]]:
    columns = ["query_id", "prompt", "is_conversation"]
    for path in queries.files(".parquet"):
        with queries.filesystem.open_input_file(path) as source:
            for batch in pq.ParquetFile(source).iter_batches(batch_size=1_024, columns=columns):
                yield from zip(*(batch[name].to_pylist() for name in columns), strict=True)
