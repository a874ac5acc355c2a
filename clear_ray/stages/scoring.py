"""The scorer of a run, made where it is used: a caller's process imports this file and no more for it."""

from __future__ import annotations

import sys
from typing import Any

from clear_ray.tasks import load_scorer


def load_scorer_from(folder: str, name: str, **settings: Any) -> Any:
    """Load a scorer wherever this runs, from the driver's working folder at last: a worker stands in another one."""
    if folder not in sys.path:
        sys.path.append(folder)
    return load_scorer(name, **settings)
