"""How an endpoint is reached: its key, and what the client is made with. No message shows a key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from clear_ray.config.engine import OpenAIConfig
from clear_ray.errors import ConfigError

if TYPE_CHECKING:
    from openai import OpenAI
    from openai._types import RequestOptions

_CONNECT_SECONDS = 15.0
_OPENAI_HOST, _OPENAI_KEY = "api.openai.com", "OPENAI_API_KEY"
_NO_KEY = "none"  # the client insists on one; servers without keys do not look at it


def key_of(config: OpenAIConfig) -> SecretStr | None:
    """Return the key of an endpoint; None if it needs none.

    Raises:
        ConfigError: It is not where the settings say, or it is none.
    """
    if config.carried_key is not None:
        return config.carried_key
    if config.key_file is not None:
        where, key = "engine.key_file", _read(config.key_file)
    elif config.key_env is not None or urlsplit(config.base_url).hostname == _OPENAI_HOST:
        name = config.key_env or _OPENAI_KEY
        where, key = f"environment variable {name}", os.environ.get(name, "").strip()
        if not key:
            raise ConfigError("it is not set, and the endpoint's key is to be in it", where, remedy=f"export {name}=…")
    else:
        return None
    # The key itself is never part of a message.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            "it holds no key: one line of printable characters", where, remedy="Put the key there, alone."
        )
    return SecretStr(key)


def client_arguments(config: OpenAIConfig, key: SecretStr | None, *, seconds: float | None = None) -> Mapping[str, Any]:
    """Return what the official client is made with; it sends no call a second time by itself.

    Args:
        config: The endpoint.
        key: Its key.
        seconds: How long an answer may take; as the settings say if not given.
    """
    import openai

    headers: dict[str, Any] = {}
    if urlsplit(config.base_url).hostname != _OPENAI_HOST:  # names of an account there are no other endpoint's business
        headers |= {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
    return {
        "base_url": config.base_url,
        "api_key": _NO_KEY if key is None else key.get_secret_value(),
        "max_retries": 0,
        "timeout": openai.Timeout(config.timeout_seconds, connect=min(_CONNECT_SECONDS, config.timeout_seconds))
        if seconds is None
        else seconds,
        "default_headers": headers,
    }


def made_client(arguments: Mapping[str, Any]) -> OpenAI:
    """Return the official client, which reads proxies and certificates from the environment as it is made.

    Raises:
        ConfigError: The environment names some that cannot be used.
    """
    import openai

    try:
        return openai.OpenAI(**arguments)
    except (ImportError, ValueError) as error:
        where = "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY"
        remedy = "Correct it, or name the endpoint's host in NO_PROXY."
        raise ConfigError("the proxy that the environment names cannot be used", where, str(error), remedy) from error
    except OSError as error:
        said = error.strerror or str(error)
        remedy = "Name a file of certificates, or none."
        raise ConfigError("the certificates cannot be read", "SSL_CERT_FILE or SSL_CERT_DIR", said, remedy) from error


def call_options(config: OpenAIConfig, key: SecretStr | None) -> RequestOptions:
    """Return what every call is made with: the key in the header that is to carry it, and in no other.

    No call is sent on to where an answer points: a key would go along, in a header of its own to whatever host that is.
    """
    import openai

    if key is not None and config.key_header.lower() == "authorization":
        return {"follow_redirects": False}
    headers: dict[str, str | openai.Omit] = {"Authorization": openai.Omit()}
    if key is not None:
        headers[config.key_header] = key.get_secret_value()
    return {"headers": headers, "follow_redirects": False}


def _read(path: str) -> str:
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"the key cannot be read: {said}", "engine.key_file", path, "Name a file with it.") from error
    if not key:
        raise ConfigError("the file is empty", "engine.key_file", path, "Put the key into it.")
    return key
