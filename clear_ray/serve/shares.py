"""How tenants share what a server sells.

Of a rate of r tokens a second, a tenant that asks for something has r * w / W, with w its weight and W the weights of all
that ask; none has more than its own bound, and what bounds leave goes to the others in the same way. So what a tenant
does not ask for is the others', and what it does ask for no flood takes from it.
"""

from __future__ import annotations

from collections.abc import Mapping


def shares(rate: int, weights: Mapping[str, float], bounds: Mapping[str, int | None]) -> dict[str, int]:
    """Return tokens a second of each tenant that asks, whole and at least 1 each.

    Args:
        rate: Tokens a second of all.
        weights: Weight of each tenant that asks.
        bounds: Most that each may have; None for any.
    """
    left, open_names, found = float(rate), set(weights), dict[str, float]()
    while open_names:
        total = sum(weights[name] for name in open_names)
        bounded = {name for name in open_names if (most := bounds.get(name)) and most < left * weights[name] / total}
        if not bounded:
            found |= {name: left * weights[name] / total for name in open_names}
            break
        for name in bounded:
            found[name] = float(bounds[name] or 0)
        left -= sum(found[name] for name in bounded)
        open_names -= bounded
    return {name: max(1, int(found[name] + 1e-9)) for name in weights}
