"""``kboot run``: a command in a machine's guest."""

from __future__ import annotations

import shlex
import sys

import click

from kboot.cli.naming import json_option, machine_option, print_json


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
    from kboot.machines.client import ask  # noqa: PLC0415  --help does not need it

    words = command[0] if len(command) == 1 else shlex.join(command)
    result = ask(name, "run", command=words, timeout_s=timeout_s)
    if as_json:
        print_json(result)
    else:
        for stream, text in ((sys.stdout, result["stdout"]), (sys.stderr, result["stderr"])):
            stream.buffer.write(text.encode("latin-1"))
            stream.flush()
    context.exit(result["exit_status"])
