"""``kboot cache``, ``gc``, ``runs``, ``manifests``, ``completion``: upkeep."""

from __future__ import annotations

import datetime
import secrets
import time
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import get_completion_class

from kboot.cli.options import config_options, json_option, load_config
from kboot.cli.output import print_json
from kboot.errors import ConfigError

if TYPE_CHECKING:
    from kboot.snapshots import Entry


@click.command(
    epilog="""\
\b
A machine that has booted for a test is saved, and the next test restores it. It is restored only
where kernel, root file system, command line, QEMU, firmware and processor are the same; the least
recently used are removed when the cache is full (--snapshot-cache).
"""
)
@config_options("snapshot_cache")
@click.option("--clear", is_flag=True, help="Remove all that are not in use.")
@json_option
def cache(*, clear: bool, as_json: bool, **options: Any) -> None:
    """List saved machines, the most recently used last."""
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
        note = "  removed" if removed else "  in use, kept" if clear else ""
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


@click.command(epilog="Live runs are never touched. Every run removes dead runs at its start, too.")
@config_options("backend", "kubeconfig", "context", "namespace")
@click.option("--yes", is_flag=True, help="Remove them; without it, only list them.")
def gc(*, yes: bool, **options: Any) -> None:
    """Remove dead runs and what they left: on this host, or with --backend on a cluster."""
    from kboot.machine.backends import dead_runs  # noqa: PLC0415  --help does not need it

    config = load_config(options)
    verb = "removed" if yes else "would remove"
    nothing = True
    for what in dead_runs(config, remove=yes):
        nothing = False
        click.echo(f"{verb} {what}")
    if nothing:
        click.echo("nothing to remove")
    elif not yes:
        click.echo("nothing was removed; --yes removes it")


@click.command(epilog="`kboot gc` removes dead runs.")
@config_options("backend", "kubeconfig", "context", "namespace")
@json_option
def runs(*, as_json: bool, **options: Any) -> None:
    """List runs: on this host, or with --backend on a cluster."""
    from kboot.machine.backends import find_runs  # noqa: PLC0415  --help does not need it

    found = find_runs(load_config(options))
    if as_json:
        print_json([run.values for run in found])
        return
    for run in found:
        click.echo("\n".join((run.summary, *(f"  {line}" for line in run.details))))
    if not found:
        click.echo("no runs")


@click.command(
    epilog="For kubectl apply -f -. No run owns objects that are applied by hand: delete them by "
    "their label, kboot.dev/run."
)
@config_options(
    "namespace",
    "cluster_nginx_image",
    "cluster_pull_secret",
    "cluster_claim",
    "cluster_patch",
)
def manifests(**options: Any) -> None:
    """Print the boot server's objects as YAML, as a run creates them."""
    from kboot.kubevirt import manifests as objects  # noqa: PLC0415  where they are used
    from kboot.kubevirt.manifests import new_run  # noqa: PLC0415

    config = load_config(options)
    run = objects.Run(identifier=new_run(), namespace=config.namespace or "default")
    now = datetime.datetime.now(datetime.UTC)
    wanted = [
        objects.owner(run, user="kubectl", now=now),
        *objects.boot_server(run, config, token=secrets.token_hex(32)),
    ]
    click.echo(objects.to_yaml(wanted), nl=False)


_EPILOG = """\
\b
To install it:
  bash  kboot completion bash >~/.local/share/bash-completion/completions/kboot
  zsh   kboot completion zsh >~/.zfunc/_kboot     (a directory in $fpath)
  fish  kboot completion fish >~/.config/fish/completions/kboot.fish
"""


@click.command(epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script for SHELL."""
    found = get_completion_class(shell)
    if found is None:
        raise ConfigError(f"no completion for {shell}")
    command = context.find_root().command
    click.echo(found(command, {}, "kboot", "_KBOOT_COMPLETE").source())
