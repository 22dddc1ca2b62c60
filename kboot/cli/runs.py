"""``kboot runs``: which runs are there, on this host or on a cluster, and how they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import click

from kboot import state
from kboot.cli.gc import age, why_dead
from kboot.cli.naming import json_option, print_json
from kboot.cli.options import config_options, load_config
from kboot.config import Config


@click.command(epilog="What is dead, kboot gc removes.")
@config_options("backend", "context", "namespace")
@json_option
def runs(*, as_json: bool, **options: Any) -> None:
    """Show the runs that are there: on this host, or with --backend on a cluster."""
    config = load_config(options)
    found = list(_REPORTERS[config.backend](config))
    if as_json:
        print_json([value for value, _ in found])
        return
    for _, lines in found:
        click.echo("\n".join(lines))
    if not found:
        click.echo("no run is there")


#: A run for programs, and the lines about it for people.
_Report = tuple[dict[str, Any], list[str]]


def _report_local(_: Config) -> Iterator[_Report]:
    stale = {run.directory for run in state.stale_runs()}
    for directory in sorted(state.runs_directory().glob("run-*")):
        dead = directory in stale
        line = f"{directory}  {'dead' if dead else 'lives'}"
        yield {"directory": str(directory), "dead": dead}, [line]


def _report_cluster(config: Config) -> Iterator[_Report]:
    from kboot.kube import connect  # noqa: PLC0415  half a second
    from kboot.kubevirt import hygiene  # noqa: PLC0415

    for run in hygiene.find_runs(connect(config.context, config.namespace)):
        condition = f"dead, {why_dead(run)}" if run.dead else "lives"
        stays = f", {hygiene.about_machine(run)}" if run.machine else ""
        lines = [f"{run.name}  {run.user}  {age(run.age_s)} old, {condition}{stays}"]
        lines += [f"  {name}  {how}" for name, how in run.machines]
        yield {**dataclasses.asdict(run), "dead": run.dead}, lines


_REPORTERS: dict[str, Callable[[Config], Iterator[_Report]]] = {
    "qemu": _report_local,
    "kubevirt": _report_cluster,
}
