"""OpenAI's chat completions as far as they are spoken here: what comes in, and errors in OpenAI's form.

What becomes of a parameter stands in the table of batch files (`ingest.fields`), and messages are read as theirs are: one
that would change the answer and cannot be honoured is refused by name, never ignored. Messages of errors hold no prompt text.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clear_ray.config.sampling import Sampling
from clear_ray.errors import SchemaError
from clear_ray.ingest.fields import check_fields
from clear_ray.ingest.messages import has_names, read_messages
from clear_ray.ingest.sampling_fields import sampling_of
from clear_ray.serve.settings import LimitSettings


class ApiError(Exception):
    """An error that a client sees.

    Args:
        status: HTTP status.
        message: What went wrong and what to do; no prompt text.
        param: Name of the offending parameter, if there is one.
        code: Word for machines.
        retry_after_seconds: When to try again, for statuses 429 and 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_seconds = retry_after_seconds

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        kinds = {401: "authentication_error", 429: "rate_limit_error", 404: "not_found_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        return {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}


class Message(BaseModel):
    """One turn of a conversation, as `ingest.messages` reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    content: str


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A query as it comes in; unknown parameters are kept, so that they can be refused by name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    model: str
    messages: tuple[Message, ...] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: str | tuple[str, ...] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    n: int = Field(default=1, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()

    @property
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


def read_request(body: bytes, *, limits: LimitSettings, model_name: str) -> ChatRequest:
    """Read a query and refuse what cannot be honoured.

    Args:
        body: JSON.
        limits: What one query may ask for.
        model_name: The model that is served.

    Raises:
        ApiError: 400 for what cannot be read or honoured, 404 for another model.
    """
    try:
        given = json.loads(body)
        if isinstance(given, dict):  # null asks for nothing
            given = {name: value for name, value in given.items() if value is not None}
            given |= {"messages": _messages(given["messages"])} if given.get("messages") else {}
        request = ChatRequest.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{name}: {first['msg']}.", param=name, code="invalid_value") from None
    except SchemaError as error:
        raise _refusal(error, code="invalid_value") from None
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.", code="invalid_json") from None
    if request.model != model_name:
        raise ApiError(404, f"The only model here is {model_name}.", param="model", code="model_not_found")
    _refuse_what_is_not_done(request)
    _refuse_what_is_too_much(request, limits)
    return request


def _messages(given: Any) -> Any:
    """Return the messages of a body as they are put to the model."""
    messages = read_messages(given, "messages") if isinstance(given, list) else given
    if isinstance(given, list) and has_names(given):
        what, remedy = "no chat template is told who a speaker is", "Write the name into the text."
        raise SchemaError(what, "messages.name", remedy=remedy)
    return messages  # what is no list is refused by its type


def _refusal(error: SchemaError, *, code: str) -> ApiError:
    """Return what is wrong with a body as its client is told it, without the value."""
    name = error.where.removeprefix("body.")
    return ApiError(400, f"{name}: {error.what}. {error.remedy}", param=name, code=code)


def _refuse_what_is_not_done(request: ChatRequest) -> None:
    try:
        sampling = request.sampling
    except SchemaError as error:
        raise _refusal(error, code="invalid_value") from None
    goes_on = sampling is not None and sampling.continue_final_message
    if goes_on and request.messages[-1].role != "assistant":
        message = "continue_final_message: only what the assistant has begun is gone on with."
        raise ApiError(400, message, param="continue_final_message", code="invalid_value")
    if sampling is not None and sampling.min_tokens and sampling.stop:
        raise ApiError(400, "min_tokens: not beside stop.", param="min_tokens", code="unsupported_value")
    try:
        check_fields(request.model_extra or {}, "/v1/chat/completions")
    except SchemaError as error:
        raise _refusal(error, code="unsupported_parameter") from None


def _refuse_what_is_too_much(request: ChatRequest, limits: LimitSettings) -> None:
    characters = sum(len(message.content) for message in request.messages)
    found: tuple[tuple[Literal["messages", "n", "stop"], int, int, str], ...] = (
        ("messages", characters, limits.prompt_characters, "characters"),
        ("n", request.n, limits.choices, "choices"),
        ("stop", len(request.stops), limits.stop_strings, "strings"),
        ("stop", max(map(len, request.stops), default=0), limits.stop_characters, "characters in one string"),
    )
    for name, value, most, unit in found:
        if value > most:
            raise ApiError(400, f"{name}: {value} {unit}, at most {most} are allowed.", param=name, code="too_large")
    if "" in request.stops:
        raise ApiError(400, "stop: an empty string stops nothing.", param="stop", code="invalid_value")
