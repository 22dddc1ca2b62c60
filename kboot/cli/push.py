"""``kboot push``: what a machine is to load from now on."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from kboot.cli.console import attach_to
from kboot.cli.naming import json_option, machine_option, print_json, table
from kboot.cli.restart import restart_once


@click.command(
    epilog="""\
\b
Examples:
  kboot push arch/x86/boot/bzImage --restart
  kboot push vmlinuz initramfs.cpio.zst --cmdline 'debug'
  kboot push --list
  kboot push --rollback --restart

The boot script names the new files only when all of them are there: a push that is interrupted
changes nothing.
""",
)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@machine_option
@click.option("--cmdline", metavar="TEXT", help="More parameters for the kernel, from now on.")
@click.option("--restart", is_flag=True, help="Restart the machine, and follow its boot.")
@click.option("--console", "watch", is_flag=True, help="With --restart: attach to the console.")
@click.option("--list", "show", is_flag=True, help="List what was pushed.")
@click.option("--rollback", is_flag=True, help="Go back to the push before the current one.")
@click.option("--to", type=int, metavar="NUMBER", help="With --rollback: to this one.")
@json_option
def push(
    *,
    files: tuple[Path, ...],
    name: str,
    cmdline: str | None,
    restart: bool,
    watch: bool,
    show: bool,
    rollback: bool,
    to: int | None,
    as_json: bool,
) -> None:
    """Have the machine load FILE from its next boot on: a kernel, a .deb, an initramfs."""
    from kboot.machines.client import ask  # noqa: PLC0415  --help does not need it

    if sum([bool(files) or cmdline is not None, show, rollback]) != 1:
        raise click.UsageError("give files or --cmdline to push, or --list, or --rollback")
    if show:
        _show(ask(name, "pushes"), as_json=as_json)
        return
    start = time.monotonic()
    if rollback:
        pushed = ask(name, "rollback", number=to)
    else:
        # Another process reads them, in another directory.
        paths = [str(file.absolute()) for file in files]
        pushed = ask(name, "push", files=paths, cmdline=cmdline)
    if as_json:
        print_json(pushed)
    else:
        click.echo(
            f"{name}: push {pushed['number']}, Linux {pushed['release']} "
            f"(sha256 {pushed['sha256'][:12]}), in {time.monotonic() - start:.2f} s"
        )
    if restart:
        restart_once(name, "hard", as_json=as_json)
    if watch:
        attach_to(name, "boot", write=sys.stdin.isatty())


def _show(pushes: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(pushes)
        return
    rows = [["", "PUSH", "KERNEL", "SHA256", "WHEN", "FROM"]]
    rows += [
        [
            "*" if each["current"] else "",
            str(each["number"]),
            each["release"],
            each["sha256"][:12],
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["time"])),
            each["kernel"],
        ]
        for each in pushes
    ]
    click.echo("\n".join(table(rows)))
