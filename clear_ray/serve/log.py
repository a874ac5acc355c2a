"""What a server writes into its replicas' logs: JSON lines with numbers and names, and never a prompt or an answer.

Serve keeps them in Ray's folder, under `logs/serve`; the fields of one event are under `clear_ray`.
"""

from __future__ import annotations

import logging
from typing import Any, Final

LOGGING: Final[dict[str, Any]] = {"encoding": "JSON"}
"""How replicas write their logs."""
WITHOUT_CALLS: Final = LOGGING | {"enable_access_log": False}
"""The same of replicas that only others of ours call: what those wrote of a request says it all."""
_LOG = logging.getLogger("ray.serve")


def log_event(event: str, **fields: Any) -> None:
    """Write an event.

    Args:
        event: Its name.
        fields: Numbers and names.
    """
    _LOG.info(event, extra={"clear_ray": fields})
