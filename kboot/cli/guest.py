"""``kboot exec``, ``put``, ``get``, ``ssh``: commands and files in a machine's guest."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from kboot.cli.machines import json_option, machine_argument, machine_option, print_json
from kboot.cli.terminal import transfers
from kboot.log import logger


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="""\
\b
Examples:
  kboot run -- uname -a
  kboot run 'dmesg | tail'

Exits as the command did, or with 3 if the host failed.
""",
)
@machine_option
@click.option("--timeout", "timeout_s", default=60.0, metavar="SECONDS", help="[default: 60]")
@json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(
    context: click.Context, /, *, name: str, timeout_s: float, as_json: bool, command: tuple[str]
) -> None:
    """Run COMMAND in the guest; one word is given to its shell as it is."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    words = command[0] if len(command) == 1 else shlex.join(command)
    result = ask(name, "run", command=words, timeout_s=timeout_s)
    if as_json:
        print_json(result)
    else:
        for stream, text in ((sys.stdout, result["stdout"]), (sys.stderr, result["stderr"])):
            stream.buffer.write(text.encode("latin-1"))
            stream.flush()
    context.exit(result["exit_status"])


_TIMEOUT_S = 600.0
#: A serial line is slow.
_WORTH_TELLING = 100_000


@click.command()
@click.argument("local", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("remote")
@machine_option
def put(*, local: Path, remote: str, name: str) -> None:
    """Copy the file LOCAL into the guest, as REMOTE."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

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
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    ask(name, "get", local=str(local.absolute()), remote=remote, timeout_s=_TIMEOUT_S)


_COMMAND = "kboot.command"


class _BehindDashes(click.Command):
    """A command whose arguments behind ``--`` are another program's, whatever stands before."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Part the two."""
        ours, theirs = args, []
        if "--" in args:
            at = args.index("--")
            ours, theirs = args[:at], args[at + 1 :]
        ctx.meta[_COMMAND] = theirs
        return super().parse_args(ctx, ours)


@click.command(
    cls=_BehindDashes,
    options_metavar="[OPTIONS]",
    epilog="""\
\b
Examples:
  kboot ssh
  kboot ssh lab -- journalctl -f
  kboot ssh lab -- -L 8080:localhost:80

The guest needs an ssh server, and the machine to be started for it: kboot up --channel ssh. It
knows kboot's key. Exits as ssh does.
""",
)
@machine_argument
@click.pass_context
def ssh(context: click.Context, /, *, name: str) -> None:
    """Log in to the guest of the machine NAME by ssh; what follows -- is a command, or options."""
    from kboot.process import find_program  # noqa: PLC0415
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    door = ask(name, "ssh")
    argv = [
        find_program("ssh"),
        # Neither the user's settings nor their list of hosts: this one is new at every boot.
        *("-F", "none"),
        *("-o", "StrictHostKeyChecking=no"),
        *("-o", "UserKnownHostsFile=/dev/null"),
        *("-o", "LogLevel=ERROR"),
        *("-o", "IdentitiesOnly=yes"),
        *("-i", door["key"]),
        *("-p", str(door["port"])),
        *_with_host(f"{door['user']}@{door['host']}", context.meta[_COMMAND]),
    ]
    logger.debug("%s", shlex.join(argv))
    os.execv(argv[0], argv)  # noqa: S606  no shell is wanted


def _with_host(host: str, words: list[str]) -> list[str]:
    """The host before a command, or behind options of ssh's."""
    return [*words, host] if words and words[0].startswith("-") else [host, *words]
