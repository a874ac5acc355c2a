"""What becomes of each field of a request's body: one table an endpoint, and one rule for what stands in none.

A field is honoured, is harmless (no value of it changes an answer's text), is ignored and said, or is refused by name. One
that no table knows is refused, too: what is silently left out is silently different. Null asks for nothing anywhere, and
so do a field's neutral values. To honour a field of a row, give it the verdict `HONOURED` here and read it where
`requests.read_request` makes the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clear_ray.config.input import ColumnsConfig
from clear_ray.errors import SchemaError
from clear_ray.ingest.sampling_fields import NUMBERS
from clear_ray.ingest.values import shown

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
Verdict = Literal["honoured", "harmless", "ignored", "refused"]


@dataclass(frozen=True, slots=True)
class Field:
    """What becomes of one field.

    Attributes:
        verdict: See the module.
        neutral: Values that ask for nothing, and pass whatever the verdict.
        remedy: What the user can do about a refusal.
    """

    verdict: Verdict
    neutral: tuple[Any, ...] = ()
    remedy: str = "Leave the field out."


HONOURED, HARMLESS = Field("honoured"), Field("harmless")


def ignored(*neutral: Any) -> Field:
    """Return a field without effect, which is said unless its value is neutral."""
    return Field("ignored", neutral)


def refused(*neutral: Any, remedy: str = "Leave the field out.") -> Field:
    """Return a field that is refused unless its value is neutral."""
    return Field("refused", neutral, remedy)


_SAMPLING = dict.fromkeys((*NUMBERS, "seed"), HONOURED)
"""What decides which tokens are drawn; what a row leaves out is the run's setting."""

_ACCOUNTS = dict.fromkeys(
    (
        "model",
        "metadata",
        "user",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "cache_salt",
        "cache_prompt",
        "keep_alive",
        "stream_options",
        "parallel_tool_calls",
        "priority",
        "request_id",
        "provider",
        "usage",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "perf_metrics_in_response",
        "include_reasoning",
        "separate_reasoning",
        "stream_reasoning",
    ),
    HARMLESS,
)
"""Of the service's bookkeeping: which model answers is the run's setting, and no tool is ever called."""

LOGPROBS_OF_RESPONSES = "message.output_text.logprobs"
"""What a response's `include` asks for log-probabilities with."""

_THOUGHTS = "reasoning.encrypted_content"  # of thoughts that are no item of their own here

_ENGINES = {
    "best_of": refused(1),
    "use_beam_search": refused(False),
    "length_penalty": refused(1),
    "stop": HONOURED,
    "stop_token_ids": HONOURED,
    "min_tokens": HONOURED,
    "ignore_eos": refused(False),
    "skip_special_tokens": refused(True),
    "detokenize": refused(True),
    "spaces_between_special_tokens": refused(True),
    "include_stop_str_in_output": refused(False),
    "logit_bias": HONOURED,
    "truncate_prompt_tokens": refused(),
    "structured_outputs": HONOURED,
    "guided_json": HONOURED,
    "guided_regex": HONOURED,
    "guided_choice": HONOURED,
    "guided_grammar": HONOURED,
    "guided_decoding_backend": HARMLESS,
    "n": HONOURED,
    "stream": refused(False, remedy="Leave it out: a batch is not streamed."),
    "prompt_logprobs": refused(0, False),
    "random_seed": HONOURED,
    "safe_prompt": refused(False),
    "bad_words": refused([]),
    "allowed_token_ids": refused([]),
    "typical_p": refused(1),
    "top_a": refused(0),
    "mirostat": refused(0),
    "no_repeat_ngram_size": refused(0),
    "transforms": refused([]),
    "models": refused([]),
    "plugins": refused([]),
    "route": refused(),
    "context_length_exceeded_behavior": refused("error"),
    "extra_body": refused({}, remedy="Write its fields into the body itself: only a client unpacks it."),
    "extra_headers": refused({}),
    "extra_query": refused({}),
}
"""What engines and services of the field take beside the endpoint's own fields."""

_TOOLS = {"tools": refused([]), "tool_choice": refused("none", "auto")}
_THINKING = {
    "thinking": refused({"type": "disabled"}, remedy="Use chat_template_kwargs, as the model's template has it."),
    "enable_thinking": HONOURED,
}

TABLES: Mapping[Endpoint, Mapping[str, Field]] = {
    "/v1/chat/completions": {
        **_SAMPLING,
        **_ACCOUNTS,
        **_ENGINES,
        **_TOOLS,
        **_THINKING,
        "messages": HONOURED,
        "max_tokens": HONOURED,
        "max_completion_tokens": HONOURED,
        "functions": refused([]),
        "function_call": refused("none", "auto"),
        "response_format": HONOURED,
        "modalities": refused(["text"]),
        "audio": refused({}),
        "prediction": HARMLESS,
        "logprobs": HONOURED,
        "top_logprobs": HONOURED,
        "reasoning_effort": HONOURED,
        "verbosity": refused("medium"),
        "reasoning": HONOURED,
        "web_search_options": refused(),
        "citation_options": refused("enabled", "disabled"),
        "data_sources": refused([]),
        "prompt_mode": refused(),
        "chat_template": refused(remedy="Set the model's own template; its settings go into chat_template_kwargs."),
        "chat_template_kwargs": HONOURED,
        "add_generation_prompt": HONOURED,
        "continue_final_message": HONOURED,
        "add_special_tokens": refused(False),
        "echo": refused(False),
        "documents": refused([]),
    },
    "/v1/completions": {
        **_SAMPLING,
        **_ACCOUNTS,
        **_ENGINES,
        "prompt": HONOURED,
        "max_tokens": HONOURED,
        "logprobs": HONOURED,
        "echo": refused(False),
        "suffix": refused(""),
        "response_format": HONOURED,
        "add_special_tokens": refused(True),
    },
    "/v1/responses": {
        **_SAMPLING,
        **_ACCOUNTS,
        **_TOOLS,
        "input": HONOURED,
        "instructions": HONOURED,
        "max_output_tokens": HONOURED,
        "text": HONOURED,
        "reasoning": HONOURED,
        "truncation": refused("disabled"),
        "include": refused([], [LOGPROBS_OF_RESPONSES], [_THOUGHTS], [LOGPROBS_OF_RESPONSES, _THOUGHTS]),
        "background": refused(False),
        "stream": refused(False, remedy="Leave it out: a batch is not streamed."),
        "top_logprobs": HONOURED,
        "max_tool_calls": HARMLESS,
        "previous_response_id": refused(remedy="Write the earlier turns into input."),
        "conversation": refused(remedy="Write the earlier turns into input."),
        "prompt": refused(remedy="Write the text of the template into input."),
    },
    "/v1/messages": {
        **dict.fromkeys(("temperature", "top_p", "top_k"), HONOURED),
        **dict.fromkeys(("model", "metadata", "service_tier", "inference_geo"), HARMLESS),
        "messages": HONOURED,
        "system": HONOURED,
        "max_tokens": HONOURED,
        "stop_sequences": HONOURED,
        "stream": refused(False, remedy="Leave it out: a batch is not streamed."),
        "thinking": refused({"type": "disabled"}),
        "tools": refused([]),
        "tool_choice": refused({"type": "none"}, {"type": "auto"}),
    },
}
"""By endpoint, as `requests.endpoint_of` names it."""


def check_fields(body: Mapping[str, Any], endpoint: Endpoint, *, place: str = "body") -> list[str]:
    """Return the fields of a body that have no effect though they ask for something.

    Args:
        body: Body of the request.
        endpoint: Which table holds.
        place: What the body is called in errors.

    Raises:
        SchemaError: A field is refused, or is in no table; it is named in `where`.
    """
    table, said = TABLES[endpoint], []
    for name, value in body.items():
        if value is None:
            continue
        field = table.get(name)
        if field is None:
            what = "this field is neither honoured nor known to be harmless"
            raise SchemaError(what, f"{place}.{name}", shown(value), "Leave it out, if you can do without it.")
        if field.verdict in ("honoured", "harmless") or _is_neutral(value, field):
            continue
        if field.verdict == "refused":
            raise SchemaError("this is not supported", f"{place}.{name}", shown(value), field.remedy)
        said.append(name)
    return said


def _is_neutral(value: Any, field: Field) -> bool:
    # A truth value equals 0 or 1 in Python, but asks for something else.
    return any(isinstance(value, bool) == isinstance(known, bool) and value == known for known in field.neutral)


SETTINGS = frozenset((*TABLES["/v1/chat/completions"], *_ENGINES)) - {"messages", "model", "user", "metadata"}
"""Columns of a plain row that a request's body would have as settings."""


def settings_beside(row: Mapping[str, Any], columns: ColumnsConfig) -> list[str]:
    """Return the columns of a plain row that a request's body would have as settings, and that are not read.

    Args:
        row: The row.
        columns: Which columns are read.
    """
    if SETTINGS.isdisjoint(row):  # as of most rows; it looks at the row's few keys alone
        return []
    beside = row.keys() & SETTINGS
    beside -= {getattr(columns, setting) for setting in ColumnsConfig.model_fields}
    names = (name for name in row if name in beside)
    return [
        name for name in names if not (row[name] is None or (isinstance(row[name], float) and row[name] != row[name]))
    ]
