"""The report page in a real browser: what its parser sees, what its policy stops, and how wide it becomes."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clear_ray.report.page import write_page
from clear_ray.storage import open_folder
from tests.unit.report.reading import assert_inert, read_page
from tests.unit.report.samples import HOSTILE, completions, hostile_completions, hostile_report, run_report

pytestmark = pytest.mark.slow

_ATTACK = "<script>document.title='ran'</script><img src='/beacon' onerror=\"document.title='ran'\"><p>attack</p>"
_RULER = """<!doctype html><title>unmeasured</title>
<iframe src="{page}" style="border:0;width:{width}px;height:900px"></iframe>
<script>document.querySelector('iframe').onload = event =>
  document.title = 'width ' + event.target.contentDocument.documentElement.scrollWidth;</script>"""


class Server:
    """A folder served on this machine, which remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        asked: list[str] = []

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
                asked.append(self.path)

        self.asked, self.folder = asked, folder
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pages")
    write_page(run_report(), completions=completions(), folder=open_folder(str(folder)), name="plain.html")
    write_page(
        hostile_report(), completions=hostile_completions(), folder=open_folder(str(folder)), name="hostile.html"
    )
    server = Server(folder)
    yield server
    server.close()


def dom(server: Server, name: str, tmp_path: Path) -> str:
    """Return the document as the browser sees it after everything in it that can run has run."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "this test needs a headless Chromium: `make test-slow` installs it"
    options = ("--no-sandbox", "--disable-gpu", "--headless=new", "--disable-dev-shm-usage", "--no-first-run")
    limits = (
        f"--user-data-dir={tmp_path}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--virtual-time-budget=5000",
        "--no-proxy-server",
        "--hide-scrollbars",
    )
    command = [found, *options, *limits, "--dump-dom", server.address(name)]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode("utf-8")


def title(page: str) -> str:
    matched = re.search(r"<title>(.*?)</title>", page)
    assert matched
    return matched[1]


def test_the_browser_finds_nothing_to_run_and_asks_for_nothing(server: Server, tmp_path: Path) -> None:
    server.asked.clear()
    seen = read_page(dom(server, "hostile.html", tmp_path))
    assert_inert(seen)
    assert HOSTILE[0] in seen.text
    assert [path for path in server.asked if path not in {"/hostile.html", "/favicon.ico"}] == []


def test_even_markup_that_got_in_could_not_run_or_load(server: Server, tmp_path: Path) -> None:
    page = (server.folder / "plain.html").read_text(encoding="utf-8")
    attacked = page.replace("<main>", "<main>" + _ATTACK)
    (server.folder / "attacked.html").write_text(attacked, encoding="utf-8")
    (server.folder / "bare.html").write_text(re.sub(r"<meta http-equiv=[^>]*>", "", attacked), encoding="utf-8")

    server.asked.clear()
    guarded = dom(server, "attacked.html", tmp_path / "guarded")
    assert "<p>attack</p>" in guarded
    assert title(guarded) != "ran"
    assert "/beacon" not in server.asked
    # The same attack on the page without its policy succeeds: the lines above can fail.
    assert title(dom(server, "bare.html", tmp_path / "bare")) == "ran"
    assert "/beacon" in server.asked


@pytest.mark.parametrize("name", ["plain.html", "hostile.html"])
@pytest.mark.parametrize("width", [320, 420, 1200])
def test_the_page_is_never_wider_than_its_window(server: Server, tmp_path: Path, name: str, width: int) -> None:
    (server.folder / "ruler.html").write_text(_RULER.format(page=name, width=width), encoding="utf-8")
    assert title(dom(server, "ruler.html", tmp_path)) == f"width {width}"
