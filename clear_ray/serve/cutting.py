"""Where an answer that is still being written may be shown, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence

_BROKEN_CHARACTER = "\ufffd"  # what a tokenizer makes of bytes of which some are still to come


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """Return the text before the first stop string, or None if there is none."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None


def showable(text: str, stops: Sequence[str]) -> str:
    """Return the part of an unfinished text that later tokens can neither change nor cut away.

    Held back are the beginning of what may become a stop string, and characters whose last bytes are missing.
    """
    text = text.rstrip(_BROKEN_CHARACTER)
    longest = max(map(len, stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return text[:-length]
    return text
