"""``kboot disks``: the disks that are kept on this host."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from kboot.cli.options import json_option
from kboot.cli.output import print_json, print_table, say_size
from kboot.errors import ConfigError

if TYPE_CHECKING:
    from kboot.disks import KeptDisk

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?")


@click.group(
    epilog="""\
\b
Examples:
  kboot up m1 --kernel bzImage --disk root=debian.qcow2,keep
  kboot down m1 && kboot disks clone m1/root golden
  kboot up m2 --kernel bzImage --disk root=clone:golden
  kboot disks rm m1/root
""",
)
def disks() -> None:
    """List kept disks, remove them, or make golden ones of them."""


@disks.command("list")
@json_option
def list_disks(*, as_json: bool) -> None:
    """List the disks that are kept on this host: MACHINE/NAME, and golden ones."""
    from kboot.disks import kept_disks  # noqa: PLC0415  --help does not need it

    found = kept_disks()
    if as_json:
        print_json([_value(disk) for disk in found])
    elif not found:
        click.echo("no disks; keep one: kboot up --disk NAME=SOURCE,keep")
    else:
        rows = [["DISK", "SIZE", "STORED", "ABOVE", "IN USE"]]
        rows += [
            [
                disk.label,
                say_size(disk.size_bytes),
                say_size(disk.stored_bytes),
                disk.source,
                "yes" if _is_used(disk) else "",
            ]
            for disk in found
        ]
        print_table(rows)


def _value(disk: KeptDisk) -> dict[str, object]:
    return {
        "disk": disk.label,
        "machine": disk.machine,
        "bytes": disk.size_bytes,
        "stored_bytes": disk.stored_bytes,
        "above": disk.source or None,
        "path": str(disk.path),
        "in_use": _is_used(disk),
    }


@disks.command()
@click.argument("names", metavar="DISK...", nargs=-1, required=True)
def rm(*, names: tuple[str, ...]) -> None:
    """Remove kept disks, with all that was written to them."""
    from kboot.disks import find_kept, remove_kept  # noqa: PLC0415  --help does not need it

    found = [find_kept(name) for name in names]
    for disk in found:
        _require_unused(disk, "removed")
    for disk in found:
        freed = disk.stored_bytes
        remove_kept(disk)
        click.echo(f"{disk.label}: removed, {say_size(freed)}")


@disks.command()
@click.argument("disk")
@click.argument("name")
def clone(*, disk: str, name: str) -> None:
    """Make a golden disk NAME of a kept DISK: machines begin with it by --disk clone:NAME."""
    from kboot.disks import clone_kept, find_kept  # noqa: PLC0415  --help does not need it

    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a disk's name: small letters, digits, hyphens and dots"
        )
    source = find_kept(disk)
    _require_unused(source, "cloned")
    path = clone_kept(source, name)
    click.echo(f"{name}: {say_size(path.stat().st_blocks * 512)}; use it: --disk clone:{name}")


def _is_used(disk: KeptDisk) -> bool:
    """Whether the disk's machine is on."""
    from kboot.supervisor.registry import directory_of  # noqa: PLC0415

    return disk.machine is not None and directory_of(disk.machine).is_alive


def _require_unused(disk: KeptDisk, what: str) -> None:
    if _is_used(disk):
        raise ConfigError(
            f"{disk.label} cannot be {what} while {disk.machine} is on: kboot down {disk.machine}"
        )
