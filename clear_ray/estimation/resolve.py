"""From the name of a head in a configuration to the head."""

from __future__ import annotations

from importlib.resources import files

from clear_ray.errors import ConfigError
from clear_ray.estimation.head import Head, load_head
from clear_ray.estimation.prior import PriorHead

SHIPPED = {"demo": "smollm2-135m-instruct"}


def resolve_head(name: str | None, *, cap_tokens: int) -> Head:
    """Return the head that a configuration names.

    Args:
        name: A folder written by `clear-ray calibrate`; `demo` for the one shipped for the embedded model; None for the
            uncalibrated prior.
        cap_tokens: Largest ceiling of a query, for the prior's grid.

    Raises:
        ConfigError: The folder holds no head.
    """
    if name is None:
        return PriorHead(cap_tokens=cap_tokens)
    if name not in SHIPPED:
        return load_head(name)
    folder = files("clear_ray.estimation") / "heads" / SHIPPED[name]
    if not folder.is_dir():
        raise ConfigError("this installation lacks the shipped head", "estimate.head", name, "Install clear_ray again.")
    return load_head(str(folder))
