"""Machines' names on the command line, and what is said about a machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: As `kboot.machines.places.DEFAULT_NAME`, which --help does not load.
DEFAULT = "default"

_COLOURS = {"ready": "green", "crashed": "red", "failed": "red", "off": "yellow"}


def _names(
    _context: click.Context, _parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    from kboot.machines.places import places  # noqa: PLC0415  --help does not need it

    return [CompletionItem(place.name) for place in places() if place.name.startswith(begun)]


def complete_file_or_name(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """For an argument that is a file, or else a machine."""
    return [CompletionItem(begun, type="file"), *_names(context, parameter, begun)]


def machine_argument(function: _Function) -> _Function:
    """The command's last argument is a machine's name."""
    return click.argument("name", default=DEFAULT, metavar="[NAME]", shell_complete=_names)(
        function
    )


def machine_option(function: _Function) -> _Function:
    """For commands with other arguments: ``--name``."""
    return click.option(
        "-n",
        "--name",
        default=DEFAULT,
        metavar="NAME",
        shell_complete=_names,
        help=f"The machine.  [default: {DEFAULT}]",
    )(function)


def json_option(function: _Function) -> _Function:
    """``--json``: for programs."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def print_json(value: object) -> None:
    """Print a value for programs."""
    click.echo(json.dumps(value, indent=2))


def say_state(state: str, what: str = "") -> str:
    """A machine's state, coloured."""
    text = click.style(state, fg=_COLOURS.get(state, "cyan"), bold=True)
    return f"{text}: {what}" if what else text


def show_event(event: dict[str, Any]) -> None:
    """A line for a milestone."""
    if event["event"] == "phase":
        click.echo(
            f"  {event['phase']:<10} {event['seconds']:6.1f} s   seen by the {event['witness']}"
        )
        sys.stdout.flush()
