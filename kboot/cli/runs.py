"""``kboot runs``: which runs are there, on this host or on a cluster, and how they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click

from kboot import state
from kboot.cli.gc import age
from kboot.cli.options import config_options, load_config
from kboot.config import Config


@click.command(epilog="What is dead, kboot gc removes.")
@config_options("backend", "context", "namespace")
def runs(**options: Any) -> None:
    """Show the runs that are there: on this host, or with --backend on a cluster."""
    config = load_config(options)
    lines = list(_REPORTERS[config.backend](config))
    for line in lines or ["no run is there"]:
        click.echo(line)


def _report_local(_: Config) -> Iterator[str]:
    stale = {run.directory for run in state.stale_runs()}
    for directory in sorted(state.runs_directory().glob("run-*")):
        yield f"{directory}  {'dead' if directory in stale else 'lives'}"


def _report_cluster(config: Config) -> Iterator[str]:
    from kboot.kube import connect  # noqa: PLC0415  half a second
    from kboot.kubevirt import hygiene  # noqa: PLC0415

    for run in hygiene.find_runs(connect(config.context, config.namespace)):
        condition = f"dead, silent for {age(run.silent_s)}" if run.dead else "lives"
        stays = f", {hygiene.about_machine(run)}" if run.machine else ""
        yield f"{run.name}  {run.user}  {age(run.age_s)} old, {condition}{stays}"
        for name, how in run.machines:
            yield f"  {name}  {how}"


_REPORTERS: dict[str, Callable[[Config], Iterator[str]]] = {
    "qemu": _report_local,
    "kubevirt": _report_cluster,
}
