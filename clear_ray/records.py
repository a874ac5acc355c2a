"""Row types and Arrow schemas of what a run reads and writes.

A run folder holds, in the order they come to be:

    queries/      the validated input, normalised: `QUERY_SCHEMA`, one row a query, `index` counting from 0
    estimates/    one row a query: `estimate_schema`, what the probe believes
    rounds/rNN/   one row a grant that was run: `ATTEMPT_SCHEMA`
    completions/  one row a query: `COMPLETION_SCHEMA`, the answer and its account
    attempts/     one row an answer, where queries were asked for several: `ANSWER_SCHEMA`

Every row carries `index`, the query's dense number. Grants, balances and verdicts are arrays over it, so the driver
holds a few numbers for each query and never a prompt.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

from clear_ray.config.money import COST_PARTS as COST_PARTS

Status = Literal["completed", "abandoned", "failed"]
"""How a query ended: exactly one of these."""

QUERY_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("is_conversation", pa.bool_(), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("cost", pa.float64(), nullable=False),
        pa.field("max_tokens", pa.int64(), nullable=False),
        pa.field("gold", pa.string()),
        pa.field("task", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("prompt_form", pa.string()),
        pa.field("input_error", pa.string()),
        pa.field("sampling", pa.string()),
        pa.field("n", pa.int32()),
        pa.field("choice", pa.int32()),
    ]
)
"""A validated query. `prompt` is text, or a JSON list of {role, content} where `is_conversation`; `weight` is the value
of a correct answer; `cost` is what one of its tokens takes from the budget, 1 unless the input says otherwise; `max_tokens`
is this query's ceiling, at most the run's. `prompt_form` is null, `raw` for a text that no chat template is put around, or
`tokens` for a JSON list of token ids. `input_error` says why the row of the input is no query, where such rows fail.
`sampling` is null, or what the row asks of its answer in place of the run's settings: JSON, as `sampling.Sampling` has it.
`n` is how many answers a row asks for, to each of its prompts, if it says so; where each of them is a query of its own,
`choice` is which one this is, from 0, those to the first prompt first, and all of them carry the row's id."""

QUERY_COLUMNS_ADDED = ("prompt_form", "input_error", "sampling", "n", "choice")
"""Columns that queries and attempts of older runs lack; all of them null there."""

OF_QUERY = ("index", "query_id", "weight", "cost", "task", "gold", "n", "choice")
"""What a completion has of its query."""

ATTEMPT_SCHEMA = pa.schema(
    [
        *(QUERY_SCHEMA.field(name) for name in OF_QUERY),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("sample", pa.int32()),
        pa.field("granted_tokens", pa.int64(), nullable=False),
        pa.field("attempt_tokens", pa.int64(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("answer_tokens", pa.int64(), nullable=False),
        pa.field("before", pa.string()),
        pa.field("before_attempt", pa.int32()),
        pa.field("kept_characters", pa.int64()),
        pa.field("kept_logprobs", pa.int64()),
        pa.field("correct", pa.float64()),
        pa.field("answer", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("error", pa.string(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("ended_at", pa.float64()),
        pa.field("is_at_end", pa.bool_()),
        pa.field("vote", pa.int64()),
        pa.field("usage_prompt_tokens", pa.int64()),
        pa.field("usage_cached_tokens", pa.int64()),
        pa.field("usage_output_tokens", pa.int64()),
        pa.field("usage_reasoning_tokens", pa.int64()),
        pa.field("logprobs", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("taken_parts", pa.int64()),
        pa.field("cached_tokens", pa.int64()),
    ]
)
"""What came of one grant: `attempt_tokens` were generated under it, its reservation was `attempt`, and `sample` is which of
the query's independent answers it belongs to; `token_ids` and `text` hold what this grant added to an answer of
`answer_tokens`. Of one that goes on, `before` is the file of `rounds/` with the part before it, the row of `before_attempt`;
of that text `kept_characters` stay, and `kept_logprobs` characters of its `logprobs` (`stages.answer_parts`). `answer`
is what the scorer read as the final answer in it, `correct` its score and `verdict` the reason; `ended_at` is when it ended,
Unix seconds. Where votes are counted, `vote` is the final answer as a number. `is_at_end` says that a cut answer cannot be
gone on with; the `usage_` columns are what an endpoint says that this grant took (`engine.base.Usage`), null of other engines
and where it did not say. `logprobs` are as `ingest.logprobs` writes them, in parts as the text is, null where none are
asked for. `engine` names one of several, and `taken_parts` is what the call took from the budget, thousandths of its unit;
null where tokens alone say so. `cached_tokens` is what of prompt and answer so far was not read for this grant, since a model
of ours had read it before."""

COMPLETION_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("text", pa.string()),
        pa.field("max_tokens", pa.int64(), nullable=False),
        pa.field("spent_tokens", pa.int64(), nullable=False),
        pa.field("rounds", pa.int32(), nullable=False),
        pa.field("prompt_tokens", pa.int64(), nullable=False),
        pa.field("price", pa.float64()),
        pa.field("reservation_price", pa.float64(), nullable=False),
        pa.field("expected_utility", pa.float64(), nullable=False),
        pa.field("surplus", pa.float64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("weight", pa.float64(), nullable=False),
        pa.field("cost", pa.float64(), nullable=False),
        pa.field("task", pa.string()),
        pa.field("gold", pa.string()),
        pa.field("correct", pa.float64()),
        pa.field("answer", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("error_code", pa.string()),
        pa.field("ended_at", pa.float64()),
        pa.field("attempts", pa.int32()),
        pa.field("sample", pa.int32()),
        pa.field("logprobs", pa.string()),
        pa.field("engine", pa.string()),
        pa.field("n", pa.int32()),
        pa.field("choice", pa.int32()),
    ]
)
"""A query's answer and account, in the order of the input. `answer` is what the scorer read as the final answer, `verdict`
why it got its score. `max_tokens` is the sum of its grants, `spent_tokens` what was generated for it (at `cost` each),
`reservation_price` the price above which nothing would have been bought for it (0, and no `price`, of a query that was not
read before the run was ordered to end), `error_code` one of `stages.causes`, and `ended_at` when its answer ended, Unix
seconds. `attempts` is how many answers it was asked for, and `sample` which of them this is; `logprobs` is as in
`ATTEMPT_SCHEMA`, and `engine` is the one of several that gave it. `n` and `choice` are those of `QUERY_SCHEMA`."""

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("is_chosen", pa.bool_(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("price", pa.float64(), nullable=False),
        pa.field("correct", pa.float64()),
        pa.field("answer", pa.string()),
        pa.field("verdict", pa.string()),
        pa.field("error", pa.string()),
        pa.field("ended_at", pa.float64()),
        pa.field("logprobs", pa.string()),
        pa.field("engine", pa.string()),
    ]
)
"""One answer of a query that was asked for several, in `attempts/`: what it says, its `tokens`, the `price` when it was last
granted some, its score, and the `engine`, if there are several. `is_chosen` marks the one that its completion holds."""


STATES = pa.field("states", pa.list_(pa.float32()))
"""What is kept of a query's hidden states, beside `estimate_schema` in a run that learns on them; null if it was not read."""


def estimate_schema(grid_points: int) -> pa.Schema:
    """Return the schema of `estimates/` for curves on a grid of `grid_points` token counts (docs/method.md, section 2).

    `max_tokens` is the query's ceiling, or what the model's context leaves beside its prompt where that is less. `error` is
    empty, or says why the prompt could not be read; such a query is worth nothing and fails.
    """
    curve = pa.list_(pa.float32(), grid_points)
    return pa.schema(
        [
            pa.field("index", pa.int64(), nullable=False),
            pa.field("query_id", pa.string(), nullable=False),
            pa.field("task", pa.string()),
            pa.field("weight", pa.float64(), nullable=False),
            pa.field("cost", pa.float64(), nullable=False),
            pa.field("max_tokens", pa.int64(), nullable=False),
            pa.field("prompt_tokens", pa.int64(), nullable=False),
            pa.field("entropy", pa.float32(), nullable=False),
            pa.field("threshold_tokens", pa.float32(), nullable=False),
            pa.field("solvability", pa.float32(), nullable=False),
            pa.field("beta", pa.float32(), nullable=False),
            pa.field("success_K", curve, nullable=False),
            pa.field("spend_K", curve, nullable=False),
            pa.field("survival_K", curve, nullable=False),
            pa.field("error", pa.string(), nullable=False),
        ]
    )
