"""Machines that stay on a cluster, by their names: made, found again, taken up, and removed."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from dataclasses import replace

from kboot.backend import StayingMachine
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError, InfraError
from kboot.kube import CONFIG_MAPS, SECRETS, ApiError, Client, connect
from kboot.kubevirt import hygiene, manifests, runs
from kboot.kubevirt.holder import Holder, user_name
from kboot.kubevirt.hygiene import ClusterRun
from kboot.kubevirt.manifests import Run
from kboot.kubevirt.names import NAME_LABEL, OWNER_LABEL, label
from kboot.kubevirt.settings import ClusterSettings
from kboot.kubevirt.staying import HEARTBEAT_S, NOTE, POD, StayingCluster
from kboot.log import logger

_LIMIT_S = 30.0
#: A cluster that is not there is not waited for where its machines are only listed.
_FIND_LIMIT_S = 8.0
_CONFLICT = 409
_MISSING = 404


@contextlib.contextmanager
def open_staying(settings: ClusterSettings, name: str) -> Iterator[StayingCluster]:
    """The backend for a new machine called `name`, which is removed at the end unless it is left.

    `ConfigError` if there is one of that name already.
    """
    settings = _with_owner(settings)
    client = connect(settings.context, settings.namespace)
    if there := _find(client, settings, name):
        raise _taken(there)
    me = Holder.this_process()
    labels = {NAME_LABEL: name, OWNER_LABEL: label(settings.owner)}
    run = runs.begin(client, labels=labels, annotations={manifests.HOLDER: me.to_text()})
    left = False
    try:
        # Of two who have begun at the same time, both find the same one to be the first.
        first = _find(client, settings, name)
        if first and first.identifier != run.identifier:
            raise _taken(first)
        with contextlib.ExitStack() as stack:
            watches = runs.watch(stack, client, run)
            backend = StayingCluster(client, run, settings, watches, me=me)
            stack.enter_context(_kept_alive(backend))
            try:
                yield backend
            finally:
                left = backend.left
    finally:
        _finish(client, run, me, left=left)


@contextlib.contextmanager
def rejoin(
    settings: ClusterSettings, name: str, *, by_force: bool = False
) -> Iterator[StayingCluster]:
    """The backend for the machine called `name` that is there: taken up, if nobody has it.

    It is removed at the end unless it is left, or the ``with`` fails. `ConfigError` if there is
    none, or if a process that lives looks after it, unless it is taken from that `by_force`.
    """
    settings = _with_owner(settings)
    client = connect(settings.context, settings.namespace)
    me = Holder.this_process()
    there = _take(client, settings, name, me, by_force=by_force)
    run = Run(identifier=there.identifier, namespace=client.namespace)
    left = True
    try:
        run = runs.join(client, there.identifier)
        with contextlib.ExitStack() as stack:
            watches = runs.watch(stack, client, run)
            note, pod = _read_note(client, run, name)
            backend = StayingCluster(client, run, settings, watches, me=me, note=note, pod=pod)
            stack.enter_context(_kept_alive(backend))
            yield backend
            left = backend.left
    finally:
        _finish(client, run, me, left=left)


def find_staying(settings: ClusterSettings) -> list[StayingMachine]:
    """The machines that stay in the namespace, whoever they belong to."""
    client = connect(settings.context, settings.namespace)
    owner = label(_with_owner(settings).owner)
    return [
        StayingMachine(
            identifier=run.identifier,
            name=run.machine,
            owner=run.owner,
            ours=run.owner == owner,
            user=run.user,
            age_s=run.age_s,
            silent_s=run.silent_s,
            ttl_s=run.ttl_s,
            condition=next((how for _, how in run.machines), "not there"),
            holder=str(run.holder) if hygiene.holder_lives(run) else "",
        )
        for run in hygiene.find_runs(client, limit_s=_FIND_LIMIT_S)
        if run.machine
    ]


def remove_staying(settings: ClusterSettings, name: str) -> bool:
    """Remove a machine that nobody looks after, with all that belongs to it; whether it was there.

    `ConfigError` if a process that lives looks after it.
    """
    client = connect(settings.context, settings.namespace)
    there = _find(client, _with_owner(settings), name)
    if there is None:
        return False
    _require_free(there)
    return hygiene.remove(client, there)


# ------------------------------------------------------------------------------------------ inside


def _with_owner(settings: ClusterSettings) -> ClusterSettings:
    return replace(settings, owner=settings.owner or user_name())


def _find(client: Client, settings: ClusterSettings, name: str) -> ClusterRun | None:
    owner = label(settings.owner)
    found = (run for run in hygiene.find_runs(client) if (run.machine, run.owner) == (name, owner))
    return next(found, None)


def _taken(run: ClusterRun) -> ConfigError:
    return ConfigError(
        f"there is a machine called {run.machine} of {run.owner} on the cluster already, started "
        f"by {run.user}: kboot status {run.machine}; kboot down {run.machine}"
    )


def _require_free(run: ClusterRun) -> None:
    if hygiene.holder_lives(run):
        raise ConfigError(
            f"the machine {run.machine} is in the care of {run.holder}, heard of "
            f"{run.silent_s:.0f} s ago: ask it there, or take it from there: kboot take "
            f"{run.machine}"
        )


def _take(
    client: Client, settings: ClusterSettings, name: str, me: Holder, *, by_force: bool
) -> ClusterRun:
    """Become the one who looks after the machine."""
    deadline = Deadline(_LIMIT_S)
    for _ in deadline.poll(0.2):
        there = _find(client, settings, name)
        if there is None:
            raise ConfigError(
                f"there is no machine called {name} of {settings.owner} in namespace "
                f"{client.namespace}; start it: kboot up"
            )
        if not by_force:
            _require_free(there)
        notes = {manifests.HOLDER: me.to_text(), manifests.HEARTBEAT: manifests.now()}
        # Only if it is as we have seen it: another one may be doing the same.
        change = {"metadata": {"annotations": notes, "resourceVersion": there.version}}
        try:
            client.patch(CONFIG_MAPS, there.name, change, deadline)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
        else:
            return there
    raise ClusterError(f"the machine {name} could not be taken up: its object changes all the time")


def _read_note(client: Client, run: Run, name: str) -> tuple[str, str]:
    try:
        data = client.get(SECRETS, run.note_name, Deadline(_LIMIT_S))["data"]
        note, pod = (base64.b64decode(data[key]).decode() for key in (NOTE, POD))
    except (ApiError, KeyError) as error:
        if isinstance(error, ApiError) and error.status != _MISSING:
            raise
        raise InfraError(
            f"the machine {name} was never finished: who started it has ended too early; "
            f"kboot down {name} removes it"
        ) from error
    return note, pod


@contextlib.contextmanager
def _kept_alive(backend: StayingCluster) -> Iterator[None]:
    with runs.heartbeat(backend.client, backend.run, interval_s=HEARTBEAT_S, heard=backend.hear):
        yield


def _finish(client: Client, run: Run, me: Holder, *, left: bool) -> None:
    """Remove the run, or, if it is `left`, say that nobody looks after it any more."""
    if left:
        try:
            owner = client.get(CONFIG_MAPS, run.name, Deadline(_LIMIT_S))
            if Holder.parse(owner["metadata"]["annotations"].get(manifests.HOLDER, "")) == me:
                nobody = {"metadata": {"annotations": {manifests.HOLDER: ""}}}
                client.patch(CONFIG_MAPS, run.name, nobody, Deadline(_LIMIT_S))
        except ClusterError as error:
            logger.debug("not said that the machine is left: %s", error)
    else:
        runs.end(client, run)
    client.close()
