"""Which runs are on the cluster, which of them are dead, and how they are removed."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kboot.deadline import Deadline
from kboot.kube import CONFIG_MAPS, VIRTUAL_MACHINES, ApiError, Client
from kboot.kubevirt.holder import Holder
from kboot.kubevirt.manifests import HEARTBEAT, HOLDER, PROCESS, TTL, USER
from kboot.kubevirt.names import NAME_LABEL, OWNER_LABEL, RUN_LABEL, selector

_LIMIT_S = 30.0
_NOT_FOUND = 404
#: A holder of whom nothing was heard for so long is dead; he should have said something thrice.
_SILENCE_S = 70.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRun:
    """One run's owner object, and what hangs on it."""

    #: The name of the owner object, and of the boot server.
    name: str
    identifier: str
    #: Who runs it: ``user@host``.
    user: str
    #: Seconds since it began.
    age_s: float
    #: Seconds since it said last that it lives.
    silent_s: float
    #: After how much silence it is dead.
    ttl_s: float
    #: What its machine is called, and by whom, if it is one that stays; else empty.
    machine: str
    owner: str
    #: The process that looks after such a machine, see `kboot.kubevirt.holder`.
    holder: Holder | None
    #: Whether the process that has it runs, if that is one of this host; None if not known.
    running: bool | None
    #: The version of its owner object.
    version: str
    #: Its machines, with their states as KubeVirt words them.
    machines: tuple[tuple[str, str], ...]

    @property
    def dead(self) -> bool:
        """Whether its process has ended; of one on another host: was silent for too long."""
        return self.silent_s > self.ttl_s if self.running is None else not self.running


def find_runs(
    client: Client, *, now: datetime.datetime | None = None, limit_s: float = _LIMIT_S
) -> list[ClusterRun]:
    """The runs in the client's namespace, the oldest first.

    Only what carries kboot's labels and its annotations is looked at. `ClusterError` if there is no
    such namespace.
    """
    deadline = Deadline(limit_s)
    owners, _ = client.find(
        CONFIG_MAPS, deadline, labelSelector=f"{selector()},app.kubernetes.io/component=run"
    )
    machines, _ = client.find(VIRTUAL_MACHINES, deadline, labelSelector=selector())
    moment = now or datetime.datetime.now(datetime.UTC)
    if not owners:
        _require_namespace(client, deadline)
    runs = [_read(owner, machines, moment) for owner in owners]
    return sorted((run for run in runs if run), key=lambda run: (-run.age_s, run.name))


def _require_namespace(client: Client, deadline: Deadline) -> None:
    """Raise if there is no such namespace: a list of what is in it is empty, and no error."""
    name = "kboot-probe"
    probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    path = CONFIG_MAPS.path(client.namespace)
    try:
        client.json("POST", path, deadline, query={"dryRun": "All"}, body=probe)
    except ApiError as error:
        # Whatever else is refused, is refused in a namespace that is there.
        if error.status == _NOT_FOUND:
            raise


def remove(client: Client, run: ClusterRun) -> bool:
    """Delete a run with all that belongs to it; whether it was still there."""
    return client.delete(CONFIG_MAPS, run.name, Deadline(_LIMIT_S))


def about_machine(run: ClusterRun) -> str:
    """Who looks after the machine that stays in this run, in words."""
    care = f"in the care of {run.holder}" if holder_lives(run) else "nobody looks after it"
    return f"machine {run.machine} of {run.owner}, {care}"


def holder_lives(run: ClusterRun) -> bool:
    """Whether a process looks after the run's machine."""
    holder = run.holder
    return holder is not None and holder.lives(silent_s=run.silent_s, limit_s=_SILENCE_S)


def _read(
    owner: Mapping[str, Any], machines: Iterable[Mapping[str, Any]], now: datetime.datetime
) -> ClusterRun | None:
    """A run from its owner object; None if it is not one after all."""
    metadata = owner["metadata"]
    notes = metadata.get("annotations") or {}
    identifier = metadata.get("labels", {}).get(RUN_LABEL)
    try:
        heartbeat = datetime.datetime.fromisoformat(notes[HEARTBEAT])
        created = datetime.datetime.fromisoformat(metadata["creationTimestamp"])
        ttl_s = float(notes[TTL])
    except (KeyError, ValueError):
        return None
    if not identifier:
        return None
    process = Holder.parse(notes.get(PROCESS, ""))
    own = [each for each in machines if each["metadata"]["labels"].get(RUN_LABEL) == identifier]
    return ClusterRun(
        name=metadata["name"],
        identifier=identifier,
        user=notes.get(USER, "unknown"),
        age_s=(now - created).total_seconds(),
        silent_s=(now - heartbeat).total_seconds(),
        ttl_s=ttl_s,
        machine=metadata["labels"].get(NAME_LABEL, ""),
        owner=metadata["labels"].get(OWNER_LABEL, ""),
        holder=Holder.parse(notes.get(HOLDER, "")),
        running=process.is_running() if process else None,
        version=metadata["resourceVersion"],
        machines=tuple(
            (vm["metadata"]["name"], str(vm.get("status", {}).get("printableStatus", "unknown")))
            for vm in own
        ),
    )
