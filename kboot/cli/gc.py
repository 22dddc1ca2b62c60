"""``kboot gc``: remove what killed runs have left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from kboot import state
from kboot.cli.options import config_options, load_config
from kboot.config import Config

if TYPE_CHECKING:
    from kboot.kubevirt.hygiene import ClusterRun


@click.command(epilog="A run that still lives is never touched. The next run cleans up as well.")
@config_options("backend", "context", "namespace")
@click.option("--yes", is_flag=True, help="Do it; without, only show what would go.")
def gc(*, yes: bool, **options: Any) -> None:
    """Remove what killed runs have left: on this host, or with --backend on a cluster."""
    config = load_config(options)
    verb = "removed" if yes else "would remove"
    nothing = True
    for what in _COLLECTORS[config.backend](config, yes):
        nothing = False
        click.echo(f"{verb} {what}")
    if nothing:
        click.echo("nothing to remove")
    elif not yes:
        click.echo("nothing was removed: say --yes to do it")


def age(seconds: float) -> str:
    """A length of time for people, in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def why_dead(run: ClusterRun) -> str:
    """How it is known that a run on a cluster is dead."""
    return "its process has ended" if run.running is False else f"silent for {age(run.silent_s)}"


def _collect_local(_: Config, yes: bool) -> Iterator[str]:
    for run in state.sweep() if yes else state.stale_runs():
        pids = f", processes {', '.join(map(str, run.pids))}" if run.pids else ""
        yield f"{run.directory}, {age(run.age_s)} old{pids}"


def _collect_cluster(config: Config, yes: bool) -> Iterator[str]:
    from kboot.kube import connect  # noqa: PLC0415  half a second
    from kboot.kubevirt import hygiene  # noqa: PLC0415

    client = connect(config.context, config.namespace)
    for run in hygiene.find_runs(client):
        if not run.dead or (yes and not hygiene.remove(client, run)):
            continue
        machines = "".join(f", machine {name}" for name, _ in run.machines)
        if run.machine:
            machines = f", {hygiene.about_machine(run)}"
        yield (f"run {run.name} of {run.user}, {age(run.age_s)} old, {why_dead(run)}{machines}")


_COLLECTORS: dict[str, Callable[[Config, bool], Iterator[str]]] = {
    "qemu": _collect_local,
    "kubevirt": _collect_cluster,
}
