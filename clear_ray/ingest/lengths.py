"""How long prompts are beside the model's context: those that are too long are refused, those with little room counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.normalise import NormalRow
from clear_ray.ingest.notices import Notices
from clear_ray.ingest.source import SourceBatch


@dataclass(frozen=True)
class PromptLimit:
    """How long a prompt may be.

    A prompt has at most as many tokens as UTF-8 bytes, so only those that could be too long are counted.

    Attributes:
        context_tokens: What the model holds, prompt and answer together; a prompt must leave room for one token.
        count_tokens: Function from prompts, and what each is (`text`, `conversation`, `raw` or `tokens`), to token counts,
            template included.
        template_tokens: The most that the chat template and special tokens add to a prompt.
        vocabulary_tokens: Function to the number of token ids that the model knows.
    """

    context_tokens: int
    count_tokens: Callable[[list[str], list[str]], Sequence[int]]
    template_tokens: int = 0
    vocabulary_tokens: Callable[[], int] | None = None


def check_lengths(
    batch: SourceBatch,
    reads: list[NormalRow | SchemaError],
    row_of: Sequence[int],
    columns: ColumnsConfig,
    limit: PromptLimit,
    notices: Notices,
) -> None:
    """Put what is wrong in the place of queries whose prompts do not fit the model, and count those with little room.

    Args:
        batch: The rows.
        reads: What they were read as, some of them as a query for each of several prompts; changes.
        row_of: For each of `reads` the place of its row in the batch.
        columns: Which column holds what.
        limit: How long a prompt may be.
        notices: What is said about the input.
    """
    long_rows = [k for k, read in enumerate(reads) if isinstance(read, NormalRow) and _may_be_short(read, limit)]
    asked = [query for k in long_rows if isinstance(query := reads[k], NormalRow)]
    crowded: set[int] = set()
    for k, query, count in zip(long_rows, asked, _counts(asked, limit), strict=True):
        where = f"{batch.place(row_of[k])}, column {columns.messages if query.is_conversation else columns.prompt}"
        if isinstance(count, SchemaError):
            reads[k] = SchemaError(count.what, where, count.value, count.remedy)
        elif count >= limit.context_tokens:
            what = f"the prompt does not fit the model's context of {limit.context_tokens} tokens"
            remedy = "Shorten it or use a model with a longer context."
            reads[k] = SchemaError(what, where, f"{count} tokens", remedy)
        elif query.max_tokens < limit.context_tokens < count + query.max_tokens:
            crowded.add(row_of[k])
    for k, read in enumerate(reads):
        if isinstance(read, NormalRow) and read.max_tokens >= limit.context_tokens:
            crowded.add(row_of[k])
        if isinstance(read, NormalRow) and read.prompt_form == "tokens" and limit.vocabulary_tokens is not None:
            most, known = max(json.loads(read.prompt)), limit.vocabulary_tokens()
            if most >= known:
                what, remedy = "a token id is none of this model's", "Give the text, or this model's ids."
                where = f"{batch.place(row_of[k])}, column {columns.prompt}"
                reads[k] = SchemaError(what, where, f"{most} of a vocabulary of {known}", remedy)
    for _ in crowded:
        notices.crowd()


def _form(query: NormalRow) -> str:
    return query.prompt_form or ("conversation" if query.is_conversation else "text")


def _counts(queries: list[NormalRow], limit: PromptLimit) -> Sequence[int | SchemaError]:
    """Return the tokens of each prompt, or why it cannot be rendered."""
    if not queries:
        return []
    try:
        return limit.count_tokens([query.prompt for query in queries], [_form(query) for query in queries])
    except SchemaError as error:
        if len(queries) == 1:
            return [error]
        return [_counts([query], limit)[0] for query in queries]


def _may_be_short(query: NormalRow, limit: PromptLimit) -> bool:
    """Whether only a count tells if prompt and answer fit the context: a prompt has no more tokens than bytes."""
    room = limit.context_tokens - limit.template_tokens
    room -= query.max_tokens if query.max_tokens < limit.context_tokens else 0
    return len(query.prompt) * 4 >= room and len(query.prompt.encode()) >= room
