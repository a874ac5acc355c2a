"""Tells a webhook that a batch has ended, as OpenAI's do: a signed event, again and again until it is taken."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import urllib.request

from clear_ray.serve.batches.store import Notice, Store

_TIMEOUT_SECONDS, _MOST_TRIES, _MOST_PAUSE_SECONDS = 5.0, 12, 3_600.0
_ENCODED = "whsec_"


def tell_webhook(store: Store, url: str, secret: str | None) -> None:
    """Tell of every batch that has ended and is due; what does not arrive is put off."""
    for notice in store.due_notices():
        try:
            post(url, secret, notice)
        except (OSError, ValueError):
            if notice.tries + 1 >= _MOST_TRIES:
                store.drop_notice(notice)
            else:
                store.put_off(notice, min(2.0**notice.tries, _MOST_PAUSE_SECONDS))
        else:
            store.drop_notice(notice)


def post(url: str, secret: str | None, notice: Notice) -> None:
    """Send one event; the same end of a batch has the same id however often it is sent.

    Raises:
        OSError: It did not arrive, or was not taken.
    """
    event_id = f"evt_{hashlib.sha256(f'{notice.batch} {notice.status}'.encode()).hexdigest()[:32]}"
    event = {
        "id": event_id,
        "object": "event",
        "created_at": notice.ended_at,
        "type": f"batch.{notice.status}",
        "data": {"id": notice.batch},
    }
    body, now = json.dumps(event).encode(), str(int(time.time()))
    headers = {"Content-Type": "application/json", "webhook-id": event_id, "webhook-timestamp": now}
    if secret is not None:
        headers["webhook-signature"] = f"v1,{_signature(secret, f'{event_id}.{now}.'.encode() + body)}"
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - http or https, by the settings
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
        pass


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_ENCODED)) if secret.startswith(_ENCODED) else secret.encode()
    return base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
