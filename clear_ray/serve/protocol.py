"""OpenAI's completions and responses as far as they are spoken here: what comes in, and errors in OpenAI's form.

What becomes of a parameter stands in the table of batch files (`ingest.fields`), and messages are read as theirs are: one
that would change the answer and cannot be honoured is refused by name, never ignored. Messages of errors hold no prompt text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from clear_ray.config.sampling import Sampling
from clear_ray.engine.base import Prompt, RawText, TokenIds, conversation_of, words_of
from clear_ray.errors import SchemaError
from clear_ray.ingest.fields import Endpoint, check_fields
from clear_ray.ingest.messages import read_messages
from clear_ray.ingest.requests import at, place_in_response, response_as_chat
from clear_ray.ingest.sampling_fields import sampling_of
from clear_ray.serve.bodies import json_of, refusal_of
from clear_ray.serve.errors import ApiError
from clear_ray.serve.settings import LimitSettings

__all__ = [
    "ApiError",
    "ChatRequest",
    "CompletionRequest",
    "QueryRequest",
    "ResponseRequest",
    "read_request",
    "refuse_equal_choices",
]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# JSON has types, in which "5" and true are no numbers; but it has one kind of number.
Whole = Annotated[int, Strict(), BeforeValidator(_whole)]
Number = Annotated[float, Strict()]
Truth = Annotated[bool, Strict()]
TokenId = Annotated[Whole, Field(ge=0, lt=2**31)]


class Message(BaseModel):
    """One turn of a conversation, as `ingest.messages` reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    content: str
    name: str | None = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    include_usage: Truth = False


class QueryRequest(BaseModel):
    """A query as it comes in; unknown parameters are kept, so that they can be refused by name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    endpoint: ClassVar[Endpoint]
    prompt_param: ClassVar[str]

    model: str
    max_tokens: Whole | None = Field(default=None, ge=1)
    max_completion_tokens: Whole | None = Field(default=None, ge=1)
    stop: str | tuple[str, ...] | None = None
    temperature: Number | None = Field(default=None, ge=0, le=2)
    top_p: Number | None = Field(default=None, gt=0, le=1)
    seed: Whole | None = None
    n: Whole = Field(default=1, ge=1)
    stream: Truth = False
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = None
    response_format: dict[str, Any] | None = None

    @classmethod
    def words_of(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Return a body as its fields take it, without what is null and asks for nothing.

        Raises:
            SchemaError: It holds what is not done.
        """
        return given

    @cached_property
    def as_prompt(self) -> Prompt:
        """What the model is to read."""
        raise NotImplementedError

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()

    @cached_property
    def sampling(self) -> Sampling | None:
        """What the query asks of its answer; None for the engine's settings.

        Raises:
            SchemaError: A value is not what its parameter takes.
        """
        named = self.model_dump(mode="json", include={"temperature", "top_p", "stop", "seed", "response_format"})
        return sampling_of({**(self.model_extra or {}), **named}, place="body")

    @property
    def upper_limit_tokens(self) -> int | None:
        """The client's own ceiling, tokens."""
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(limits) if limits else None


_Query = TypeVar("_Query", bound=QueryRequest)


class ChatRequest(QueryRequest):
    """A conversation that is to go on."""

    endpoint, prompt_param = "/v1/chat/completions", "messages"

    messages: tuple[Message, ...] = Field(min_length=1)

    @classmethod
    def words_of(cls, given: dict[str, Any]) -> dict[str, Any]:
        """See `QueryRequest`; messages are read as those of files are, and what is no list is refused by its type."""
        messages = given.get("messages")
        is_read = isinstance(messages, list) and messages
        return given | {"messages": read_messages(messages, "messages")} if is_read else given

    @cached_property
    def as_prompt(self) -> Prompt:
        """The conversation."""
        return conversation_of([message.model_dump(exclude_none=True) for message in self.messages], self.sampling)


class ResponseRequest(ChatRequest):
    """The input of a response, read as the conversation that asks the same."""

    prompt_param = "input"

    max_output_tokens: Whole | None = Field(default=None, ge=1)

    @property
    def upper_limit_tokens(self) -> int | None:
        """The client's own ceiling, tokens."""
        return self.max_output_tokens

    @classmethod
    def words_of(cls, given: dict[str, Any]) -> dict[str, Any]:
        """See `QueryRequest`."""
        if not given.get("input"):
            code = "missing_required_parameter"
            if "input" in given:
                code = "empty_string" if given["input"] == "" else "empty_array"
            raise ApiError(400, "input is missing, or empty.", param="input", code=code)
        asked = {name: value for name, value in given.items() if name not in ("stream", "stream_options")}
        try:
            check_fields(asked, "/v1/responses")
        except SchemaError as error:
            raise _refusal(error, code="unsupported_parameter") from None
        own = {name: given.get(name) for name in ("stream", "max_output_tokens")}
        words = response_as_chat(asked) | own
        try:
            return super().words_of({name: value for name, value in words.items() if value is not None})
        except SchemaError as error:
            raise at(error, place_in_response(given, f"body.{error.where}")) from None


class CompletionRequest(QueryRequest):
    """A text that is to go on, without a chat template."""

    endpoint, prompt_param = "/v1/completions", "prompt"

    prompt: str | tuple[TokenId, ...] = Field(min_length=1)

    @classmethod
    def words_of(cls, given: dict[str, Any]) -> dict[str, Any]:
        """See `QueryRequest`."""
        return given | {"prompt": _one_prompt(given["prompt"])} if given.get("prompt") else given

    @cached_property
    def as_prompt(self) -> Prompt:
        """The text, as it stands."""
        return RawText(self.prompt) if isinstance(self.prompt, str) else TokenIds(self.prompt)


def read_request(body: bytes, kind: type[_Query], *, limits: LimitSettings, models: Mapping[str, object]) -> _Query:
    """Read a query and refuse what cannot be honoured.

    Args:
        body: JSON.
        kind: What it is to be.
        limits: What one query may ask for.
        models: The models that answer, by their names.

    Raises:
        ApiError: 400 for what cannot be read or honoured, 404 for another model.
    """
    try:
        given = json_of(body)
        if isinstance(given, dict):  # null asks for nothing
            given = kind.words_of({name: value for name, value in given.items() if value is not None})
        request = kind.model_validate(given)
    except ValidationError as error:
        raise refusal_of(error) from None
    except SchemaError as error:
        raise _refusal(error, code="invalid_value") from None
    if request.model not in models:
        said = "The only model here is" if len(models) == 1 else "The models that answer here are"
        raise ApiError(404, f"{said} {', '.join(models)}.", param="model", code="model_not_found")
    _refuse_what_is_not_done(request)
    _refuse_what_is_too_much(request, limits)
    return request


def refuse_equal_choices(request: QueryRequest, temperature: float) -> None:
    """Refuse several answers that would all be the same, and all be charged.

    Args:
        request: The query.
        temperature: The engine's, for queries that name none.

    Raises:
        ApiError: 400.
    """
    own = request.temperature
    if request.n > 1 and (temperature if own is None else own) == 0:
        message = (
            f"n: at temperature 0 all {request.n} answers are the same. Ask for one, or give a temperature above 0."
        )
        raise ApiError(400, message, param="n", code="invalid_value")


def _one_prompt(given: Any) -> Any:
    """Return the one prompt of a body; a list of prompts may hold no more."""
    if isinstance(given, list) and all(isinstance(part, (str, list)) for part in given):
        if len(given) > 1:
            raise SchemaError("several prompts in one request", "prompt", remedy="Send a request for each.")
        return given[0]
    return given


def _refusal(error: SchemaError, *, code: str) -> ApiError:
    """Return what is wrong with a body as its client is told it, without the value."""
    name = error.where.removeprefix("body.")
    return ApiError(400, f"{name}: {error.what}. {error.remedy}", param=name, code=code)


def _refuse_what_is_not_done(request: QueryRequest) -> None:
    try:
        sampling = request.sampling
    except SchemaError as error:
        raise _refusal(error, code="invalid_value") from None
    goes_on = sampling is not None and sampling.continue_final_message
    if goes_on and isinstance(request, ChatRequest) and request.messages[-1].role != "assistant":
        message = "continue_final_message: only what the assistant has begun is gone on with."
        raise ApiError(400, message, param="continue_final_message", code="invalid_value")
    if sampling is not None and sampling.min_tokens and sampling.stop:
        raise ApiError(400, "min_tokens: not beside stop.", param="min_tokens", code="unsupported_value")
    try:
        check_fields(request.model_extra or {}, request.endpoint)
    except SchemaError as error:
        raise _refusal(error, code="unsupported_parameter") from None


def _refuse_what_is_too_much(request: QueryRequest, limits: LimitSettings) -> None:
    prompt = request.as_prompt
    characters = len(prompt) if isinstance(prompt, TokenIds) else len(words_of(prompt))
    longest = max(map(len, request.stops), default=0)
    found: tuple[tuple[str, int, int, str, str], ...] = (
        (request.prompt_param, characters, limits.prompt_characters, "characters", "string_above_max_length"),
        ("n", request.n, limits.choices, "choices", "integer_above_max_value"),
        ("stop", len(request.stops), limits.stop_strings, "strings", "array_above_max_length"),
        ("stop", longest, limits.stop_characters, "characters in one string", "string_above_max_length"),
    )
    for name, value, most, unit, code in found:
        if value > most:
            raise ApiError(400, f"{name}: {value} {unit}, at most {most} are allowed.", param=name, code=code)
    if "" in request.stops:
        raise ApiError(400, "stop: an empty string stops nothing.", param="stop", code="invalid_value")
