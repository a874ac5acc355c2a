"""What a message may show of text that came from outside: nothing that steers a terminal, and no keys."""

from __future__ import annotations

import re

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SCHEME = re.compile(r".*?://|[A-Za-z][A-Za-z0-9+.-]+:/?", re.DOTALL)
# A key may hold a slash or a question mark: what follows a colon and is no port belongs to the user, up to the last @.
_USER = re.compile(r"\A(?:[^/?]*@|[^/?:]*:(?!\d*(?:[/?]|\Z)).*@)", re.DOTALL)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]*")


def printable(text: str, *, most: int = 200, keep: str = "") -> str:
    """Return `text` on one line with nothing in it that steers a terminal, cut to `most` characters.

    Control characters, escape sequences, line ends, direction overrides and lone surrogates are each replaced.

    Args:
        text: Anything that came from outside: an id, a path, an error.
        most: Characters kept; a longer text ends in an ellipsis.
        keep: Unprintable characters that may stay, such as a line end.
    """
    cut = text if len(text) <= most else text[: max(most - 1, 0)] + "…"
    return "".join(letter if letter.isprintable() or letter in keep else _REPLACEMENT for letter in cut)


def without_secrets(location: str) -> str:
    """Return a URI without user, password and query, which may hold keys; what messages may show. A path stays as it is."""
    scheme = _SCHEME.match(location)
    if scheme is None:
        return location
    return scheme[0] + _USER.sub("", location[scheme.end() :]).partition("?")[0]


def without_secrets_inside(text: str) -> str:
    """Return a text, such as a library's error, with every URI in it as `without_secrets` returns it."""
    return _URI.sub(lambda uri: without_secrets(uri[0]), text) if "://" in text else text
