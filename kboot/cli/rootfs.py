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
    """Remove systems that were not used for some time; they can be made again."""
    from kboot.rootfs import kept_systems, remove_system  # noqa: PLC0415  --help does not need it

    freed = 0
    for each in kept_systems():
        if time.time() - each.used >= days * 86400:
            remove_system(each)
            freed += each.size_bytes
            click.echo(
                f"{each.label} for {each.architecture}: removed, {say_size(each.size_bytes)}"
            )
    if not freed:
        click.echo("nothing to remove")
