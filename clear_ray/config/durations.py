"""A span of time as people write it: `90s`, `45m`, `2h` or `1h30m`."""

from __future__ import annotations

import re

MOST_SECONDS = 10_000_000
"""About four months."""

_TIME = re.compile(r"\s*(?:(\d+(?:\.\d+)?)\s*h\s*)?(?:(\d+(?:\.\d+)?)\s*m\s*)?(?:(\d+(?:\.\d+)?)\s*s\s*)?", re.ASCII)


def seconds_of(duration: str) -> float:
    """Return the seconds of a duration such as `90s`, `45m`, `2h` or `1h30m`.

    Raises:
        ValueError: It cannot be read, is not above 0, or is longer than `MOST_SECONDS`.
    """
    matched = _TIME.fullmatch(duration)
    hours, minutes, rest = (float(part or 0) for part in matched.groups()) if matched else (0.0, 0.0, 0.0)
    seconds = 3600 * hours + 60 * minutes + rest
    if not 0 < seconds <= MOST_SECONDS:
        raise ValueError(
            "a duration is written such as 90s, 45m, 2h or 1h30m, is above 0 and at most 10,000,000 seconds"
        )
    return seconds
