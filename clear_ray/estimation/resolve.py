"""From the name of a head in a configuration to the head."""

from __future__ import annotations

from importlib.resources import files

from clear_ray.errors import ConfigError
from clear_ray.estimation.head import Head, load_head
from clear_ray.estimation.prior import PriorHead

SHIPPED = {"demo": "smollm2-135m-instruct"}
UNINFORMED = (None, "learn", "prior")
"""Names that name no fitted head: a run begins, and may end, with the uninformed law."""


def resolve_head(name: str | None, *, cap_tokens: int, layers: int | None = None) -> Head:
    """Return the head that a configuration names.

    Args:
        name: A folder written by `clear-ray calibrate`; `demo` for the one shipped for the embedded model; one of
            `UNINFORMED` for the uncalibrated prior.
        cap_tokens: Largest ceiling of a query, for the prior's grid.
        layers: Layers of the model that the probe is to run; a fitted head has its own number, which this may repeat.

    Raises:
        ConfigError: The folder holds no head, or one for another number of layers.
    """
    if name in UNINFORMED:
        return PriorHead(cap_tokens=cap_tokens, probe_layers=layers)
    head = load_head(_folder_of(name))
    if layers not in (None, head.card.probe_layers):
        raise ConfigError(
            f"the head was fitted on {head.card.probe_layers or 'all'} layers",
            "estimate.layers",
            str(layers),
            "Leave it out: the head says how many the probe runs. Or fit one for this number.",
        )
    return head


def _folder_of(name: str) -> str:
    if name not in SHIPPED:
        return name
    folder = files("clear_ray.estimation") / "heads" / SHIPPED[name]
    if not folder.is_dir():
        raise ConfigError("this installation lacks the shipped head", "estimate.head", name, "Install clear_ray again.")
    return str(folder)
