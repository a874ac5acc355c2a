"""What a running batch shows: a live table on a terminal, plain lines elsewhere, JSON lines for machines.

A display has no clock of its own: every time comes from the snapshots, so a display shows the same for the same run.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Protocol, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from clear_ray.redaction import printable
from clear_ray.report.pace import TokenPace
from clear_ray.report.summary import ProgressSnapshot
from clear_ray.report.wording import LABELS, UNKNOWN, amount, answers, count, duration, per_thousand, priced, solved_by

_LINE_SECONDS = 5.0
_RECENT_LINES = 6


class Display(Protocol):
    """Shows the progress of one run."""

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Show the state of the run at one moment; snapshots come in order of time."""

    def close(self) -> None:
        """Show what is still unshown and leave the stream usable; closing twice changes nothing."""


def choose_display(stream: TextIO | None, *, as_json: bool, is_quiet: bool = False) -> Display:
    """Return the display that fits a stream.

    Args:
        stream: Where progress goes, usually standard error; None, which Python has for a closed one, shows nothing.
        as_json: One JSON object a line, for machines.
        is_quiet: Nothing at all; stronger than `as_json`.

    Returns:
        A live table if the stream is a terminal that can move its cursor, plain lines if not.
    """
    if is_quiet or stream is None:
        return QuietDisplay()
    if as_json:
        return JsonDisplay(stream)
    console = _Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return TableDisplay(console)
    return LineDisplay(stream)


class QuietDisplay:
    """Shows nothing."""

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""


class _Writer:
    """Whole lines to a stream, flushed. One that takes no more, or is closed, does not end a run that it only watched."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    def write(self, line: str) -> None:
        if self._stream is None:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            self._stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None


class JsonDisplay:
    """One JSON object for each snapshot: its fields, `event`, `tokens_per_second` and `eta_seconds`."""

    def __init__(self, stream: TextIO) -> None:
        self._writer, self._pace = _Writer(stream), TokenPace()

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Write the snapshot at once; a number that JSON cannot hold is null."""
        self._pace.observe(snapshot)
        fields = json.loads(snapshot.model_dump_json())
        pace = {"tokens_per_second": self._pace.tokens_per_second, "eta_seconds": self._pace.eta_seconds}
        self._writer.write(json.dumps({"event": "progress", **fields, **pace}))

    def close(self) -> None:
        """Do nothing: every snapshot has been written."""


class LineDisplay:
    """A plain line every few seconds and at every change of stage or round, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._writer, self._pace = _Writer(stream), TokenPace()
        self._shown: ProgressSnapshot | None = None
        self._held: ProgressSnapshot | None = None

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Write a line if one is due, else keep the snapshot in case it is the last."""
        self._pace.observe(snapshot)
        shown, self._held = self._shown, snapshot
        if (
            shown is None
            or (shown.stage, shown.round, shown.waiting_for) != (snapshot.stage, snapshot.round, snapshot.waiting_for)
            or snapshot.seconds - shown.seconds >= _LINE_SECONDS
            or shown.warning != snapshot.warning
        ):
            self._show(snapshot)

    def close(self) -> None:
        """Write the last snapshot if it has not been shown."""
        if self._held is not None:
            self._show(self._held)

    def _show(self, snapshot: ProgressSnapshot) -> None:
        self._writer.write(_line(snapshot, self._pace))
        if snapshot.warning and (self._shown is None or self._shown.warning != snapshot.warning):
            self._writer.write(f"warning: {printable(snapshot.warning, most=400)}")
        self._shown, self._held = snapshot, None


class _Console(Console):
    """A console that says when its reader went away; rich's own ends the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class TableDisplay:
    """A table that is redrawn in place, with the last queries to end streaming by beneath it.

    A terminal that went away does not end the run.
    """

    def __init__(self, console: Console) -> None:
        self._pace = TokenPace()
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._is_closed = False

    def update(self, snapshot: ProgressSnapshot) -> None:
        """Redraw the table."""
        if self._is_closed:
            return
        self._pace.observe(snapshot)
        try:
            if not self._live.is_started:
                self._live.start()
            self._live.update(_table(snapshot, self._pace), refresh=True)
        except (OSError, ValueError):
            self._live.console.quiet = True
            self.close()

    def close(self) -> None:
        """Leave the last table standing and give the cursor back."""
        self._is_closed = True
        with suppress(OSError, ValueError, IndexError):  # the last is rich's, of a table that never stood
            self._live.stop()


def _stage(snapshot: ProgressSnapshot) -> str:
    stage = f"{snapshot.stage}, round {snapshot.round}" if snapshot.round else snapshot.stage
    if not snapshot.waiting_for:
        return stage
    loaded = "" if snapshot.loaded is None else f" {100 * snapshot.loaded:.0f} %"
    return f"{stage}: {snapshot.waiting_for}{loaded}"


def _queries(snapshot: ProgressSnapshot) -> str:
    if not snapshot.queries:
        return "not read yet"
    if not snapshot.granted:
        return f"{count(snapshot.probed)} of {count(snapshot.queries)} read"
    running = snapshot.granted - snapshot.ended
    done = f"{count(snapshot.ended)} of {count(snapshot.queries)} done, {count(running)} under way"
    return done if snapshot.probed >= snapshot.queries else f"{done}, {count(snapshot.probed)} read"


def _tokens(snapshot: ProgressSnapshot) -> str:
    numbers = (snapshot.spent_tokens, snapshot.budget_tokens, snapshot.reserved_tokens)
    spent, budget, reserved = (amount(number, snapshot.unit).removesuffix(" tokens") for number in numbers)
    return f"{spent} of {budget} spent, {reserved} reserved"


def _price(snapshot: ProgressSnapshot) -> str:
    if snapshot.shadow_price is None:
        return UNKNOWN
    if snapshot.unit != "tokens":
        return priced(snapshot.shadow_price, snapshot.unit)
    return f"{per_thousand(snapshot.shadow_price)} correct answers per 1,000 tokens"


def _correct(snapshot: ProgressSnapshot) -> str:
    if snapshot.correct is None:
        return f"{count(snapshot.ended)} so far"
    return f"{answers(snapshot.correct)} of {count(snapshot.scored)} correct so far"


def _attempts(snapshot: ProgressSnapshot) -> str:
    """Return how often queries were asked; empty where each is asked once."""
    if not snapshot.begun:
        return ""
    solved = solved_by(snapshot.solved_by_attempt)
    return f"{count(snapshot.begun)}, {count(snapshot.again)} of them again" + (f"; solved {solved}" if solved else "")


def _speed(pace: TokenPace, unit: str) -> str:
    rate = pace.tokens_per_second
    if rate is not None and unit != "tokens":
        return f"{amount(60 * rate, unit)} a minute"
    return UNKNOWN if rate is None else f"{rate:,.0f} tokens/s" if rate >= 10 else f"{rate:.1f} tokens/s"


def _line(snapshot: ProgressSnapshot, pace: TokenPace) -> str:
    learning = (f"learning from {LABELS.get(snapshot.label, snapshot.label)}",) if snapshot.label else ()
    parts = (
        f"{duration(snapshot.seconds):>12}  {_stage(snapshot)}",
        f"queries {_queries(snapshot)}",
        f"{'tokens' if snapshot.unit == 'tokens' else 'budget'} {_tokens(snapshot)}",
        f"price {_price(snapshot)}",
        f"answers {_correct(snapshot)}",
        *([f"attempts {asked}"] if (asked := _attempts(snapshot)) else []),
        _speed(pace, snapshot.unit),
        f"ETA {duration(pace.eta_seconds)}",
        *learning,
    )
    return " | ".join(parts)


class _Bar:
    """A bar of two parts, what is done and what is held, as wide as it is given room."""

    def __init__(self, done: float, held: float, total: float) -> None:
        self._done, self._held, self._total = done, held, total

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(8, 32)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, 32)
        scale = width / self._total if self._total > 0 else 0.0
        # Floors: a bar is full only when all of it is done.
        done = min(int(self._done * scale), width)
        held = min(int((self._done + self._held) * scale), width) - done
        full, half, empty = "#=." if options.ascii_only else "█▒░"
        yield Segment(full * done, Style(color="cyan"))
        yield Segment(half * held, Style(color="cyan"))
        yield Segment(empty * (width - done - held), Style(dim=True))


def _table(snapshot: ProgressSnapshot, pace: TokenPace) -> Group:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    has_grants = snapshot.granted > 0
    running = snapshot.granted - snapshot.ended if has_grants else 0
    queries = _Bar(snapshot.ended if has_grants else snapshot.probed, running, snapshot.queries)
    tokens = _Bar(snapshot.spent_tokens, snapshot.reserved_tokens, snapshot.budget_tokens)
    grid.add_row("queries", queries, Text(_queries(snapshot)))
    grid.add_row("tokens" if snapshot.unit == "tokens" else "budget", tokens, Text(_tokens(snapshot)))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(no_wrap=True, overflow="ellipsis")
    facts.add_row("price  ", Text(_price(snapshot)))
    facts.add_row("answers", Text(_correct(snapshot)))
    if asked := _attempts(snapshot):
        facts.add_row("attempts", Text(asked))
    facts.add_row("speed  ", Text(f"{_speed(pace, snapshot.unit)}, ETA {duration(pace.eta_seconds)}"))
    if snapshot.label:
        facts.add_row("learning", Text(f"from {LABELS.get(snapshot.label, snapshot.label)}"))
    title = Text.assemble((_stage(snapshot), "bold"), (f"  {duration(snapshot.seconds)}", "dim"))
    lines: list[RenderableType] = [title, grid, facts]
    if snapshot.warning:
        lines.append(Text(f"warning: {printable(snapshot.warning, most=400)}", style="yellow"))
    if snapshot.recent:
        lines.append(Rule(style="dim"))
    lines += [_recent(line) for line in snapshot.recent[-_RECENT_LINES:]]
    return Group(*lines)


def _recent(line: str) -> Text:
    return Text(printable(line), style="dim", no_wrap=True, overflow="ellipsis")
