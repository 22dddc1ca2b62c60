"""``kboot ssh``: into a machine's guest with the system's own ssh client."""

from __future__ import annotations

import os
import shlex

import click

from kboot.cli.naming import machine_argument
from kboot.log import logger

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
    from kboot.machines.client import ask  # noqa: PLC0415  --help does not need it
    from kboot.process import find_program  # noqa: PLC0415

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
