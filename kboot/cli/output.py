"""What commands print: tables, bars and colours on a terminal, plain lines elsewhere, JSON.

The only home of rich, which is loaded where it is used.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table


def is_terminal(*, err: bool = False) -> bool:
    """Whether standard output, or standard error, is a terminal."""
    return (sys.stderr if err else sys.stdout).isatty()


def console(*, err: bool = False) -> Console:
    """Standard output, or standard error, as rich sees it."""
    from rich.console import Console  # noqa: PLC0415  60 ms, which --help does without

    return Console(stderr=err, highlight=False, soft_wrap=False)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows, the first of which are the columns' names; styled by `click.style`, or not.

    On a terminal they fit its width; elsewhere they are lines as long as it takes.
    """
    if is_terminal():
        console().print(rich_table(rows))
    else:
        click.echo("\n".join(plain_table(rows)))


def rich_table(rows: Sequence[Sequence[str]]) -> Table:
    """The same for rich to print."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name)
    for row in rows[1:]:
        table.add_row(*(Text.from_ansi(cell) for cell in row))
    return table


def plain_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of even width."""
    plain = [[click.unstyle(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in plain
    ]


def progress_bars() -> Progress:
    """Bars on standard error, with rate and time left; gone when they are done."""
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=console(err=True),
        transient=True,
    )


OnEvent = Callable[[dict[str, Any]], None]

#: Smaller files are done before anybody has read about them.
_WORTH_TELLING = 1_000_000
#: Between two lines about one file, where there is no terminal.
_LINE_S = 5.0


@contextlib.contextmanager
def transfers(*, quiet: bool, least_size: int = _WORTH_TELLING) -> Iterator[OnEvent]:
    """Show the events of a transfer on standard error: bars on a terminal, lines elsewhere.

    Files smaller than `least_size` are not shown.
    """
    if quiet:
        yield lambda _event: None
    elif is_terminal(err=True):
        with progress_bars() as bars:
            tasks: dict[tuple[str, str], Any] = {}

            def show(event: dict[str, Any]) -> None:
                if not _is_shown(event, least_size):
                    return
                key = (event["file"], event["step"])
                if key not in tasks:
                    tasks[key] = bars.add_task(f"{event['step']} {Path(event['file']).name}")
                bars.update(tasks[key], completed=event["done"], total=event["size"])

            yield show
    else:
        yield _Lines(least_size).show


def _is_shown(event: dict[str, Any], least_size: int) -> bool:
    return event["event"] == "progress" and int(event["size"]) >= least_size


class _Lines:
    """A line when a file is done, and every few seconds until then. Files may come all at once."""

    def __init__(self, least_size: int) -> None:
        self._least_size = least_size
        #: When each file and step began, and when its next line is due.
        self._began: dict[tuple[str, str], float] = {}
        self._next: dict[tuple[str, str], float] = {}

    def show(self, event: dict[str, Any]) -> None:
        """One event."""
        if not _is_shown(event, self._least_size):
            return
        now = time.monotonic()
        key, done, size = (event["file"], event["step"]), event["done"], event["size"]
        began = self._began.setdefault(key, now)
        name = f"{event['step']} {Path(event['file']).name}"
        if done < size and now >= self._next.setdefault(key, now + _LINE_S):
            self._next[key] = now + _LINE_S
            rate = done / (now - began)
            left = f", {(size - done) / rate:.0f} s left" if rate else ""
            click.echo(
                f"  {name}: {100 * done // size} % of {say_size(size)}, {say_size(rate)}/s{left}",
                err=True,
            )
        elif done == size and done:
            click.echo(f"  {name}: {say_size(size)} in {now - began:.1f} s", err=True)


def say_size(count: float) -> str:
    """Bytes for people: ``12.3 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def print_json(value: object) -> None:
    """Print a value for programs."""
    click.echo(json.dumps(value, indent=2))


_COLOURS = {"ready": "green", "crashed": "red", "failed": "red", "off": "yellow"}


def say_state(state: str, what: str = "") -> str:
    """A machine's state, coloured."""
    text = click.style(state, fg=_COLOURS.get(state, "cyan"), bold=True)
    return f"{text}: {what}" if what else text


def say_phase(phase: str, seconds: float, witness: str) -> str:
    """A line about a phase that a boot has reached, `seconds` after the previous one."""
    return f"  {phase:<10} {seconds:z6.1f} s   seen by the {witness}"


def show_event(event: dict[str, Any]) -> None:
    """A line for an event of a machine that boots."""
    if event["event"] == "notice":
        click.echo(f"  {event['text']}", err=True)
    if event["event"] == "phase":
        what = event.get("script") or event["phase"]
        click.echo(say_phase(what, event["seconds"], event["witness"]))
        sys.stdout.flush()
