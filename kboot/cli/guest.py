"""``kboot exec``, ``put``, ``get``, ``ssh``: commands and files in a machine's guest."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from kboot.cli.options import (
    BehindDashes,
    NeedsCommand,
    json_option,
    machine_argument,
    machine_arguments,
    words_behind_dashes,
)
from kboot.cli.output import print_json, transfers
from kboot.errors import ConfigError
from kboot.log import logger


@click.command(
    "exec",
    cls=NeedsCommand,
    epilog="""\
\b
Examples:
  kboot exec -- uname -a
  kboot exec m1 -- uname -a
  kboot exec m1 -- 'dmesg | tail'

Exits with the command's exit status, or with 3 if the host failed.
""",
)
@machine_argument
@click.option("--timeout", "timeout_s", default=60.0, metavar="SECONDS", help="[default: 60]")
@json_option
@click.pass_context
def exec_command(context: click.Context, /, *, name: str, timeout_s: float, as_json: bool) -> None:
    """Run COMMAND in the guest of the machine NAME. A single word is a shell command line."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    words = words_behind_dashes(context)
    command = words[0] if len(words) == 1 else shlex.join(words)
    result = ask(name, "run", command=command, timeout_s=timeout_s)
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


@click.command(epilog="Example: kboot put m1 tool /usr/bin/tool")
@machine_arguments("FILE", "PATH")
def put(*, name: str, file: str, path: str) -> None:
    """Copy FILE into the guest of the machine NAME, to PATH."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    if not Path(file).is_file():
        raise ConfigError(f"{file}: there is no such file")
    with transfers(quiet=False, least_size=_WORTH_TELLING) as show:
        ask(
            name,
            "put",
            on_event=show,
            local=str(Path(file).absolute()),
            remote=path,
            timeout_s=_TIMEOUT_S,
        )


@click.command(epilog="Example: kboot get m1 /var/log/messages messages")
@machine_arguments("PATH", "FILE")
def get(*, name: str, path: str, file: str) -> None:
    """Copy PATH out of the guest of the machine NAME, to FILE."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    if Path(file).is_dir():
        raise ConfigError(f"{file} is a directory; give the name of a file")
    ask(name, "get", local=str(Path(file).absolute()), remote=path, timeout_s=_TIMEOUT_S)


@click.command(
    cls=BehindDashes,
    options_metavar="[OPTIONS]",
    epilog="""\
\b
Examples:
  kboot ssh
  kboot ssh lab -- journalctl -f
  kboot ssh lab -- -L 8080:localhost:80

The guest needs an ssh server, and the machine has to be started for it: kboot up --channel ssh.
kboot's key is authorized there. Exits with the exit status of ssh.
""",
)
@machine_argument
@click.pass_context
def ssh(context: click.Context, /, *, name: str) -> None:
    """Log in to the guest of the machine NAME over ssh.

    Arguments after -- are passed to ssh: a command, or options.
    """
    from kboot.process import find_program  # noqa: PLC0415
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    door = ask(name, "ssh")
    argv = [
        find_program("ssh"),
        # Neither the user's settings nor their known hosts: this host key is new at every boot.
        *("-F", "none"),
        *("-o", "StrictHostKeyChecking=no"),
        *("-o", "UserKnownHostsFile=/dev/null"),
        *("-o", "LogLevel=ERROR"),
        *("-o", "IdentitiesOnly=yes"),
        *("-i", door["key"]),
        *("-p", str(door["port"])),
        *_with_host(f"{door['user']}@{door['host']}", words_behind_dashes(context)),
    ]
    logger.debug("%s", shlex.join(argv))
    os.execv(argv[0], argv)  # noqa: S606  no shell is wanted


def _with_host(host: str, words: list[str]) -> list[str]:
    """The host before a command, or behind options of ssh's."""
    return [*words, host] if words and words[0].startswith("-") else [host, *words]
