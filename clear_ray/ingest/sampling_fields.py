"""The fields of a request's body that say how its answer is to be made, read as a `Sampling`.

The batch file, the column `sampling_params` of a plain row and the server's requests go through here. Errors name the field.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from clear_ray.config.sampling import MOST_LOGPROBS, Sampling, Structure, json_text
from clear_ray.errors import SchemaError
from clear_ray.ingest.values import shown

NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
SAMPLING_FIELDS = (
    *(*NUMBERS, "seed", "random_seed", "stop", "stop_token_ids", "min_tokens", "logit_bias"),
    *("logprobs", "top_logprobs"),
)
STRUCTURE_FIELDS = (
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
)
TEMPLATE_FIELDS = (
    *("chat_template_kwargs", "reasoning_effort", "enable_thinking"),
    *("continue_final_message", "add_generation_prompt"),
)
MOST_ANSWERS = 128
"""Most answers that one row may ask for, as with OpenAI."""
_WHOLE = frozenset(("top_k", "seed", "min_tokens"))
_KINDS = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "grammar",
    "json_object": "json_object",
}
_OF_SCHEMAS = ("name", "description", "strict")  # what names a schema and asks for it to be kept to: it always is
_FORMS: Mapping[Any, tuple[str, ...]] = {
    "text": (),
    "json_object": ("schema", "json_schema", "response_schema"),
    "json_schema": ("json_schema", "schema", *_OF_SCHEMAS),
    "json": ("value", "schema"),
    "regex": ("pattern", "value"),
}
"""Kinds of response formats, OpenAI's and those of other services, and what each may hold."""
_OF_TEMPLATES = frozenset(("messages", "tools", "documents", "chat_template", "tokenize", "conversation"))
_RULES = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:,}",
    "less_than_equal": "at most {le:g}",
}


def sampling_of(body: Mapping[str, Any], *, place: str = "body") -> Sampling | None:
    """Return what a body asks of its answer; None if nothing beyond the run's settings.

    Args:
        body: Under the names of OpenAI's and vLLM's fields; null asks for nothing. Other fields are not looked at.
        place: What the body is called in errors.

    Raises:
        SchemaError: A value is not what its field takes; `where` is the field.
    """
    asked: dict[str, Any] = {}
    for name in (*NUMBERS, "seed", "min_tokens"):
        if (value := body.get(name)) is not None:
            asked[name] = _number(value, f"{place}.{name}", is_whole=name in _WHOLE)
    if (seed := body.get("random_seed")) is not None:  # Mistral's word
        seed = _number(seed, f"{place}.random_seed", is_whole=True)
        if asked.setdefault("seed", seed) != seed:
            raise SchemaError("seed and random_seed differ", f"{place}.random_seed", shown(seed), "Give one of them.")
    if asked.get("top_k") == -1:  # vLLM's word for all
        asked["top_k"] = 0
    if (stop := body.get("stop")) is not None:
        asked["stop"] = _stops(stop, f"{place}.stop")
    if (token_ids := body.get("stop_token_ids")) is not None:
        if not isinstance(token_ids, list) or not all(type(token) is int for token in token_ids):
            raise SchemaError("it is a list of token ids", f"{place}.stop_token_ids", shown(token_ids), "Write [2, 7].")
        asked["stop_token_ids"] = token_ids
    if (bias := body.get("logit_bias")) is not None:
        asked["logit_bias"] = _biases(bias, f"{place}.logit_bias")
    asked["logprobs"] = _logprobs(body, place)
    asked["structure"] = structure_of(body, place=place)
    asked |= _template(body, place)
    return _checked(asked, place)


def structure_of(body: Mapping[str, Any], *, place: str = "body") -> Structure | None:
    """Return the one structure that a body asks for; arguments and errors of `sampling_of`."""
    found: dict[str, Structure] = {}
    if (form := body.get("response_format")) is not None:
        _add(found, "response_format", response_format(form, f"{place}.response_format"))
    if (outputs := body.get("structured_outputs")) is not None:
        where = f"{place}.structured_outputs"
        if not isinstance(outputs, dict):
            raise SchemaError("it is an object", where, shown(outputs), 'Write {"json": …}.')
        for name, value in outputs.items():
            if value is None or value is False:
                continue
            if name not in _KINDS:
                raise SchemaError("this is not supported", f"{where}.{name}", shown(value), "Leave it out.")
            _add(found, f"structured_outputs.{name}", _structure(_KINDS[name], value, f"{where}.{name}"))
    for name in ("json", "regex", "choice", "grammar"):
        if (value := body.get(f"guided_{name}")) is not None:
            _add(found, f"guided_{name}", _structure(_KINDS[name], value, f"{place}.guided_{name}"))
    if len(found) > 1:
        raise SchemaError("an answer keeps to one structure", place, ", ".join(found), "Give one of them.")
    return next(iter(found.values()), None)


def response_format(form: Any, where: str) -> Structure | None:
    """Return the structure of a response format, of a chat's kind or a response's; None for text.

    Raises:
        SchemaError: It is none that is kept to.
    """
    if not isinstance(form, dict):
        raise SchemaError("it is an object", where, shown(form), 'Write {"type": "json_object"}.')
    kind = form.get("type")
    if not isinstance(kind, Hashable) or kind not in _FORMS:
        remedy = f"Use {', '.join(_FORMS)}."
        raise SchemaError("there is no such response format", f"{where}.type", shown(kind), remedy)
    _refuse_others(form, ("type", *_FORMS[kind]), where)
    if kind in ("regex", "json"):
        found = [form[name] for name in _FORMS[kind] if form.get(name) is not None]
        if len(found) != 1:
            raise SchemaError("it has one pattern or schema", where, shown(form), "Give it under one name.")
        return _structure(_KINDS[kind], found[0], where)
    # A chat keeps name and schema in an object of their own, a response beside the type; some write a schema of any object.
    named = form.get("json_schema")
    if isinstance(named, dict) and kind == "json_schema":
        _refuse_others(named, ("schema", *_OF_SCHEMAS), f"{where}.json_schema")
        named = named.get("schema")
    schemas = [value for value in (named, form.get("schema"), form.get("response_schema")) if value is not None]
    if len(schemas) > 1:
        raise SchemaError("there is more than one schema", where, shown(form), "Give one of them.")
    if schemas and not (kind == "json_object" and schemas[0] == {}):
        return _structure("json_schema", schemas[0], where)
    if kind == "json_schema":
        raise SchemaError("the schema is missing", where, shown(form), 'Write {"name": …, "schema": {…}}.')
    return Structure(kind="json_object") if kind == "json_object" else None


def _refuse_others(form: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name, value in form.items():
        if name not in known and value is not None:
            raise SchemaError("this is not supported", f"{where}.{name}", shown(value), "Leave it out.")


@dataclass(frozen=True, slots=True)
class AskedAnswer:
    """What a row asks of its answer.

    Attributes:
        sampling: How it is to be made; None for the run's settings.
        max_tokens: Its ceiling; None for the run's.
        n: How many answers it asks for, if it says so.
    """

    sampling: Sampling | None = None
    max_tokens: int | None = None
    n: int | None = None


def answers_asked(value: Any, where: str) -> int | None:
    """Return how many answers a body asks for; None if it does not say.

    Raises:
        SchemaError: It is no whole number of at least 1, or too many.
    """
    if value is None:
        return None
    n: int = _number(value, where, is_whole=True)
    if not 1 <= n <= MOST_ANSWERS:
        what = f"a row asks for 1 to {MOST_ANSWERS} answers"
        raise SchemaError(what, where, shown(value), "Write several rows for more of them.")
    return n


def refuse_equal_answers(n: int | None, sampling: Sampling | None, temperature: float | None, place: str) -> None:
    """Refuse several answers to one row that would all be the same, and all be paid for.

    Args:
        n: How many it asks for.
        sampling: How they are made.
        temperature: The run's, for rows that name none; None where recordings are played, and no temperature has an effect.
        place: What holds both.

    Raises:
        SchemaError: They would.
    """
    own = sampling.temperature if sampling is not None else None
    if (n or 1) > 1 and temperature is not None and (temperature if own is None else own) == 0:
        remedy = "Ask for one, or give a temperature above 0."
        raise SchemaError("greedy sampling gives the same answer every time", f"{place}.n", str(n), remedy)


def sampling_params_of(value: Any, column: str) -> AskedAnswer:
    """Return what the column of a plain row asks: an object, or its JSON text, of the fields above, `max_tokens` and `n`.

    Raises:
        SchemaError: It is none, or holds a field that is not honoured; `where` is the column.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise SchemaError("it is not JSON", column, str(error), 'Write {"temperature": 0.2}.') from error
    if not isinstance(value, dict):
        raise SchemaError("it is an object", column, shown(value), 'Write {"temperature": 0.2}.')
    known = {*SAMPLING_FIELDS, *STRUCTURE_FIELDS, *TEMPLATE_FIELDS, "max_tokens", "n"}
    for name, given in value.items():
        if given is not None and name not in known:
            raise SchemaError("this field is not honoured", f"{column}.{name}", shown(given), "Leave it out.")
    ceiling = value.get("max_tokens")
    if ceiling is not None:
        ceiling = _number(ceiling, f"{column}.max_tokens", is_whole=True)
        if ceiling < 1:
            raise SchemaError("a token count is positive", f"{column}.max_tokens", shown(ceiling), "Leave it out.")
    return AskedAnswer(sampling_of(value, place=column), ceiling, answers_asked(value.get("n"), f"{column}.n"))


def _checked(asked: dict[str, Any], place: str) -> Sampling | None:
    try:
        sampling = Sampling(**asked)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        rule = _RULES.get(first["type"])
        what = f"the value is {rule.format(**first['ctx'])}" if rule else first["msg"].removeprefix("Value error, ")
        raise SchemaError(what, f"{place}.{name}", shown(first["input"]), "Correct it, or leave it out.") from error
    return None if sampling == Sampling() else sampling


def _number(value: Any, where: str, *, is_whole: bool) -> Any:
    if is_whole and isinstance(value, float) and value.is_integer():  # tables with empty cells store whole numbers so
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
        kind = "a whole number" if is_whole else "a number"
        raise SchemaError(f"the value is {kind}", where, shown(value), "Write it without quotes.")
    return value


def _stops(value: Any, where: str) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise SchemaError("it is a text or a list of texts", where, shown(value), 'Write ["\\n\\n"].')
    if "" in stops and stops != [""]:
        raise SchemaError("an empty text stops nothing", where, shown(value), "Remove it.")
    return [stop for stop in stops if stop]


def _biases(value: Any, where: str) -> dict[int, float]:
    biases: dict[int, float] = {}
    for token, bias in value.items() if isinstance(value, dict) else [(value, None)]:
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not str(token).isdecimal():
            raise SchemaError("it maps token ids to numbers", where, shown(value), 'Write {"50256": -100}.')
        biases[int(token)] = float(bias)
    return biases


def _logprobs(body: Mapping[str, Any], place: str) -> int | None:
    """Return how many of the likeliest tokens are wanted beside each of the answer; None if no log-probabilities are."""
    value, most = body.get("logprobs"), body.get("top_logprobs")
    if most is not None:
        most = _number(most, f"{place}.top_logprobs", is_whole=True)
        if most and (value is None or value is False):
            what, remedy = "likeliest tokens come with logprobs", 'Write "logprobs": true beside it.'
            raise SchemaError(what, f"{place}.top_logprobs", shown(most), remedy)
    if value is None or value is False:
        return None
    name, count = "top_logprobs", most or 0
    if value is not True:  # legacy completions, and vLLM, give the number itself
        name, count = "logprobs", _number(value, f"{place}.logprobs", is_whole=True)
        if most is not None and most != count:
            raise SchemaError("logprobs and top_logprobs differ", f"{place}.{name}", shown(value), "Give one of them.")
    if not 0 <= count <= MOST_LOGPROBS:
        what = f"it is at least 0 and at most {MOST_LOGPROBS}"
        raise SchemaError(what, f"{place}.{name}", shown(count), "Ask for fewer.")
    return int(count)


def _add(found: dict[str, Structure], name: str, structure: Structure | None) -> None:
    if structure is not None:
        found[name] = structure


def _structure(kind: str, value: Any, where: str) -> Structure:
    if kind == "json_object":
        if value is not True:
            raise SchemaError("it is true or left out", where, shown(value), "Write true.")
        return Structure(kind="json_object")
    if kind == "json_schema":
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise SchemaError("the schema is not JSON", where, str(error), "Write an object.") from error
        if not isinstance(value, dict):
            raise SchemaError("a schema is an object", where, shown(value), "Write an object.")
        return Structure(kind="json_schema", value=json_text(value))
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
            raise SchemaError("it is a list of texts, none of them empty", where, shown(value), 'Write ["yes", "no"].')
        return Structure(kind="choice", value=json_text(value))
    if not isinstance(value, str) or not value:
        raise SchemaError("it is a text", where, shown(value), "Write it as a string.")
    return Structure.model_validate({"kind": kind, "value": value})


def _template(body: Mapping[str, Any], place: str) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    settings = body.get("chat_template_kwargs")
    if settings is not None and not isinstance(settings, dict):
        raise SchemaError("it is an object", f"{place}.chat_template_kwargs", shown(settings), "Write an object.")
    settings = dict(settings or {})
    for name in ("add_generation_prompt", "continue_final_message"):
        value, where = body.get(name, settings.pop(name, None)), f"{place}.{name}"
        if value is not None and not isinstance(value, bool):
            raise SchemaError("it is true or false", where, shown(value), "Write it without quotes.")
        asked[name] = value
    for name in _OF_TEMPLATES & settings.keys():
        where = f"{place}.chat_template_kwargs.{name}"
        raise SchemaError("this is not a setting of the template's own", where, shown(settings[name]), "Leave it out.")
    if (thinks := body.get("enable_thinking")) is not None and settings.setdefault("enable_thinking", thinks) != thinks:
        where = f"{place}.enable_thinking"
        raise SchemaError("it is the same wherever it stands", where, shown(thinks), "Give one of them.")
    effort = body.get("reasoning_effort")
    if effort is not None and (
        not isinstance(effort, str) or settings.setdefault("reasoning_effort", effort) != effort
    ):
        where = f"{place}.reasoning_effort"
        raise SchemaError("it is a text, the same wherever it stands", where, shown(effort), 'Write "low".')
    if asked["continue_final_message"] and asked["add_generation_prompt"]:
        where, remedy = f"{place}.add_generation_prompt", "Set one of them to false."
        raise SchemaError("an answer that goes on opens no turn", where, "true", remedy)
    # What every conversation is rendered with asks for nothing.
    asked = {name: value for name, value in asked.items() if value is not (name == "add_generation_prompt")}
    if settings:
        try:
            asked["template"] = json_text(settings)
        except ValueError as error:
            raise SchemaError("it is not JSON", f"{place}.chat_template_kwargs", str(error), "Correct it.") from error
    return asked
