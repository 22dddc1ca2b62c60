"""``kboot cache``: the saved machines on this host."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from kboot.cli.naming import json_option, print_json
from kboot.cli.options import config_options, load_config

if TYPE_CHECKING:
    from kboot.snapshots import Entry


@click.command(
    epilog="""\
\b
A machine that has booted for a test is saved, and the next test's goes on from there. It is used
only where kernel, root file system, command line, QEMU, firmware and processor are the same; the
least recently used ones make room for others (--snapshot-cache).
"""
)
@config_options("snapshot_cache")
@click.option("--clear", is_flag=True, help="Remove all that nobody uses at the moment.")
@json_option
def cache(*, clear: bool, as_json: bool, **options: Any) -> None:
    """List the saved machines, the most recently used ones last."""
    from kboot.snapshots import SnapshotStore  # noqa: PLC0415  --help does not need it
    from kboot.state import cache_directory  # noqa: PLC0415

    config = load_config(options)
    directory = cache_directory("snapshots")
    with SnapshotStore(directory, limit_mib=config.snapshot_cache_mib) as store:
        found = [(entry, clear and store.remove(entry)) for entry in store.entries()]
    if as_json:
        print_json([_value(entry, removed=removed) for entry, removed in found])
        return
    for entry, removed in found:
        note = "  removed" if removed else "  in use, stays" if clear else ""
        click.echo(f"{_line(entry)}{note}")
    left = [entry for entry, removed in found if not removed]
    total_mib = sum(entry.size for entry in left) / (1 << 20)
    click.echo(
        f"{len(left)} saved machines, {total_mib:.0f} MiB of at most "
        f"{config.snapshot_cache_mib} MiB, in {directory}"
    )


def _value(entry: Entry, *, removed: bool) -> dict[str, Any]:
    """An entry for programs; ``used`` is in seconds since the epoch."""
    about = entry.note.get("about", "")
    return {
        "key": entry.key,
        "bytes": entry.size,
        "used": entry.used,
        "about": about,
        "removed": removed,
    }


def _line(entry: Entry) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    what = entry.note.get("about", "")
    return f"{entry.key[:12]}  {entry.size / (1 << 20):6.0f} MiB  used {used}  {what}"
