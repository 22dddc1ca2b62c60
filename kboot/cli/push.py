"""``kboot push`` and ``kboot pushes``: what a machine loads from its next boot on."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from kboot.cli.options import (
    complete_name_or_file,
    json_option,
    machine_argument,
    with_machine,
)
from kboot.cli.output import print_json, print_table, say_size, transfers
from kboot.cli.restart import ask_restart, restart_once, restart_watched, say_outcome
from kboot.errors import ConfigError

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Pushes that gc keeps.
_KEEP = 3


def _restart_options(function: _Function) -> _Function:
    """``--restart`` and ``--console``: what to do once the machine has something else to boot."""
    function = click.option(
        "--console", "watch", is_flag=True, help="Restart, and show the console."
    )(function)
    return click.option(
        "--restart", is_flag=True, help="Restart the machine, and follow its boot."
    )(function)


def _name_and_files(function: _Function) -> _Function:
    """``[NAME] [FILE]...``: the first word may be a machine or a file."""
    found = with_machine(function)

    @functools.wraps(found)
    def split_and_call(*arguments: Any, words: tuple[str, ...], **options: Any) -> Any:
        other = any(options[key] not in (None, ()) for key in ("cmdline", "modules", "initrds"))
        named = _is_name(words, other=other)
        name, files = (words[0], words[1:]) if named else (None, words)
        for file in files:
            # Before a machine is looked for.
            if re.match(r"https?:/", file):
                raise ConfigError(f"{file}: kboot push takes files; download it, and push the file")
        if not (files or other):
            raise click.UsageError("nothing to push: give a FILE, --cmdline, --module or --initrd")
        return found(*arguments, name=name, files=tuple(map(Path, files)), **options)

    return click.argument(
        "words", nargs=-1, metavar="[NAME] [FILE]...", shell_complete=complete_name_or_file
    )(cast("_Function", split_and_call))


def _is_name(words: tuple[str, ...], *, other: bool) -> bool:
    """Whether the first word is a machine: one that is known, or no file where more is pushed."""
    from kboot.supervisor.registry import known_names  # noqa: PLC0415  --help does not need it

    if not words or "/" in words[0]:
        return False
    more = len(words) > 1 or other
    return words[0] in known_names() or (
        more and "." not in words[0] and not Path(words[0]).exists()
    )


@click.command(
    epilog="""\
\b
Examples:
  kboot push arch/x86/boot/bzImage --restart
  kboot push m1 vmlinuz initramfs.cpio.zst --cmdline debug
  kboot push m1 drivers/net/dummy.ko --module virtio_net

A first word that is the name of a machine is NAME; say ./m1 for a file of that name. The boot
script names the new files only once all of them are uploaded: an interrupted push changes nothing.
kboot pushes lists what was pushed, and goes back to it.
""",
)
@_name_and_files
@click.option("--cmdline", metavar="TEXT", help="More kernel parameters, from now on.")
@click.option(
    "--module",
    "modules",
    multiple=True,
    metavar="NAME",
    help="A module of the kernel to load at boot; may be repeated; '' clears the list.",
)
@click.option(
    "--initrd",
    "initrds",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="An image to load after the root file system; may be repeated; '' clears the list.",
)
@_restart_options
@json_option
def push(
    *,
    name: str,
    files: tuple[Path, ...],
    cmdline: str | None,
    modules: tuple[str, ...],
    initrds: tuple[str, ...],
    restart: bool,
    watch: bool,
    as_json: bool,
) -> None:
    """Push a kernel, an initramfs or modules: the machine NAME loads them from its next boot on.

    FILE is a kernel (an image, a .deb, a build tree), an initramfs, or a module (.ko).
    """
    # The supervisor reads the files, from another working directory.
    what = {
        "verb": "push",
        "files": [str(file.absolute()) for file in files],
        "cmdline": cmdline,
        "modules": modules or None,
        "initrds": [str(Path(file).absolute()) if file else "" for file in initrds] or None,
    }
    _push_and_restart(name, what, restart=restart, watch=watch, as_json=as_json)


class _Pushes(click.Group):
    """``kboot pushes`` alone lists them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without a subcommand, it is ``list``."""
        first = next((word for word in args if not word.startswith("-")), None)
        if first not in self.commands and not {"-h", "--help"}.intersection(args):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Pushes,
    epilog="""\
\b
Examples:
  kboot pushes
  kboot pushes list m1 --json
  kboot pushes rollback m1 --to 2 --restart
  kboot pushes gc m1 --keep 3
""",
)
def pushes() -> None:
    """List what was pushed to a machine, go back to it, or free the space of old pushes."""


@pushes.command("list")
@machine_argument
@json_option
def list_pushes(*, name: str, as_json: bool) -> None:
    """List what was pushed to the machine NAME."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    _show(ask(name, "pushes"), as_json=as_json)


@pushes.command()
@machine_argument
@click.option("--to", type=int, metavar="NUMBER", help="The push to go back to.")
@_restart_options
@json_option
def rollback(*, name: str, to: int | None, restart: bool, watch: bool, as_json: bool) -> None:
    """Go back to the push before the current one, or to that of --to."""
    what = {"verb": "rollback", "number": to}
    _push_and_restart(name, what, restart=restart, watch=watch, as_json=as_json)


@pushes.command()
@machine_argument
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=_KEEP,
    metavar="N",
    help=f"Keep the last N pushes.  [default: {_KEEP}]",
)
@json_option
def gc(*, name: str, keep: int, as_json: bool) -> None:
    """Remove old pushes, and the files that only they need."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    freed = ask(name, "collect", keep=keep)
    if as_json:
        print_json(freed)
    elif freed["files"]:
        numbers = ", ".join(map(str, freed["pushes"])) or "none"
        click.echo(
            f"{name}: freed {say_size(freed['bytes'])}, files: {freed['files']}; "
            f"pushes removed: {numbers}"
        )
    else:
        click.echo(f"{name}: nothing to free")


def _push_and_restart(
    name: str, what: dict[str, Any], *, restart: bool, watch: bool, as_json: bool
) -> None:
    pushed = _push(name, {**what, "preempt": restart or watch}, as_json=as_json)
    if as_json:
        boot = {"boot": ask_restart(name)} if restart or watch else {}
        print_json({**pushed, **boot})
        if boot:
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
            + (f"{say_size(sent)} sent" if sent else "all of it was there already")
        )
    return pushed


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
