"""What a terminal gets that a file does not: the only home of rich, loaded where it is used.

rich knows the terminal: its width, its colours, and NO_COLOR (no-color.org).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table


def is_terminal(*, err: bool = False) -> bool:
    """Whether somebody looks at standard output, or standard error."""
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
