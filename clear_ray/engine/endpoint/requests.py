"""From a grant to the body of a call: the chat API's, or that of legacy completions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clear_ray.config.engine import OpenAIConfig
from clear_ray.config.sampling import Sampling, Structure
from clear_ray.engine.base import Grant, RawText, TokenIds, messages_of
from clear_ray.errors import SchemaError

CHAT, COMPLETIONS = "/chat/completions", "/completions"
_PLAIN = ("presence_penalty", "frequency_penalty", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_SEEDS = 1 << 31
_BROKEN = "\N{REPLACEMENT CHARACTER}"  # half of a character whose other half was cut off


@dataclass(frozen=True, slots=True)
class EndpointRequest:
    """One call.

    Attributes:
        path: After the endpoint's address.
        body: What is sent.
        own_fields: Fields that the query asks for itself; the others are the run's, and may be left out where refused.
        sent_text: The answer so far that is gone on with; what comes is put after it.
    """

    path: str
    body: Mapping[str, Any]
    own_fields: frozenset[str]
    sent_text: str


def request_of(grant: Grant, config: OpenAIConfig) -> EndpointRequest:
    """Return the call that has a grant generated.

    Raises:
        SchemaError: The endpoint's API has no place for such a prompt.
    """
    sent_text = grant.prefix_text.rstrip(_BROKEN)
    body: dict[str, Any] = {"model": config.model, **config.extra_body}
    if is_chat(grant, config):
        path = CHAT
        # Templates trim what a message ends with; the model writes it again.
        sent_text = sent_text.rstrip()
        body["messages"] = _messages(grant, config, sent_text)
    else:
        path, body["prompt"] = COMPLETIONS, _prompt(grant, sent_text)
    own = _own_fields(grant.sampling)
    if (least := own.pop("min_tokens", 0) - len(grant.prefix_token_ids)) > 0:
        own["min_tokens"] = min(
            least, grant.max_tokens
        )  # of the whole answer; a call may not ask for more than its most
    body |= {"max_tokens": grant.max_tokens, "temperature": config.temperature}
    if config.top_p != 1.0:
        body["top_p"] = config.top_p
    if (top := own.pop("logprobs", None)) is not None:
        own |= {"logprobs": True, "top_logprobs": top} if path == CHAT else {"logprobs": top}
    body |= own
    if path == CHAT and sent_text:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if body["temperature"] > 0 or "seed" in own:
        body["seed"] = _seed(grant)
    return EndpointRequest(path, body, frozenset(own), sent_text)


def is_chat(grant: Grant, config: OpenAIConfig) -> bool:
    """Return whether a grant goes to the chat API: what is no conversation and is not to be made one does not."""
    if isinstance(grant.prompt, RawText | TokenIds):
        return False
    return config.api == "chat" or not isinstance(grant.prompt, str)


def _messages(grant: Grant, config: OpenAIConfig, sent_text: str) -> list[dict[str, Any]]:
    messages = messages_of(grant.prompt)
    has_system = any(message["role"] in ("system", "developer") for message in messages)
    if config.system_prompt is not None and not has_system:
        messages.insert(0, {"role": "system", "content": config.system_prompt})
    if not sent_text:
        return messages
    is_begun = grant.sampling is not None and bool(grant.sampling.continue_final_message)
    if is_begun and messages[-1]["role"] == "assistant":
        messages[-1]["content"] += sent_text
    else:
        messages.append({"role": "assistant", "content": sent_text})
    return messages


def _prompt(grant: Grant, sent_text: str) -> str | list[int]:
    if isinstance(grant.prompt, TokenIds):
        if grant.prefix_token_ids:
            raise SchemaError("an answer to token ids cannot be gone on with from its text", f"query {grant.query_id}")
        return list(grant.prompt)
    return f"{grant.prompt}{sent_text}"


def _own_fields(sampling: Sampling | None) -> dict[str, Any]:
    """Return what a query asks for itself, under the names of OpenAI's fields and of vLLM's."""
    if sampling is None:
        return {}
    own = {name: value for name in _PLAIN if (value := getattr(sampling, name)) is not None}
    if own.get("top_k") == 0:
        own["top_k"] = -1
    if sampling.seed is not None:
        own["seed"] = sampling.seed
    if sampling.stop:
        own["stop"] = list(sampling.stop)
    if sampling.stop_token_ids:
        own["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.logprobs is not None:
        own["logprobs"] = sampling.logprobs
    if sampling.min_tokens:
        own["min_tokens"] = sampling.min_tokens
    if sampling.logit_bias:
        own["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.structure is not None:
        own |= _structure(sampling.structure)
    settings = json.loads(sampling.template) if sampling.template else {}
    if "reasoning_effort" in settings:  # a field of its own there
        own["reasoning_effort"] = settings.pop("reasoning_effort")
    if settings:
        own["chat_template_kwargs"] = settings
    for name in ("continue_final_message", "add_generation_prompt"):
        if (value := getattr(sampling, name)) is not None:
            own[name] = value
    if own.get("continue_final_message"):
        own["add_generation_prompt"] = False
    return own


def _structure(structure: Structure) -> dict[str, Any]:
    if structure.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if structure.kind == "json_schema":
        schema = {"name": "answer", "schema": json.loads(structure.value)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    value = json.loads(structure.value) if structure.kind == "choice" else structure.value
    return {"structured_outputs": {structure.kind: value}}


def _seed(grant: Grant) -> int:
    """Return a seed: the grant's own for a first answer, as it was written, else one of its sample and its place."""
    if grant.sample == 0 and not grant.prefix_token_ids:
        return grant.seed % _SEEDS
    name = f"{grant.seed} {grant.sample} {len(grant.prefix_token_ids)}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % _SEEDS
