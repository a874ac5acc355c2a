from __future__ import annotations

import errno
import io
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import TextIO

import pytest
from rich.console import Console

from clear_ray.report.live import Display, JsonDisplay, LineDisplay, QuietDisplay, TableDisplay, choose_display
from clear_ray.report.pace import TokenPace
from tests.unit.report.samples import HOSTILE, snapshot


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Gone(Terminal):
    """A pipe whose reader went away, a disk or a terminal that fails, after some writes."""

    def __init__(self, error: Exception, after: int = 0) -> None:
        super().__init__()
        self.error, self.left = error, after

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_the_display_fits_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_display(Terminal(), as_json=False), TableDisplay)
    assert isinstance(choose_display(Terminal(), as_json=True), JsonDisplay)
    assert isinstance(choose_display(io.StringIO(), as_json=False), LineDisplay)
    assert isinstance(choose_display(io.StringIO(), as_json=True, is_quiet=True), QuietDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(choose_display(Terminal(), as_json=False), LineDisplay)


def test_lines_come_every_five_seconds_and_at_every_change() -> None:
    stream = io.StringIO()
    display = choose_display(stream, as_json=False)
    for seconds in range(13):
        display.update(snapshot(seconds=float(seconds)))
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["0.0", "5.0", "10"]
    display.update(snapshot(seconds=12.2, stage="price"))
    display.update(snapshot(seconds=12.3, round=2))
    display.update(snapshot(seconds=12.4, round=2))
    display.close()
    display.close()
    assert [line.split()[0] for line in stream.getvalue().splitlines()[3:]] == ["12", "12", "12"]


def test_from_the_first_second_on_it_says_what_is_waited_for() -> None:
    stream = io.StringIO()
    display = choose_display(stream, as_json=False)
    nothing = {"stage": "start", "round": 0, "queries": 0, "probed": 0, "granted": 0, "ended": 0, "seconds": 0.1}
    display.update(snapshot(**nothing, waiting_for="starting Ray"))
    display.update(snapshot(**nothing | {"stage": "probe", "queries": 199}, waiting_for="loading the model"))
    # Another percent is no line of its own: a log would have a hundred of them.
    loading = nothing | {"stage": "probe", "queries": 199, "waiting_for": "loading the model"}
    display.update(snapshot(**loading, loaded=0.3))
    display.update(snapshot(**loading | {"seconds": 5.2}, loaded=0.618))
    display.update(snapshot(**nothing | {"stage": "probe", "queries": 199}))
    first, second, later, third = stream.getvalue().splitlines()
    assert "start: starting Ray" in first
    assert "not read yet" in first
    assert "0 of 0" not in first
    assert "probe: loading the model" in second
    assert "probe: loading the model 62 %" in later
    assert "probe | queries 0 of 199 read" in third


def test_lines_hold_no_escape_sequences_and_fit_the_encoding_of_the_stream() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    display = choose_display(stream, as_json=False)
    display.update(snapshot(recent=HOSTILE, shadow_price=None))
    display.close()
    assert raw.getvalue().decode("ascii").rstrip("\n").isprintable()


def test_every_snapshot_is_one_json_object_and_numbers_that_json_lacks_are_null() -> None:
    stream = io.StringIO()
    display = choose_display(stream, as_json=True)
    display.update(snapshot(seconds=10.0, spent_tokens=0, recent=HOSTILE[:-2]))
    display.update(snapshot(seconds=20.0, shadow_price=math.inf))
    display.close()
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().splitlines())
    assert first["event"] == second["event"] == "progress"
    assert first["recent"] == list(HOSTILE[:-2])
    assert first["eta_seconds"] is None
    assert second["shadow_price"] is None
    assert second["tokens_per_second"] == pytest.approx(201.0)


def test_the_table_shows_progress_and_the_queries_that_ended() -> None:
    stream = Terminal()
    display = TableDisplay(Console(file=stream, force_terminal=True, width=100, color_system=None))
    display.update(snapshot(seconds=10.0, spent_tokens=0))
    display.update(snapshot(seconds=20.0))
    display.close()
    display.update(snapshot(seconds=30.0, stage="write"))
    shown = stream.getvalue()
    for text in ("generate, round 1", "41 of 199 done, 51 under way", "2,010 of 6,368 spent, 880 reserved", "ETA 22 s"):
        assert text in shown
    assert "14 of 41 correct" in shown
    assert "chain_sum-0041 stopped after 38 of 52 tokens" in shown
    assert "write" not in shown
    assert shown.endswith("\x1b[?25h")


def test_bars_are_full_only_when_all_is_done() -> None:
    def bars(**changes: int) -> list[str]:
        stream = Terminal()
        display = TableDisplay(Console(file=stream, force_terminal=True, width=100, color_system=None))
        display.update(snapshot(recent=(), **changes))
        display.close()
        frame = stream.getvalue().rpartition("generate, round 1")[2]
        return [line.split("  ")[1].strip() for line in frame.splitlines()[1:3]]

    almost = bars(ended=198, granted=198, spent_tokens=6_367, reserved_tokens=1)
    assert almost == ["█" * 31 + "░", "█" * 31 + "▒"]
    assert bars(ended=199, granted=199, spent_tokens=6_368, reserved_tokens=0) == ["█" * 32, "█" * 32]
    assert bars(queries=0, granted=1, ended=0, budget_tokens=0, spent_tokens=0) == ["░" * 32, "░" * 32]


def test_a_hostile_id_moves_no_cursor() -> None:
    stream = Terminal()
    display = TableDisplay(Console(file=stream, force_terminal=True, width=100, color_system=None))
    display.update(snapshot(recent=("\x1b]0;title\x07\x1b[2J[bold red]x[/]",)))
    display.close()
    assert "\x1b]0;" not in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
    assert "[bold red]x[/]" in stream.getvalue()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.EIO, "Input/output error"), ValueError("closed")])
@pytest.mark.parametrize("make", [JsonDisplay, LineDisplay, partial(choose_display, as_json=False)])
def test_a_stream_that_takes_no_more_does_not_end_the_run(
    make: Callable[[TextIO], Display], error: Exception, after: int
) -> None:
    stream, out, err = Gone(error, after), sys.stdout, sys.stderr
    display = make(stream)
    for number in range(4):
        display.update(snapshot(stage=f"stage {number}"))
    display.close()
    display.close()
    assert stream.left <= 0
    assert (sys.stdout, sys.stderr) == (out, err), "what the table had taken over is given back"


def test_a_closed_stream_is_shown_nothing() -> None:
    assert isinstance(choose_display(None, as_json=False), QuietDisplay)


def test_time_outside_the_generate_stage_does_not_blur_the_pace() -> None:
    pace = TokenPace()
    pace.observe(snapshot(stage="probe", seconds=0.0, spent_tokens=0))
    pace.observe(snapshot(seconds=50.0, spent_tokens=500))  # resumed: these tokens are of an earlier process
    assert pace.tokens_per_second is None
    assert pace.eta_seconds is None
    pace.observe(snapshot(stage="price", seconds=60.0, spent_tokens=1_500))
    pace.observe(snapshot(seconds=90.0, spent_tokens=1_500))
    assert pace.tokens_per_second == pytest.approx(100.0)
    assert pace.eta_seconds == pytest.approx((6_368 - 1_500) / 100.0)


def test_without_a_price_the_queries_that_remain_set_the_time_left() -> None:
    pace = TokenPace()
    pace.observe(snapshot(seconds=0.0, spent_tokens=0, ended=0, shadow_price=0.0, budget_tokens=10**6))
    assert pace.eta_seconds is None
    pace.observe(
        snapshot(seconds=10.0, spent_tokens=1_000, ended=50, queries=200, shadow_price=0.0, budget_tokens=10**6)
    )
    assert pace.eta_seconds == pytest.approx(150 * 20 / 100.0)
    pace.observe(snapshot(stage="write", seconds=12.0, spent_tokens=1_000))
    assert pace.eta_seconds is None


def test_a_run_that_asks_again_says_how_often_and_what_it_solved() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream)
    display.update(snapshot())
    display.update(snapshot(seconds=30.0, begun=120, again=28, solved_by_attempt=(31, 0, 4)))
    display.update(snapshot(seconds=40.0, begun=130, again=38))
    once, solved, votes = stream.getvalue().splitlines()
    assert "attempts" not in once
    assert "| attempts 120, 28 of them again; solved 31 by attempt 1, 4 by attempt 3 |" in solved
    assert "| attempts 130, 38 of them again |" in votes
