"""``kboot put`` and ``kboot get``: files into a machine's guest, and out of it."""

from __future__ import annotations

from pathlib import Path

import click

from kboot.cli.naming import machine_option
from kboot.cli.progress import transfers

_TIMEOUT_S = 600.0
#: A serial line is slow.
_WORTH_TELLING = 100_000


@click.command()
@click.argument("local", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("remote")
@machine_option
def put(*, local: Path, remote: str, name: str) -> None:
    """Copy the file LOCAL into the guest, as REMOTE."""
    from kboot.machines.client import ask  # noqa: PLC0415  --help does not need it

    with transfers(quiet=False, least_size=_WORTH_TELLING) as show:
        ask(
            name,
            "put",
            on_event=show,
            local=str(local.absolute()),
            remote=remote,
            timeout_s=_TIMEOUT_S,
        )


@click.command()
@click.argument("remote")
@click.argument("local", type=click.Path(path_type=Path, dir_okay=False))
@machine_option
def get(*, remote: str, local: Path, name: str) -> None:
    """Copy the file REMOTE out of the guest, to LOCAL."""
    from kboot.machines.client import ask  # noqa: PLC0415  --help does not need it

    ask(name, "get", local=str(local.absolute()), remote=remote, timeout_s=_TIMEOUT_S)
