"""Schemas of what clients send. Which fields there are is read from the table that refuses the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, get_args

from clear_ray.config.allocation import Objective
from clear_ray.config.sampling import MOST_LOGPROBS
from clear_ray.config.units import MOST_BUDGET_TOKENS
from clear_ray.ingest.fields import LOGPROBS_OF_RESPONSES, TABLES, Endpoint
from clear_ray.ingest.requests import MOST_PROMPTS
from clear_ray.serve.batches.bodies import MOST_KEY, MOST_PAIRS, MOST_VALUE
from clear_ray.serve.batches.runs import asked_settings
from clear_ray.serve.batches.service import PURPOSES
from clear_ray.serve.batches.settings import a_budget
from clear_ray.serve.batches.validation import ENDPOINTS
from clear_ray.serve.errors import ApiError
from clear_ray.serve.settings import ServeConfig

Schema = dict[str, Any]

NULL: Schema = {"type": "null"}
_TEXT: Schema = {"type": "string", "pattern": "^[^\\u0000]*$"}
_SAID: Schema = {"type": "string", "pattern": "^[^\\u0000]*[^\\s\\u0000][^\\u0000]*$"}
_STRUCTURES = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
_BUDGET = r"^[1-9][0-9]{0,8}( ?[kM])?( tokens)?$"
_MONEY = r"^\$ ?[1-9][0-9]{0,5}(\.[0-9]{2})?$"
_ATTEMPTS = "^[1-9][0-9]?$"
_CHANGE = r"^[+-]?[1-9][0-9]{0,8}( ?[kM])?( tokens)?$"
_AMOUNT: Schema = {"minimum": 1, "maximum": MOST_BUDGET_TOKENS}
_OUT_OF_NOTHING = {"type": "object", "additionalProperties": {"enum": [None, False]}}


def record(properties: Schema, *, required: tuple[str, ...] = (), others: Any = None) -> Schema:
    """Return the schema of an object.

    Args:
        properties: What it may hold.
        required: What it holds.
        others: Schema of what else it may hold; anything if not given.
    """
    schema: Schema = {"type": "object", "properties": properties}
    schema |= {"required": list(required)} if required else {}
    return schema | ({} if others is None else {"additionalProperties": others})


def or_null(schema: Schema) -> Schema:
    """Return a schema that takes null besides, which asks for nothing."""
    return {"anyOf": [schema, NULL]}


def whole(least: int | None = None, most: int | None = None) -> Schema:
    """Return the schema of a whole number."""
    return _bounded("integer", minimum=least, maximum=most)


def message() -> Schema:
    """Return the schema of one message of a conversation."""
    part = record({"type": {"const": "text"}, "text": _TEXT}, required=("type", "text"))
    properties: Schema = {
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": {"anyOf": [_TEXT, {"type": "array", "items": part}]},
        "name": NULL,
        "weight": {},
    }
    nothing: Schema = {"enum": [None, "", [], {}, False, 0]}
    described = record(properties, required=("role", "content"), others=nothing)
    return {"description": "Text alone. The last message of a conversation is not blank.", **described}


def query(settings: ServeConfig, endpoint: Endpoint) -> Schema:
    """Return the schema of a request for an answer.

    Args:
        settings: The server's.
        endpoint: Which of the endpoints.
    """
    properties: Schema = {}
    for name, field in TABLES[endpoint].items():
        if field.verdict == "harmless":
            properties[name] = {"description": "Without effect."}
        elif field.verdict == "refused" and field.neutral:
            properties[name] = {"enum": [None, *field.neutral]}
    properties |= _sampling(settings)
    properties |= {
        "model": {"enum": list(settings.each)},
        "max_tokens": or_null(whole(1)),
        "n": or_null(whole(1, settings.limits.choices)),
        "stream": {"type": ["boolean", "null"]},
        "stream_options": or_null(record({"include_usage": {"type": "boolean"}})),
        "stop": _stop(settings),
        "metadata": _metadata_of_query(settings),
    }
    if endpoint == "/v1/chat/completions":
        prompt = "messages"
        messages = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}}
        properties |= {"messages": messages, "max_completion_tokens": or_null(whole(1))} | _template(settings)
        if settings.engine.kind == "replay":
            properties |= {"logprobs": {"enum": [None, False]}, "top_logprobs": {"enum": [None, 0]}}
        else:
            top = {**whole(0, MOST_LOGPROBS), "description": "Beside `logprobs` alone."}
            properties |= {"logprobs": {"type": ["boolean", "null"]}, "top_logprobs": or_null(top)}
    else:
        prompt = "prompt"
        ids = {"type": "array", "minItems": 1, "items": whole(0, 2**31 - 1)}
        is_replay = settings.engine.kind == "replay"
        properties["logprobs"] = {"enum": [None, False]} if is_replay else or_null(whole(0, MOST_LOGPROBS))
        kinds: list[Schema] = [{"type": "string", "minLength": 1}, ids]
        lists: Schema = {"type": "array", "minItems": 1, "maxItems": MOST_PROMPTS, "items": {"anyOf": kinds}}
        properties["prompt"] = {"anyOf": [*kinds, lists], "description": "A prompt or several; of several no stream."}
    needed = ("model", prompt, *(("metadata",) if settings.engine.kind == "replay" else ()))
    return record(properties, required=needed, others=NULL)


def response(settings: ServeConfig) -> Schema:
    """Return the schema of a request for a response."""
    chat, table = query(settings, "/v1/chat/completions")["properties"], TABLES["/v1/responses"]
    part = record({"type": {"const": "input_text"}, "text": _TEXT}, required=("type", "text"))
    turn = message() | {"description": "Text alone. The last message is not blank."}
    turn["properties"] = turn["properties"] | {
        "content": {"anyOf": [_TEXT, {"type": "array", "items": part}]},
        **{"type": {"const": "message"}, "id": {}, "status": {}},
    }
    is_replay = settings.engine.kind == "replay"
    form = or_null(record({"type": {"const": "text"}}, required=("type",), others=NULL)) if is_replay else {}
    properties: Schema = {name: {"enum": [None, *field.neutral]} for name, field in table.items() if field.neutral}
    properties |= {name: chat[name] for name in table if name in chat}
    properties |= {
        "input": {"anyOf": [_SAID, {"type": "array", "minItems": 1, "items": turn}]},
        "instructions": or_null(_TEXT),
        "max_output_tokens": or_null(whole(1)),
        "max_tool_calls": {"description": "Without effect."},
        "stream_options": {"description": "Without effect."},
        "text": or_null(record({"format": form}, others=NULL)),
    }
    told = record(
        {"summary": {}, "generate_summary": {}, "effort": NULL if is_replay else {"type": "string"}}, others=NULL
    )
    properties["reasoning"] = or_null(told)
    if is_replay:
        parts = [part for part in properties["include"]["enum"] if LOGPROBS_OF_RESPONSES not in (part or ())]
        properties["include"] = {"enum": parts}
    else:
        properties["top_logprobs"] = or_null(whole(0, MOST_LOGPROBS))
    return record(properties, required=("model", "input", *(("metadata",) if is_replay else ())), others=NULL)


def batch(settings: ServeConfig) -> Schema:
    """Return the schema of a request to make a batch."""
    expiry = record(
        {"anchor": {"const": "created_at"}, "seconds": whole(3_600, 2_592_000)}, required=("anchor", "seconds")
    )
    properties: Schema = {
        "input_file_id": {"type": "string", "minLength": 1, "description": "A file of the purpose `batch`."},
        "endpoint": {"enum": list(ENDPOINTS)},
        "completion_window": {"const": "24h"},
        "metadata": or_null(_metadata_of_batch(settings)),
        "output_expires_after": or_null(expiry),
        "idempotency_key": {"type": ["string", "null"], "minLength": 1, "maxLength": 255},
    }
    return record(properties, required=("input_file_id", "endpoint", "completion_window"), others=False)


def upload() -> Schema:
    """Return the schema of the form that a file comes in."""
    properties: Schema = {
        # A form has no null: one that is sent is a text.
        "file": {"type": ["string", "null"], "contentMediaType": "application/octet-stream"},
        "purpose": {"enum": list(PURPOSES)},
        "expires_after[anchor]": {"const": "created_at"},
        "expires_after[seconds]": whole(3_600, 2_592_000),
    }
    two = ("expires_after[anchor]", "expires_after[seconds]")
    return record(properties, required=("file", "purpose")) | {
        "dependentRequired": {two[0]: [two[1]], two[1]: [two[0]]}
    }


def budget() -> Schema:
    """Return the schema of a change of a budget."""
    text = _AMOUNT | {"type": ["string", "integer"], "pattern": _CHANGE, "examples": ["+200k", "-50k", "2M tokens"]}
    return record({"budget": {**text, "description": "Money too, such as `+$5`, where the run counts money."}}) | {
        "required": ["budget"]
    }


def retry() -> Schema:
    """Return the schema of what a retried batch is told."""
    text = _AMOUNT | {"type": ["string", "integer", "null"], "pattern": _BUDGET}
    return record({"budget": text, "unanswered": {"type": "boolean"}}, others=False)


def _bounded(kind: str, **bounds: Any) -> Schema:
    return {"type": kind, **{name: bound for name, bound in bounds.items() if bound is not None}}


def _stop(settings: ServeConfig) -> Schema:
    limits = settings.limits
    one = {"type": "string", "minLength": 1, "maxLength": limits.stop_characters}
    return {"anyOf": [one, {"type": "array", "items": one, "maxItems": limits.stop_strings}, NULL]}


def _sampling(settings: ServeConfig) -> Schema:
    """Return how tokens are drawn; recordings are played as they are, so there what asks for nothing passes alone."""
    engine = settings.engine
    seed = or_null(whole(-(2**63), 2**64 - 1))  # and Mistral's word for it, `random_seed`
    if engine.kind == "replay":
        neutral: dict[str, list[Any]] = {"top_k": [-1, 0], "min_p": [0], "repetition_penalty": [1], "min_tokens": [0]}
        neutral |= {"presence_penalty": [0], "frequency_penalty": [0], "logit_bias": [{}], "stop_token_ids": [[]]}
        neutral |= {"temperature": [engine.temperature], "top_p": [engine.top_p, 1]}
        found: Schema = {name: {"enum": [None, *values]} for name, values in neutral.items()}
        found |= dict.fromkeys(_STRUCTURES[1:], NULL) | {"structured_outputs": or_null(_OUT_OF_NOTHING)}
        text = record({"type": {"const": "text"}}, required=("type",), others=NULL)
        return found | {"seed": seed, "response_format": or_null(text)}
    token = whole(0, 2**31 - 1)
    bias = {"type": "object", "additionalProperties": _bounded("number", minimum=-100, maximum=100)}
    return {
        "temperature": or_null(_bounded("number", minimum=0, maximum=2)),
        "top_p": or_null(_bounded("number", exclusiveMinimum=0, maximum=1)),
        "top_k": or_null(whole(-1, 2**31 - 1)),
        "min_p": or_null(_bounded("number", minimum=0, maximum=1)),
        "repetition_penalty": or_null(_bounded("number", exclusiveMinimum=0, maximum=100)),
        "presence_penalty": or_null(_bounded("number", minimum=-2, maximum=2)),
        "frequency_penalty": or_null(_bounded("number", minimum=-2, maximum=2)),
        "seed": seed,
        "stop_token_ids": or_null({"type": "array", "items": token, "maxItems": 64}),
        "min_tokens": or_null({**whole(0, 2**31 - 1), "description": "Not beside `stop`."}),
        "logit_bias": or_null(bias | {"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
        "response_format": or_null({"$ref": "#/components/schemas/ResponseFormat"}),
        "structured_outputs": or_null({"type": "object"}),
        "guided_json": {"type": ["object", "string", "null"]},
        "guided_regex": {"type": ["string", "null"], "minLength": 1},
        "guided_choice": or_null({"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}),
        "guided_grammar": {"type": ["string", "null"], "minLength": 1},
    }


def response_format() -> Schema:
    """Return the schema of what an answer is to conform to."""
    schema = record({"schema": {"type": "object"}, "name": {"type": "string"}}, required=("schema",))
    kinds = [record({"type": {"const": kind}}, required=("type",), others=NULL) for kind in ("text", "json_object")]
    named = record({"type": {"const": "json_schema"}, "json_schema": schema}, required=("type", "json_schema"))
    return {"oneOf": [*kinds, named]}


def _template(settings: ServeConfig) -> Schema:
    if settings.engine.kind == "replay":
        return {
            "chat_template_kwargs": {"enum": [None, {}]},
            "reasoning_effort": NULL,
            "reasoning": NULL,
            "add_generation_prompt": {"enum": [None, True]},
            "continue_final_message": {"enum": [None, False]},
            "enable_thinking": NULL,
        }
    return {
        "chat_template_kwargs": {
            "type": ["object", "null"],
            "description": "Settings that the model's template knows.",
        },
        "reasoning_effort": {"type": ["string", "null"]},
        "reasoning": {"type": ["object", "null"], "properties": {"effort": {"type": ["string", "null"]}}},
        "add_generation_prompt": {"type": ["boolean", "null"]},
        "continue_final_message": {"type": ["boolean", "null"]},
        "enable_thinking": {"type": ["boolean", "null"]},
    }


def _metadata_of_query(settings: ServeConfig) -> Schema:
    text = {"type": "string"}
    if settings.engine.kind == "replay":
        said = "Name of the recorded query: this server replays rollouts."
        named = {"query_id": {**text, "description": said}}
        return record(named, required=("query_id",), others=text)
    return or_null(record({}, others=text))


def _metadata_of_batch(settings: ServeConfig) -> Schema:
    own = settings.run_of(settings.models[-1])
    budget: Schema = {
        "pattern": _BUDGET,
        "description": "Money too, such as `$5`, where the server has a rate.",
    }
    if own.get("prices"):
        budget = {"pattern": _MONEY, "description": "Money: this server has prices."}
    known: Schema = {
        "budget": budget,
        "weight": {"pattern": r"^([1-9][0-9]{0,2}|0\.[0-9]{0,2}[1-9])$"},
        "policy": {"enum": ["clear_ray", "uniform"]},
        "objective": {"enum": [word for word in get_args(Objective) if _attempts_of(settings, objective=word)]},
        "attempts": {"pattern": _ATTEMPTS},
    }
    text = {"type": "string", "maxLength": MOST_VALUE}
    named = {name: {**text, **schema} for name, schema in known.items()}
    limits = {"maxProperties": MOST_PAIRS, "propertyNames": {"minLength": 1, "maxLength": MOST_KEY}}
    return record(named, others=text) | limits | {"anyOf": list(_together(settings))}


def _together(settings: ServeConfig) -> Iterator[Schema]:
    """Yield what policy, objective and attempts go together; False stands for one that is left out."""
    for objective, policy in product((None, *get_args(Objective)), (None, "clear_ray", "uniform")):
        asked = {name: word for name, word in (("objective", objective), ("policy", policy)) if word is not None}
        attempts = _attempts_of(settings, **asked)
        if not attempts:
            continue
        many = {"pattern": _ATTEMPTS} if "2" in attempts else {"const": "1"} if "1" in attempts else False
        words = {name: {"const": asked[name]} if name in asked else False for name in ("objective", "policy")}
        yield {
            "properties": words | {"attempts": many},
            "required": [*asked, *(() if "" in attempts else ("attempts",))],
        }


def _attempts_of(settings: ServeConfig, **asked: str) -> tuple[str, ...]:
    """Return which of no attempts, one and several may be asked for beside something else."""
    return tuple(
        count for count in ("", "1", "2") if _is_taken(settings, **asked, **({"attempts": count} if count else {}))
    )


def _is_taken(settings: ServeConfig, **metadata: str) -> bool:
    """Return whether a batch of one of the models may ask for it."""
    return any(_is_taken_of(settings, model, metadata) for model in settings.models)


def _is_taken_of(settings: ServeConfig, model: str, metadata: Mapping[str, str]) -> bool:
    batches, own = settings.batches, settings.run_of(model)
    assert batches is not None  # noqa: S101 - only a server with batches describes them
    try:
        asked_settings(batches, {"budget": str(a_budget(own.get("prices"))), **metadata}, own=own)
    except ApiError:
        return False
    return True
