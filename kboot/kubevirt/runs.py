"""Runs on a cluster: those that live, and what killed ones have left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kboot.backend import FoundRun
from kboot.config import ClusterConfig
from kboot.kubevirt import ownership
from kboot.kubevirt.api import connect
from kboot.kubevirt.api.client import Client
from kboot.kubevirt.ownership import ClusterRun
from kboot.log import age


def find_runs(settings: ClusterConfig) -> list[FoundRun]:
    """All runs in the namespace, whoever started them."""
    return [_found(run) for run in ownership.find_runs(_client(settings))]


def dead_runs(settings: ClusterConfig, *, remove: bool) -> Iterator[str]:
    """Each dead run in a line; it is gone then, if it is to be removed."""
    client = _client(settings)
    for run in ownership.find_runs(client):
        if not run.dead or (remove and not ownership.remove(client, run)):
            continue
        machines = "".join(f", machine {name}" for name, _ in run.machines)
        if run.machine:
            machines = f", {ownership.about_machine(run)}"
        yield f"run {run.name} of {run.user}, {age(run.age_s)} old, {_why_dead(run)}{machines}"


def _client(settings: ClusterConfig) -> Client:
    return connect(settings.context, settings.namespace, kubeconfig=settings.kubeconfig)


def _found(run: ClusterRun) -> FoundRun:
    condition = f"dead, {_why_dead(run)}" if run.dead else "live"
    stays = f", {ownership.about_machine(run)}" if run.machine else ""
    return FoundRun(
        summary=f"{run.name}  {run.user}  {age(run.age_s)} old, {condition}{stays}",
        details=tuple(f"{name}  {how}" for name, how in run.machines),
        values={**dataclasses.asdict(run), "dead": run.dead},
    )


def _why_dead(run: ClusterRun) -> str:
    return "its process has ended" if run.running is False else f"silent for {age(run.silent_s)}"
