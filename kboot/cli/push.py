"""``kboot push``: what a machine is to load from now on."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

from kboot.cli.machines import json_option, machine_option, print_json
from kboot.cli.restart import ask_restart, restart_once, restart_watched, say_outcome
from kboot.cli.terminal import print_table, say_size, transfers
from kboot.errors import ConfigError

#: Pushes that --gc keeps.
_KEEP = 3


@click.command(
    epilog="""\
\b
Examples:
  kboot push arch/x86/boot/bzImage --restart
  kboot push vmlinuz initramfs.cpio.zst --cmdline 'debug'
  kboot push drivers/net/dummy.ko --module virtio_net
  kboot push --list
  kboot push --rollback --restart
  kboot push --gc --keep 3

The boot script names the new files only when all of them are there: a push that is interrupted
changes nothing.
""",
)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE]...")
@machine_option
@click.option("--cmdline", metavar="TEXT", help="More parameters for the kernel, from now on.")
@click.option(
    "--module",
    "modules",
    multiple=True,
    metavar="NAME",
    help="Load a module of the kernel's at boot, too; an empty one: none any more.",
)
@click.option(
    "--initrd",
    "initrds",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="Images to load after the root file system; an empty one: none any more.",
)
@click.option("--restart", is_flag=True, help="Restart the machine, and follow its boot.")
@click.option("--console", "watch", is_flag=True, help="Restart, and watch it on the console.")
@click.option("--list", "show", is_flag=True, help="List what was pushed.")
@click.option("--rollback", is_flag=True, help="Go back to the push before the current one.")
@click.option("--to", type=int, metavar="NUMBER", help="With --rollback: to this one.")
@click.option("--gc", "collect", is_flag=True, help="Drop files that only old pushes need.")
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=_KEEP,
    metavar="N",
    help=f"With --gc: go on keeping the last N pushes.  [default: {_KEEP}]",
)
@json_option
def push(
    *,
    files: tuple[Path, ...],
    name: str,
    cmdline: str | None,
    modules: tuple[str, ...],
    initrds: tuple[str, ...],
    restart: bool,
    watch: bool,
    show: bool,
    rollback: bool,
    to: int | None,
    collect: bool,
    keep: int,
    as_json: bool,
) -> None:
    """Have the machine load FILE from its next boot on.

    FILE is a kernel (an image, a .deb, a build tree), a root file system (an initramfs), or a
    module (.ko).
    """
    for file in files:
        # A path has lost the second slash.
        if re.match(r"https?:/", str(file)):
            raise ConfigError(f"{file}: kboot push takes files; download it, and push the file")
    pushes = bool(files or modules or initrds) or cmdline is not None
    if sum([pushes, show, rollback, collect]) != 1:
        raise click.UsageError(
            "give files, --cmdline, --module or --initrd to push, or --list, --rollback, or --gc"
        )
    if show or collect:
        if restart or watch:
            raise click.UsageError("nothing is pushed, so there is nothing to restart for")
        (_collect(name, keep, as_json=as_json) if collect else _list(name, as_json=as_json))
        return
    restart = restart or watch
    if rollback:
        what: dict[str, Any] = {"verb": "rollback", "number": to}
    else:
        # Another process reads them, in another directory.
        paths = [str(file.absolute()) for file in files]
        what = {
            "verb": "push",
            "files": paths,
            "cmdline": cmdline,
            "modules": modules or None,
            "initrds": [str(Path(file).absolute()) if file else "" for file in initrds] or None,
        }
    pushed = _push(name, {**what, "preempt": restart}, as_json=as_json)
    if as_json:
        boot = {"boot": ask_restart(name)} if restart else {}
        print_json({**pushed, **boot})
        if restart:
            say_outcome(name, boot["boot"], quiet=True)
    elif watch:
        restart_watched(name)
    elif restart:
        restart_once(name, "hard", as_json=False)


def _push(name: str, what: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    start = time.monotonic()
    with transfers(quiet=as_json) as show:
        pushed: dict[str, Any] = ask(name, on_event=show, **what)
    if not as_json:
        sent = pushed.get("sent", 0)
        click.echo(
            f"{name}: push {pushed['number']}, Linux {pushed['release']} "
            f"(sha256 {pushed['sha256'][:12]}), in {time.monotonic() - start:.2f} s, "
            + (f"{say_size(sent)} sent" if sent else "all of it was there")
        )
    return pushed


def _collect(name: str, keep: int, *, as_json: bool) -> None:
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    freed = ask(name, "collect", keep=keep)
    if as_json:
        print_json(freed)
    elif freed["files"]:
        numbers = ", ".join(map(str, freed["pushes"])) or "none"
        click.echo(
            f"{name}: freed {say_size(freed['bytes'])}, files: {freed['files']}; "
            f"pushes forgotten: {numbers}"
        )
    else:
        click.echo(f"{name}: nothing to free")


def _list(name: str, *, as_json: bool) -> None:
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    _show(ask(name, "pushes"), as_json=as_json)


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
    print_table(rows)
