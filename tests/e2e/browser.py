"""A headless Chromium that tests drive: what it evaluates, what it shows, and how it looks."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_OPTIONS = ("--no-sandbox", "--disable-gpu", "--headless=new", "--disable-dev-shm-usage", "--no-first-run")
_NETWORK = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-proxy-server", "--hide-scrollbars")
_SECONDS = 120.0


class Page:
    """One page of a browser; dialogs are accepted.

    Args:
        socket: The page's end of the DevTools protocol.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.call("Page.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of the protocol and return what it gives."""
        self._number += 1
        mine = self._number
        self._socket.send(json.dumps({"id": mine, "method": method, "params": arguments}))
        while True:
            told = json.loads(self._socket.recv(timeout=_SECONDS))
            if told.get("method") == "Page.javascriptDialogOpening":
                accept = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                self._socket.send(json.dumps(accept))
            if told.get("id") == mine:
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result

    def open(self, address: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Return what an expression gives."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression holds."""
        end = time.monotonic() + _SECONDS
        while not self.value(expression):
            assert time.monotonic() < end, f"{expression} never held; {self.value('document.body.innerText')}"
            time.sleep(0.1)

    def resize(self, width: int, height: int) -> None:
        """Be so wide and high."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def shoot(self, path: Path) -> None:
        """Keep how it looks."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browsed(folder: Path) -> Iterator[Page]:
    """Yield the page of a browser that keeps its profile in `folder`."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "this test needs a headless Chromium"
    command = [found, *_OPTIONS, *_NETWORK, f"--user-data-dir={folder}", "--remote-debugging-port=0", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            port, end = folder / "DevToolsActivePort", time.monotonic() + _SECONDS
            while not port.exists() or not port.read_text().strip():
                assert time.monotonic() < end, "the browser did not start"
                time.sleep(0.1)
            where = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
            pages = json.loads(urllib.request.urlopen(where, timeout=_SECONDS).read())
            address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
            with connect(address, max_size=None) as socket:
                yield Page(socket)
        finally:
            browser.terminate()
