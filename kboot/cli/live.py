"""What is shown while a machine boots again and again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from kboot.cli import terminal
from kboot.cli.naming import say_state
from kboot.loop import Outcome, Summary, summarise

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

#: Failures shown while the loop runs; the summary has them all.
_CLUSTERS = 8


class Screen(Protocol):
    """Who is told how the loop goes."""

    def see(self, event: dict[str, Any]) -> None:
        """The boot under way has come further."""

    def end(self, outcomes: Sequence[Outcome], kept: Path | None) -> None:
        """The last of `outcomes` has just ended; `kept` is its console, if it failed."""


@contextlib.contextmanager
def open_screen(*, quiet: bool) -> Iterator[Screen]:
    """A table that changes on a terminal, a line for each boot elsewhere; nothing if `quiet`."""
    if quiet:
        yield _Nobody()
    elif not terminal.is_terminal():
        yield _Lines()
    else:
        from rich.live import Live  # noqa: PLC0415  --help and pipes do without

        with Live(console=terminal.console(), transient=True, auto_refresh=False) as live:
            yield _Table(live)


class _Nobody:
    def see(self, event: dict[str, Any]) -> None:
        """Nothing."""

    def end(self, outcomes: Sequence[Outcome], kept: Path | None) -> None:
        """Nothing."""


class _Lines:
    def see(self, event: dict[str, Any]) -> None:
        """A line for each boot is enough."""

    def end(self, outcomes: Sequence[Outcome], kept: Path | None) -> None:
        """A line."""
        click.echo(say_boot(outcomes[-1], kept))


class _Table:
    """Lines of boots that run up the screen, and what is known so far below them."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._outcomes: Sequence[Outcome] = ()
        self._began = time.monotonic()
        self._draw("begins")

    def see(self, event: dict[str, Any]) -> None:
        """Name the phase."""
        if event["event"] == "phase":
            self._draw(f"{event['phase']} after {event['seconds']:.1f} s")

    def end(self, outcomes: Sequence[Outcome], kept: Path | None) -> None:
        """Add a line, and count."""
        from rich.text import Text  # noqa: PLC0415

        self._outcomes = outcomes
        self._live.console.print(Text.from_ansi(say_boot(outcomes[-1], kept)))
        self._draw("begins")

    def _draw(self, phase: str) -> None:
        self._live.update(self._content(phase), refresh=True)

    def _content(self, phase: str) -> Group:
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        found = summarise(self._outcomes)
        parts: list[Any] = [Text(say_rate(found), style="bold")]
        if found.clusters:
            rows = [["BOOTS", "FAILED BY", "LAST"]]
            rows += [
                [str(len(each.boots)), each.failure, str(each.boots[-1])]
                for each in found.clusters[:_CLUSTERS]
            ]
            parts.append(terminal.rich_table(rows))
        parts.append(Text(f"boot {len(self._outcomes) + 1}: {phase}", style="cyan"))
        return Group(*parts)


def say_boot(outcome: Outcome, kept: Path | None) -> str:
    """One line about one boot."""
    what = say_state("failed", outcome.failure) if outcome.failure else say_state("ready")
    where = f"  ({kept})" if kept else ""
    return f"{outcome.number:5}  {outcome.duration_s:6.1f} s  {what}{where}"


def say_rate(found: Summary) -> str:
    """How often boots fail, as far as that is known."""
    if not found.boots:
        return "no boot so far"
    boots = "1 boot" if found.boots == 1 else f"{found.boots} boots"
    return (
        f"{boots}, {found.failures} failed: {100 * found.rate:.1f} %, "
        f"with 95 % confidence between {100 * found.low:.1f} and {100 * found.high:.1f} %"
    )
