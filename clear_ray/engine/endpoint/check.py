"""What is found out about an endpoint before it is used: whether it is there, takes the key, has the model, and goes on.

Looking costs nothing where the list of models has the model. Where it does not, or there is none, or it is closed to the key,
a call of one token tells: gateways list models under other names than they answer to, and keys may be for calls alone. The
trial of going on costs two tokens and two short prompts.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import SecretStr

from clear_ray.config.engine import OpenAIConfig
from clear_ray.engine.endpoint.connection import call_options, client_arguments, key_of, made_client
from clear_ray.errors import ConfigError, EngineError

_LOOK_SECONDS, _TRIAL_SECONDS = 10.0, 60.0
_SHOWN_MODELS = 5
_FILLED_IN = ("top_p", "top_k", "min_p", "repetition_penalty")
"""What vLLM's server takes from the model's generation_config unless a request names it, and a run does not name."""
_HERE = frozenset(("localhost", "127.0.0.1", "::1"))
_TRIAL_TURNS = ({"role": "user", "content": "Count to five."}, {"role": "assistant", "content": "One, two, three,"})


@dataclass(frozen=True, slots=True)
class Found:
    """What an endpoint says of itself.

    Attributes:
        context_tokens: Prompt and answer together; None if it does not say.
        note: What could not be found out, or is not as elsewhere; empty if nothing.
    """

    context_tokens: int | None
    note: str = ""


def check_installed() -> None:
    """Raise ConfigError unless what the engine needs is installed."""
    try:
        import openai  # noqa: F401 - whether it is there
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"an endpoint needs the package {error.name}", "engine.kind", "openai", "pip install 'clear_ray[endpoint]'"
        ) from error


def fingerprint_of(model: str) -> str:
    """Return the fingerprint of an endpoint's model: of its name, which is all that is known of it."""
    return hashlib.sha256(f"endpoint\n{model}".encode()).hexdigest()


def endpoint_notes(config: OpenAIConfig) -> tuple[str, ...]:
    """Return what is to be said of an endpoint before a run; errors of `look_at`."""
    notes = [look_at(config).note]
    parts = urlsplit(config.base_url)
    if parts.scheme == "http" and parts.hostname not in _HERE and key_of(config) is not None:
        notes.append("the endpoint's key is sent over http, where others may read it")
    return tuple(note for note in notes if note)


def look_at(config: OpenAIConfig) -> Found:
    """Return what the endpoint's list of models says, within seconds.

    Raises:
        ConfigError: The package is missing, the key is not there or not taken, or the model or the address is wrong.
        EngineError: The endpoint cannot be reached, or is broken.
    """
    check_installed()
    import openai

    from clear_ray.engine.endpoint.faults import fault_of, is_elsewhere
    from clear_ray.engine.endpoint.requests import EndpointRequest

    key = key_of(config)
    secret = "" if key is None else key.get_secret_value()
    with made_client(client_arguments(config, key, seconds=_LOOK_SECONDS)) as client:
        try:
            listed: Any = client.get("/models", options=call_options(config, key), cast_to=object)
        except openai.APIStatusError as error:
            fault = fault_of(error, EndpointRequest("/models", {}, frozenset(), ""), key=secret)
            if error.status_code in (401, 403):
                if key is None:
                    raise _refused_key(config, fault.said) from error
                return _tried(client, config, key, "the endpoint's list of models is closed to this key")
            if error.status_code in (404, 405, 501):
                return _tried(client, config, key, "the endpoint lists no models")
            if is_elsewhere(error.status_code):
                return _tried(client, config, key, f"the endpoint's list of models is elsewhere ({fault.said})")
            if error.status_code == 429:
                return Found(config.max_context_tokens, "the endpoint is busy, so the model's name is not checked")
            remedy = "Look whether it is up and base_url is right; some end in /v1."
            raise EngineError(f"the endpoint answers {fault.said}", config.base_url, remedy=remedy) from error
        except Exception as error:
            said = fault_of(error, EndpointRequest("/models", {}, frozenset(), ""), key=secret).said
            remedy = _remedy_of(said, urlsplit(config.base_url))
            raise EngineError(f"the endpoint cannot be used: {said}", config.base_url, remedy=remedy) from error
        return _found(client, config, key, listed)


def _remedy_of(said: str, address: SplitResult) -> str:
    """Return what to do about an endpoint that cannot be reached."""
    proxies = getproxies()
    if (address.scheme in proxies or "all" in proxies) and not proxy_bypass(address.hostname or ""):
        return "Look whether the proxy of HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is up; hosts in NO_PROXY are reached without."
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (
            "Name the file of its authority's certificate: export SSL_CERT_FILE=…, also where Ray's nodes are started."
        )
    if "[SSL" in said:
        return "Look whether it speaks https at this port: base_url says so."
    return "Look whether it is up, and base_url right: as a URL that ends where /chat/completions would begin."


def _tried(client: Any, config: OpenAIConfig, key: SecretStr | None, why: str) -> Found:
    """Return what a call of one token says of a model that no list has.

    Args:
        client: Client of the endpoint.
        config: The endpoint.
        key: Its key.
        why: Why the list does not tell.

    Raises:
        ConfigError: The key is not taken, there is no such model, or nothing at this address.
    """
    import openai

    from clear_ray.engine.endpoint.faults import fault_of, is_elsewhere
    from clear_ray.engine.endpoint.requests import CHAT, COMPLETIONS, EndpointRequest

    found = Found(config.max_context_tokens, f"{why}; a call to {config.model} was answered")
    path = CHAT if config.api == "chat" else COMPLETIONS
    asked = {"messages": [{"role": "user", "content": "Hi."}]} if path == CHAT else {"prompt": "Hi."}
    body = {"model": config.model, **config.extra_body, **asked}
    # A model may have to be loaded first.
    client = client.with_options(timeout=min(_TRIAL_SECONDS, config.timeout_seconds))

    def call(ceiling: str) -> Any:
        return client.post(path, body={**body, ceiling: 1}, options=call_options(config, key), cast_to=object)

    try:
        try:
            reply = call("max_tokens")
        except openai.BadRequestError as error:
            if "max_completion_tokens" not in str(error):
                raise
            reply = call("max_completion_tokens")
    except Exception as error:
        secret = "" if key is None else key.get_secret_value()
        said = fault_of(error, EndpointRequest(path, {}, frozenset(), ""), key=secret).said
        status = error.status_code if isinstance(error, openai.APIStatusError) else 0
        if status == 401 or (status == 403 and not _blames_model(said)):
            raise _refused_key(config, said) from error
        if status in (400, 403, 404, 422) and _blames_model(said):
            what = f"the endpoint has no such model: {why}; a call was answered {said}"
            raise ConfigError(what, "engine.model", config.model, "Name one that it has.") from error
        if status in (404, 405) or is_elsewhere(status):
            remedy = "Look whether base_url is right: most end in /v1."
            remedy = "Write that address into engine.base_url." if is_elsewhere(status) else remedy
            raise ConfigError(f"nothing is here to call: it answers {said}", config.base_url, remedy=remedy) from error
        return replace(found, note=f"{why}, so the model's name is not checked: a call of one token came to {said}")
    if not isinstance(reply, dict):
        remedy = "Look whether base_url is right; most end in /v1."
        raise ConfigError("this is no OpenAI-compatible endpoint", "engine.base_url", config.base_url, remedy)
    return found


def _blames_model(said: str) -> bool:
    # Some do not take `max_tokens`, or a word as short, "with this model", which a run finds out and heeds.
    return "model" in said.lower() and "_tokens" not in said


def _refused_key(config: OpenAIConfig, said: str) -> ConfigError:
    if config.key_file is None and config.key_env is None:
        return ConfigError(
            f"the endpoint wants a key: it answers {said}",
            config.base_url,
            remedy="Name the environment variable that holds it in engine.key_env, or a file in engine.key_file.",
        )
    where = f"engine.key_file {config.key_file}" if config.key_file else f"environment variable {config.key_env}"
    return ConfigError(
        f"the endpoint does not take the key: it answers {said}", where, remedy="Put the right key there, or a new one."
    )


def _found(client: Any, config: OpenAIConfig, key: SecretStr | None, listed: Any) -> Found:
    entries = (listed.get("data") or []) if isinstance(listed, dict) else listed
    if not isinstance(entries, list):
        remedy = "Look whether base_url is right; most end in /v1."
        raise ConfigError("this is no OpenAI-compatible endpoint", "engine.base_url", config.base_url, remedy)
    models = {entry["id"]: entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)}
    if not models:
        return _tried(client, config, key, "the endpoint lists no models")
    name = next((name for name in _names_in_lists(config.model) if name in models), None)
    if name is None:
        near = difflib.get_close_matches(config.model, models, n=_SHOWN_MODELS, cutoff=0.3)
        names = ", ".join(near or sorted(models)[:_SHOWN_MODELS])
        said = f"it has {names}" + (" and others" if len(models) > len(near or sorted(models)[:_SHOWN_MODELS]) else "")
        return _tried(client, config, key, f"{config.model} is not in the endpoint's list: {said}")
    stated = [models[name].get(field) for field in ("max_model_len", "context_length", "context_window")]
    sizes = [size for size in stated if isinstance(size, int) and size > 0]
    if config.max_context_tokens is not None:
        sizes.append(config.max_context_tokens)
    return Found(min(sizes, default=None), _untold_sampling(config, models[name]))


def _names_in_lists(model: str) -> tuple[str, ...]:
    """Return the names under which lists have a model: its own, Gemini's and Ollama's, and that of a router's variant."""
    return (model, f"models/{model}", f"{model}:latest", model.rpartition(":")[0])


def _untold_sampling(config: OpenAIConfig, entry: Mapping[str, Any]) -> str:
    """Return what is to be said of a server that fills in what a request leaves out; empty of any other."""
    untold = [name for name in _FILLED_IN if name not in config.extra_body and (name != "top_p" or config.top_p == 1)]
    if entry.get("owned_by") != "vllm" or not untold:
        return ""
    names = ", ".join(untold)
    return (
        f"vLLM's server takes {names} from the model's generation_config where a row sets none; engine.extra_body settles "
        "them, and `--generation-config vllm` there"
    )


def goes_on(config: OpenAIConfig, key: SecretStr | None) -> bool:
    """Return whether the chat API goes on with a text: its prompt is then shorter than that of a new turn.

    A server that does not know `continue_final_message` refuses it, or does not look at it.
    """
    if config.continuation != "auto":
        return config.continuation == "final_message"
    import openai

    with made_client(client_arguments(config, key, seconds=min(60.0, config.timeout_seconds))) as client:
        try:
            options = call_options(config, key)
            as_it_is = _prompt_tokens(client, config, options, {})
            gone_on = _prompt_tokens(
                client, config, options, {"continue_final_message": True, "add_generation_prompt": False}
            )
        except (openai.OpenAIError, ValueError):
            return False
    return as_it_is is not None and gone_on is not None and gone_on < as_it_is


def _prompt_tokens(client: Any, config: OpenAIConfig, options: Any, fields: dict[str, Any]) -> int | None:
    body = {"model": config.model, **config.extra_body, "messages": list(_TRIAL_TURNS), "max_tokens": 1} | fields
    reply = client.post("/chat/completions", body=body, options=options, cast_to=object)
    usage = reply.get("usage") if isinstance(reply, dict) else None
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and tokens > 0 else None
