"""``kboot rootfs``: root file systems that kboot makes and keeps."""

from __future__ import annotations

import time
from typing import Any

import click

from kboot import arch
from kboot.cli.options import config_options, json_option, load_config
from kboot.cli.output import print_json, print_table, say_size
from kboot.errors import ConfigError
from kboot.log import age

_UNUSED_DAYS = 30.0
#: What else boots are given, by its directory in the cache.
_IMAGES = {
    "rootfs": "small images (tiny systems, overlays, modules)",
    "modules": "images of all modules",
    "cloud-init": "cloud-init disks",
    "ipxe-disks": "disks with iPXE",
    "downloads": "downloaded kernels and disk images",
    "kernels": "kernels unpacked from packages",
}


@click.group(
    epilog="""\
\b
Examples:
  kboot rootfs build debian:trixie+strace,gdb
  kboot boot bzImage --rootfs debian:trixie+strace,gdb --memory 1G
  kboot rootfs prune --days 7
"""
)
def rootfs() -> None:
    """Make Debian root file systems, list them, or free their space."""


@rootfs.command()
@click.argument("system", metavar="debian[:SUITE][+PACKAGE,...]")
@config_options("password", "debian_mirror")
@click.option("--again", is_flag=True, help="Fetch its packages again, though it is there.")
@click.option(
    "--architecture",
    type=click.Choice(sorted(arch.names())),
    default=arch.host().name,
    show_default=True,
    help="Of the kernels that it is for; another one than this host's takes qemu-user-static.",
)
def build(*, system: str, again: bool, architecture: str, **options: Any) -> None:
    """Make a Debian system now; else, its first boot does."""
    from kboot.rootfs import (  # noqa: PLC0415  --help does not need it
        debian_initramfs,
        forget_system,
        is_debian,
        read_debian,
    )

    if not is_debian(system):
        raise ConfigError(f"{system!r} is not debian[:SUITE][+PACKAGE,...]")
    config = load_config(options)
    wanted = read_debian(
        system,
        password=config.password,
        mirror=config.debian_mirror,
        architecture=architecture,
    )
    if again:
        forget_system(wanted)
    start = time.monotonic()
    path = debian_initramfs(
        wanted, lambda what: click.echo(f"  {time.monotonic() - start:5.1f} s  {what}", err=True)
    )
    click.echo(
        f"{wanted.label} for {wanted.architecture}: {say_size(path.stat().st_size)}, "
        f"in {time.monotonic() - start:.1f} s; {path}"
    )


@rootfs.command("list")
@json_option
def list_systems(*, as_json: bool) -> None:
    """List the systems that were made."""
    from kboot.rootfs import kept_systems  # noqa: PLC0415  --help does not need it

    found = kept_systems()
    if as_json:
        print_json(
            [
                {
                    "rootfs": each.label,
                    "architecture": each.architecture,
                    "bytes": each.size_bytes,
                    "made": each.made,
                    "used": each.used,
                    "path": str(each.path),
                }
                for each in found
            ]
        )
    elif not found:
        click.echo("no systems; make one: kboot rootfs build debian")
    else:
        rows = [["ROOTFS", "FOR", "SIZE", "MADE", "USED"]]
        now = time.time()
        rows += [
            [
                each.label,
                each.architecture,
                say_size(each.size_bytes),
                f"{age(now - each.made)} ago",
                f"{age(now - each.used)} ago",
            ]
            for each in found
        ]
        print_table(rows)


@rootfs.command()
@click.option(
    "--days",
    type=click.FloatRange(min=0),
    default=_UNUSED_DAYS,
    metavar="N",
    help=f"Remove what was not used for N days.  [default: {_UNUSED_DAYS:g}]",
)
def prune(*, days: float) -> None:
    """Remove what was not used for some time: systems, downloads, and what boots were given.

    All of it can be made again.
    """
    # --help does not need them.
    from kboot.cache import remove_unused  # noqa: PLC0415
    from kboot.rootfs import kept_systems, remove_system  # noqa: PLC0415
    from kboot.state import cache_directory  # noqa: PLC0415

    since = time.time() - days * 86400
    removed = 0
    for each in kept_systems():
        if each.used <= since:
            remove_system(each)
            removed += 1
            click.echo(
                f"{each.label} for {each.architecture}: removed, {say_size(each.size_bytes)}"
            )
    for name, what in _IMAGES.items():
        count, size = remove_unused(cache_directory(name), since)
        removed += count
        if count:
            click.echo(f"{what}: {count} removed, {say_size(size)}")
    if not removed:
        click.echo("nothing to remove")
