"""Lines of Gemini's, Vertex AI's and Bedrock's batch files, read as what they would be in a file of OpenAI's or Anthropic's.

They are read as far as they are text; what else they hold is refused by name. Answers are written as those of the endpoint
that a line is read as: chat completions; completions for a bare `prompt`; Anthropic's messages where Bedrock has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clear_ray.errors import SchemaError
from clear_ray.ingest.values import shown

_REFUSED = "Leave it out."
_UNDERSCORE = re.compile(r"_([a-z])")
_GEMINI = "request"
_BEDROCK = "modelInput"
_GEMINI_SETTINGS = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "maxOutputTokens": "max_tokens",
    "stopSequences": "stop",
    "seed": "seed",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "candidateCount": "n",
    "responseLogprobs": "logprobs",
    "logprobs": "top_logprobs",
}
_CONVERSE_SETTINGS = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "maxTokens": "max_tokens",
    "maxNewTokens": "max_tokens",
    "stopSequences": "stop",
}
_TITAN_SETTINGS = {
    "temperature": "temperature",
    "topP": "top_p",
    "maxTokenCount": "max_tokens",
    "stopSequences": "stop",
}
_BARE_SETTINGS = {"max_gen_len": "max_tokens", "max_tokens_to_sample": "max_tokens", "stop_sequences": "stop"}
_ROLES = {"model": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_KINDS_OF_SCHEMA = {"string", "number", "integer", "boolean", "array", "object", "null"}


@dataclass(frozen=True, slots=True)
class ForeignLine:
    """A line of another service as one that `requests.read_request` reads.

    Attributes:
        row: The line; without a `custom_id` where it has no id.
        said: How such lines are read.
        place_of: Function from a place in `row` to the place in the line as it was written.
    """

    row: dict[str, Any]
    said: str
    place_of: Callable[[str], str]


@dataclass(slots=True)
class _Body:
    """A body on its way: what stands in it, and where that stood before."""

    place: str
    fields: dict[str, Any] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value: Any, place: str) -> None:
        """Take a field over, unless another one has said the same."""
        if value is not None:
            self.fields[name], self.written[name] = value, place

    def settings(self, value: Any, known: Mapping[str, str], place: str, passed: Mapping[str, Any]) -> None:
        """Take over settings of an object; `passed` are those that ask for nothing, with the value that does not.

        Raises:
            SchemaError: It holds another one.
        """
        for written, given in _object(value, place).items():
            name = _camel(written)
            if given is None or (name in passed and given == passed[name]):
                continue
            if name not in known:
                raise SchemaError("this is not supported", f"{place}.{written}", shown(given), _REFUSED)
            self.put(known[name], given, f"{place}.{written}")

    def place_of(self, where: str, turns: str, before: int) -> str:
        """Return where something of the body stood; `turns` is the name of its list of messages."""
        rest = where.removeprefix("body.").removeprefix("params.")
        if found := re.match(r"messages(?:\[(\d+)\](.*))?", rest):
            if found[1] is None:
                return f"{self.place}.{turns}"
            number = int(found[1]) - before
            return (
                f"{self.place}.{turns}[{number}]{found[2]}" if number >= 0 else self.written.get("system", self.place)
            )
        for name, place in self.written.items():
            if rest == name or rest.startswith((f"{name}.", f"{name}[")):
                return place + rest[len(name) :]
        return f"{self.place}.{rest}" if rest != where else where


def is_foreign(row: Mapping[str, Any]) -> bool:
    """Whether a row looks like a line of another service's batch file."""
    request = row.get(_GEMINI)
    is_gemini = isinstance(request, dict) and ("contents" in request or "anthropic_version" in request)
    return is_gemini or isinstance(row.get(_BEDROCK), dict)


def translated(row: Mapping[str, Any]) -> ForeignLine:
    """Return a line of another service as one of ours.

    Raises:
        SchemaError: It asks for what is not done; `where` is the place in the line.
    """
    if _BEDROCK in row:
        rest = {name: value for name, value in row.items() if name not in ("recordId", _BEDROCK)}
        return _bedrock(_object(row[_BEDROCK], _BEDROCK), {"custom_id": row.get("recordId"), **rest})
    key = next((name for name in ("key", "custom_id", "id") if row.get(name) is not None), "key")
    rest = {name: value for name, value in row.items() if name not in (key, _GEMINI)}
    request = _object(row[_GEMINI], _GEMINI)
    if "anthropic_version" in request:
        return _anthropic(request, {**rest, "custom_id": row.get(key)}, _GEMINI, "Vertex AI")
    return _gemini(request, {**rest, "custom_id": row.get(key)})


def _anthropic(given: Mapping[str, Any], rest: dict[str, Any], place: str, service: str) -> ForeignLine:
    params = {name: value for name, value in given.items() if name != "anthropic_version"}
    said = f"reading `{place}` of {service}'s lines as Anthropic's params; answers are written as theirs"
    return ForeignLine({**rest, "params": params}, said, lambda where: re.sub(r"\Aparams\b", place, where))


def _gemini(request: Mapping[str, Any], rest: dict[str, Any]) -> ForeignLine:
    body, turns = _Body(_GEMINI), []
    for written, value in request.items():
        name, place = _camel(written), f"{_GEMINI}.{written}"
        if value is None or value in ([], {}) or name in ("contents", "model", "safetySettings", "labels"):
            continue
        if name == "systemInstruction":
            system = value if isinstance(value, str) else _texts(_object(value, place).get("parts"), f"{place}.parts")
            turns.append({"role": "system", "content": system})
            body.written["system"] = place
        elif name == "generationConfig":
            _gemini_settings(body, value, place)
        else:
            raise SchemaError("this is not supported", place, shown(value), _REFUSED)
    before = len(turns)
    contents = request["contents"]
    contents = [contents] if isinstance(contents, dict) else contents
    for k, content in enumerate(_list(contents, f"{_GEMINI}.contents")):
        place = f"{_GEMINI}.contents[{k}]"
        role = _object(content, place).get("role", "user")
        if role not in _ROLES:
            raise SchemaError("unknown role", f"{place}.role", shown(role), "Use user or model.")
        _refuse_others(content, ("role", "parts"), place)
        turns.append({"role": _ROLES[role], "content": _texts(content.get("parts"), f"{place}.parts")})
    said = "reading `request.contents` of Gemini's lines; answers are written as chat completions"
    row = {**rest, "method": "POST", "url": "/v1/chat/completions", "body": {"messages": turns, **body.fields}}
    return ForeignLine(row, said, lambda where: body.place_of(where, "contents", before))


def _gemini_settings(body: _Body, value: Any, place: str) -> None:
    settings = {_camel(name): given for name, given in _object(value, place).items()}
    kind, form = settings.get("responseMimeType"), None
    schema = settings.get("responseJsonSchema")
    if schema is None and settings.get("responseSchema") is not None:
        schema = _schema_of(settings["responseSchema"], f"{place}.responseSchema")
    if kind == "text/x.enum":
        body.put("structured_outputs", {"choice": _object(schema, f"{place}.responseSchema").get("enum")}, place)
    elif schema is not None:
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    elif kind == "application/json":
        form = {"type": "json_object"}
    elif kind not in (None, "text/plain"):
        raise SchemaError(
            "there is no such kind of answer", f"{place}.responseMimeType", shown(kind), "Use text/plain."
        )
    body.put("response_format", form, f"{place}.{'responseSchema' if schema is not None else 'responseMimeType'}")
    for name, given in value.items():
        if _camel(name) == "thinkingConfig" and given is not None:
            _thinking(body, _object(given, f"{place}.{name}"), f"{place}.{name}")
    read = ("responseMimeType", "responseSchema", "responseJsonSchema", "thinkingConfig")
    rest = {name: given for name, given in value.items() if _camel(name) not in read}
    passed = {"responseModalities": ["TEXT"], "audioTimestamp": False, "responseLogprobs": False}
    body.settings(rest, _GEMINI_SETTINGS, place, passed)


def _thinking(body: _Body, given: Mapping[str, Any], place: str) -> None:
    """Take over a budget of no thoughts; one that is the model's own choice asks for nothing."""
    for name, value in given.items():
        if _camel(name) == "thinkingBudget" and type(value) is int and value == 0:
            body.put("enable_thinking", False, f"{place}.{name}")
        elif value is not None and (_camel(name), value) not in (("thinkingBudget", -1), ("includeThoughts", False)):
            remedy = "Use 0, or leave it out: engine.thinking_tokens limits thoughts on vLLM."
            raise SchemaError("this is not supported", f"{place}.{name}", shown(value), remedy)


def _bedrock(given: Mapping[str, Any], rest: dict[str, Any]) -> ForeignLine:
    if "anthropic_version" in given and "messages" in given:
        return _anthropic(given, rest, _BEDROCK, "Bedrock")
    body = _Body(_BEDROCK)
    said = "reading `modelInput` of Bedrock's lines; answers are written as {}"
    before = 0
    if "messages" in given:
        before = _converse(body, given)
        url, said = "/v1/chat/completions", said.format("chat completions")
    elif "inputText" in given:
        body.settings(given.get("textGenerationConfig") or {}, _TITAN_SETTINGS, f"{_BEDROCK}.textGenerationConfig", {})
        _refuse_others(given, ("inputText", "textGenerationConfig"), _BEDROCK)
        body.put("messages", [{"role": "user", "content": given["inputText"]}], f"{_BEDROCK}.inputText")
        url, said = "/v1/chat/completions", said.format("chat completions")
        line = {**rest, "method": "POST", "url": url, "body": body.fields}
        return ForeignLine(
            line, said, lambda where: re.sub(r"messages.*", "inputText", body.place_of(where, "messages", 0))
        )
    elif "prompt" in given:
        for name, value in given.items():
            body.put(_BARE_SETTINGS.get(name, name), value, f"{_BEDROCK}.{name}")
        url, said = "/v1/completions", said.format("completions, their `prompt` put to the model as it stands")
    else:
        what, remedy = "it asks nothing that is read", "Write messages, inputText or prompt into it."
        raise SchemaError(what, _BEDROCK, shown(given), remedy)
    row = {**rest, "method": "POST", "url": url, "body": body.fields}
    return ForeignLine(row, said, lambda where: body.place_of(where, "messages", before))


def _converse(body: _Body, given: Mapping[str, Any]) -> int:
    """Take over a conversation with its settings, in the words of Converse or of OpenAI; return the turns before it."""
    turns: list[dict[str, Any]] = []
    system = given.get("system")
    if system:
        place = f"{_BEDROCK}.system"
        turns.append({"role": "system", "content": system if isinstance(system, str) else _texts(system, place)})
        body.written["system"] = place
    before = len(turns)
    for k, message in enumerate(_list(given["messages"], f"{_BEDROCK}.messages")):
        content, place = (
            _object(message, f"{_BEDROCK}.messages[{k}]").get("content"),
            f"{_BEDROCK}.messages[{k}].content",
        )
        if isinstance(content, list) and all(isinstance(part, dict) and "type" not in part for part in content):
            content = _texts(content, place)
        turns.append({**message, "content": content})
    body.put("messages", turns, f"{_BEDROCK}.messages")
    for name, value in given.items():
        place = f"{_BEDROCK}.{name}"
        if name == "inferenceConfig":
            body.settings(value or {}, _CONVERSE_SETTINGS, place, {})
        elif name not in ("messages", "system", "schemaVersion"):
            body.put(_BARE_SETTINGS.get(name, name), value, place)
    return before


def _texts(parts: Any, place: str) -> list[dict[str, str]]:
    """Return parts {text} as parts of a message."""
    texts = []
    for k, part in enumerate([parts] if isinstance(parts, dict) else _list(parts, place)):
        where = f"{place}[{k}]"
        _refuse_others(_object(part, where), ("text",), where)
        texts.append({"type": "text", "text": part.get("text")})
    return texts


def _schema_of(schema: Any, place: str) -> Any:
    """Return a schema in Gemini's words as a JSON schema."""
    made: dict[str, Any] = {}
    for written, value in _object(schema, place).items():
        name = _camel(written)
        if value is None or name in ("propertyOrdering", "format", "example", "title", "description", "nullable"):
            continue
        where = f"{place}.{written}"
        if name == "type":
            if str(value).lower() not in _KINDS_OF_SCHEMA:
                raise SchemaError("there is no such type", where, shown(value), "Write STRING, NUMBER or their like.")
            made["type"] = str(value).lower()
        elif name == "properties":
            inner = _object(value, where).items()
            made["properties"] = {key: _schema_of(inside, f"{where}.{key}") for key, inside in inner}
        elif name == "items":
            made["items"] = _schema_of(value, where)
        elif name == "anyOf":
            made["anyOf"] = [_schema_of(inside, f"{where}[{k}]") for k, inside in enumerate(_list(value, where))]
        else:
            bound = name.startswith(("min", "max")) and isinstance(value, str) and value.isdecimal()  # int64 in JSON
            made[name] = int(value) if bound else value
    return {"anyOf": [made, {"type": "null"}]} if schema.get("nullable") is True else made


def _refuse_others(given: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for name, value in given.items():
        if name not in known and value is not None:
            raise SchemaError("only texts are read", f"{place}.{name}", shown(value), _REFUSED)


def _object(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SchemaError("it is an object", place, shown(value), "Write an object.")
    return value


def _list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise SchemaError("it is a list", place, shown(value), "Write a list.")
    return value


def _camel(name: str) -> str:
    return _UNDERSCORE.sub(lambda found: found[1].upper(), name)
