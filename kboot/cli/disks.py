"""``kboot disks``: the disks that are kept on this host, or on a cluster."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from kboot.cli.options import config_options, json_option, load_config
from kboot.cli.output import print_json, print_table, say_size
from kboot.errors import ConfigError

if TYPE_CHECKING:
    from kboot.backend import DiskStore, StoredDisk

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,62}[a-z0-9])?")

_backend = config_options("backend", "kubeconfig", "context", "namespace", "cluster_owner")


@click.group(
    epilog="""\
\b
Examples:
  kboot up m1 --kernel bzImage --disk root=debian.qcow2,keep
  kboot down m1 && kboot disks clone m1/root golden
  kboot up m2 --kernel bzImage --disk root=clone:golden
  kboot disks rm m1/root
  kboot disks list --backend kubevirt
""",
)
def disks() -> None:
    """List kept disks, remove them, or make golden ones of them."""


@disks.command("list")
@_backend
@json_option
def list_disks(*, as_json: bool, **options: Any) -> None:
    """List the disks that are kept here, or on a cluster: MACHINE/NAME, and golden ones."""
    found = _store(options).disks()
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
                disk.condition if disk.stored_bytes is None else say_size(disk.stored_bytes),
                disk.source,
                "yes" if disk.in_use else "",
            ]
            for disk in found
        ]
        print_table(rows)


def _value(disk: StoredDisk) -> dict[str, object]:
    return {
        "disk": disk.label,
        "machine": disk.machine,
        "bytes": disk.size_bytes,
        "stored_bytes": disk.stored_bytes,
        "above": disk.source or None,
        "path": disk.place,
        "in_use": disk.in_use,
        "condition": disk.condition or None,
    }


@disks.command()
@click.argument("names", metavar="DISK...", nargs=-1, required=True)
@_backend
def rm(*, names: tuple[str, ...], **options: Any) -> None:
    """Remove kept disks, with all that was written to them."""
    store = _store(options)
    found = [_find(store, name) for name in names]
    for disk in found:
        _require_unused(disk, "removed")
    for disk in found:
        store.remove(disk)
        freed = disk.size_bytes if disk.stored_bytes is None else disk.stored_bytes
        click.echo(f"{disk.label}: removed, {say_size(freed)}")


@disks.command()
@click.argument("disk")
@click.argument("name")
@_backend
def clone(*, disk: str, name: str, **options: Any) -> None:
    """Make a golden disk NAME of a kept DISK: machines begin with it by --disk clone:NAME."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a disk's name: small letters, digits, hyphens and dots"
        )
    store = _store(options)
    source = _find(store, disk)
    _require_unused(source, "cloned")
    store.clone(source, name)
    made = next((each for each in store.disks() if each.label == name), source)
    size = made.size_bytes if made.stored_bytes is None else made.stored_bytes
    click.echo(f"{name}: {say_size(size)}; use it: --disk clone:{name}")


def _store(options: dict[str, Any]) -> DiskStore:
    from kboot.machine.backends import disk_store  # noqa: PLC0415  --help does not need them
    from kboot.supervisor.registry import directory_of  # noqa: PLC0415

    return disk_store(load_config(options), lambda machine: directory_of(machine).is_alive)


def _find(store: DiskStore, label: str) -> StoredDisk:
    found = store.disks()
    for disk in found:
        if disk.label == label:
            return disk
    there = f"; there are {', '.join(disk.label for disk in found)}" if found else ""
    raise ConfigError(f"no disk {label} is kept {store.place}{there}; see kboot disks list")


def _require_unused(disk: StoredDisk, what: str) -> None:
    if disk.in_use:
        on = disk.machine or "a machine that has it"
        remedy = f": kboot down {disk.machine}" if disk.machine else ""
        raise ConfigError(f"{disk.label} cannot be {what} while {on} is on{remedy}")
