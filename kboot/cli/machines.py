"""Machines' names on the command line, and what is said about a machine."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from kboot.cli.options import config_options

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: As `kboot.supervisor.registry.DEFAULT_NAME`, which --help does not load.
DEFAULT = "default"

#: The settings that say where machines stay.
_PLACE = ("backend", "kubeconfig", "context", "namespace", "cluster_owner")

_COLOURS = {"ready": "green", "crashed": "red", "failed": "red", "off": "yellow"}


def _names(
    _context: click.Context, _parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    from kboot.supervisor.registry import known_names  # noqa: PLC0415  --help does not need it

    return [CompletionItem(name) for name in known_names() if name.startswith(begun)]


def complete_file_or_name(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """For an argument that is a file, or else a machine."""
    return [CompletionItem(begun, type="file"), *_names(context, parameter, begun)]


def name_argument(function: _Function) -> _Function:
    """The command's last argument is a machine's name, whether there is one or not.

    ``--name``, as other commands have it, is understood and not shown.
    """

    @functools.wraps(function)
    def choose_and_call(*arguments: Any, named: str | None, **options: Any) -> Any:
        if named is not None:
            if options["name"] not in {DEFAULT, named}:
                raise click.UsageError(f"two machines: {options['name']} and {named}")
            options["name"] = named
        return function(*arguments, **options)

    other = click.option(
        "-n", "--name", "named", metavar="NAME", shell_complete=_names, hidden=True
    )
    argument = click.argument("name", default=DEFAULT, metavar="[NAME]", shell_complete=_names)
    return argument(other(cast("_Function", choose_and_call)))


def machine_argument(function: _Function) -> _Function:
    """The command's last argument is the name of a machine, which is found wherever it stays."""
    return name_argument(cast("_Function", _found(function)))


def machine_option(function: _Function) -> _Function:
    """For commands with other arguments: ``--name``."""
    return click.option(
        "-n",
        "--name",
        default=DEFAULT,
        metavar="NAME",
        shell_complete=_names,
        help=f"The machine.  [default: {DEFAULT}]",
    )(cast("_Function", _found(function)))


def place_options(function: _Function) -> _Function:
    """Where a machine is looked for that has no process of ours on this host."""
    return config_options(*_PLACE)(function)


def _found(function: Callable[..., Any]) -> Callable[..., Any]:
    """Before the command comes `find_machine`."""

    @functools.wraps(function)
    def find_and_call(*arguments: Any, **options: Any) -> Any:
        place = {key: options.pop(key) for key in _PLACE}
        find_machine(options["name"], place)
        return function(*arguments, **options)

    return place_options(find_and_call)


def find_machine(name: str, place: Mapping[str, Any]) -> None:
    """A machine that stays somewhere without us gets a supervisor here."""
    from kboot.supervisor.registry import directory_of  # noqa: PLC0415  --help does not need it

    if not directory_of(name).is_alive:
        from kboot.supervisor.locate import summon  # noqa: PLC0415  most have one

        summon(name, place)


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
    if event["event"] == "notice":
        click.echo(f"  {event['text']}", err=True)
    if event["event"] == "phase":
        click.echo(
            f"  {event['phase']:<10} {event['seconds']:6.1f} s   seen by the {event['witness']}"
        )
        sys.stdout.flush()
