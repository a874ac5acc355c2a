"""How much of a model is loaded is told while it loads."""

from __future__ import annotations

import torch

from clear_ray.engine.loading import load_model
from clear_ray.engine.smollm2 import EMBEDDED_MODEL


def test_shares_rise_from_nothing_to_all() -> None:
    shares: list[float] = []
    load_model(EMBEDDED_MODEL, device=torch.device("cpu"), dtype=None, told=shares.append)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len(shares) > 100
    assert shares == sorted(shares)
