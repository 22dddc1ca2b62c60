"""Machines that the cluster keeps ready by itself: a VirtualMachineInstanceReplicaSet.

All are alike, and boot by one script. Who wants one takes it out of the set by its labels, in one
step; the cluster starts another in its place at once, whether we live or not.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kubevirt import claims, diagnosis, manifests, preflight, vm_manifest
from kboot.kubevirt.api import REPLICA_SETS, VMIS, ApiError, Client
from kboot.kubevirt.manifests import Manifest, Run
from kboot.kubevirt.virtual_machine import ClusterVirtualMachine
from kboot.kubevirt.watches import Patience, Watches, create_when_allowed, wait_for
from kboot.log import logger
from kboot.machine_spec import MachineSpec

_LIMIT_S = 30.0
_MISSING = 404

#: On the instances that the set has; one without it is somebody's, or is being looked into.
POOL_LABEL = "kboot.dev/pool"
#: Why one was taken out: ``leased to process 12: make``.
TAKEN = "kboot.dev/taken-out"

#: For guests with an ssh server. A boot under emulation takes half a minute; a guest that has not
#: answered for three periods is dead, and KubeVirt ends its instance, so that the set replaces it.
_READINESS = {"tcpSocket": {"port": 22}, "initialDelaySeconds": 10, "periodSeconds": 5}
_LIVENESS = {
    "tcpSocket": {"port": 22},
    "initialDelaySeconds": 180,
    "periodSeconds": 10,
    "failureThreshold": 3,
}


def manifest(spec: MachineSpec, run: Run, settings: ClusterConfig, *, replicas: int) -> Manifest:
    """The set, owned by the run. `ConfigError` for what a cluster's machine cannot have."""
    machine = vm_manifest.manifest(spec, run, settings)
    template = copy.deepcopy(machine["spec"]["template"])
    name = machine["metadata"]["name"]
    selected = {POOL_LABEL: name}
    template["metadata"]["labels"] |= selected
    instance = template["spec"]
    for card in instance["domain"]["devices"]["interfaces"]:
        # All would have the same; without one, each gets its own.
        card.pop("macAddress", None)
    if spec.ssh:
        instance.setdefault("readinessProbe", _READINESS)
        instance.setdefault("livenessProbe", _LIVENESS)
    return {
        "apiVersion": REPLICA_SETS.api_version,
        "kind": REPLICA_SETS.kind,
        "metadata": manifests.owned(run, machine["metadata"]["labels"], name),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selected},
            "template": template,
        },
    }


class ReplicaMachine(ClusterVirtualMachine):
    """One instance of a set (see `kboot.backend.ReplicaVirtualMachine`). It has no switch."""

    def __init__(
        self,
        client: Client,
        watches: Watches,
        spec: MachineSpec,
        instance: Manifest,
        owner: Manifest,
    ) -> None:
        """`owner` is what it belongs to once it was taken out."""
        super().__init__(client, watches, spec, instance, paused=False)
        self._pool = instance["metadata"]["labels"][POOL_LABEL]
        self._owner = owner
        self._taken = False

    def take_out(self, why: str) -> None:
        """Have it alone: the set starts another one. `ClusterError` if the set has it no more."""
        if self._taken:
            return
        label = f"/metadata/labels/{POOL_LABEL.replace('/', '~1')}"
        change = [
            # Whoever comes second finds another value, or none.
            {"op": "test", "path": label, "value": self._pool},
            {"op": "remove", "path": label},
            {"op": "add", "path": "/metadata/ownerReferences", "value": [self._owner]},
            {
                "op": "add",
                "path": "/metadata/annotations",
                "value": {**(self._manifest["metadata"].get("annotations") or {}), TAKEN: why},
            },
        ]
        try:
            self._client.patch(VMIS, self._name, change, Deadline(_LIMIT_S))
        except ApiError as error:
            raise ClusterError(f"machine {self._name} cannot be had: {error}") from error
        self._taken = True

    def delete(self) -> None:
        """Remove it, wherever it belongs."""
        try:
            self._client.delete(VMIS, self._name, Deadline(_LIMIT_S))
        except ClusterError as error:
            logger.warning("machine %s could not be deleted: %s", self._name, error)

    def restart(self, *, force: bool = False) -> None:
        """It cannot."""
        raise ConfigError(
            "a machine of a pool is not switched off and on: release it, and acquire another; "
            "reset() keeps it"
        )

    def stop(self, *, force: bool = False) -> None:
        """It cannot."""
        self.restart()

    def start(self) -> None:
        """It cannot."""
        self.restart()

    def set_link(self, *, up: bool) -> None:
        """It cannot: KubeVirt takes the state of a link from a VirtualMachine only (1.9)."""
        raise ConfigError("the cable of a machine of a pool cannot be pulled on a cluster")


class ReplicaSet:
    """The set, and which of its machines were given to somebody here. By `open_replica_set`."""

    def __init__(
        self, client: Client, watches: Watches, run: Run, spec: MachineSpec, name: str
    ) -> None:
        self._client = client
        self._watches = watches
        self._run = run
        self._spec = spec
        self.name = name
        #: The uids of those that were, and of those that were deleted since.
        self._given: set[str] = set()
        self._deleted: set[str] = set()
        self._closed = False
        #: As many as there are to be in the end, while the set stands still.
        self._shrinking: int | None = None

    @contextlib.contextmanager
    def machine(self, deadline: Deadline) -> Iterator[ReplicaMachine]:
        """One that runs and that nobody else has got from here; it is deleted after the ``with``.

        It is of the set until it is taken out. `ClusterError` if none comes, with the reason.
        """
        instance = self._next(deadline)
        owner = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": self._run.name,
            "uid": self._run.owner_uid,
        }
        machine = ReplicaMachine(self._client, self._watches, self._spec, instance, owner)
        try:
            with machine.met(deadline):
                yield machine
        finally:
            machine.delete()
            # The watch may not know it yet.
            self._deleted.add(instance["metadata"]["uid"])
            self._settle()

    def scale(self, replicas: int) -> None:
        """Have so many from now on. Which are too many is decided by who deletes them."""
        current = len(self._members())
        # Else the set itself would choose, and end one that is being handed out.
        self._shrinking = replicas if replicas < current else None
        change = {"spec": {"replicas": replicas, "paused": self._shrinking is not None}}
        self._client.patch(REPLICA_SETS, self.name, change, Deadline(_LIMIT_S))
        self._settle()

    def close(self) -> None:
        """Give no more machines."""
        self._closed = True

    # -------------------------------------------------------------------------------- inside

    def _members(self) -> list[dict[str, Any]]:
        """The instances that the set has."""
        return [
            vmi
            for vmi in self._watches.vmis.all()
            if vmi["metadata"].get("labels", {}).get(POOL_LABEL) == self.name
            and "deletionTimestamp" not in vmi["metadata"]
            and vmi["metadata"]["uid"] not in self._deleted
            and diagnosis.phase_of(vmi) not in {"Succeeded", "Failed"}
        ]

    def _settle(self) -> None:
        """Let the set go on once there are no more than there are to be."""
        if self._shrinking is None or len(self._members()) > self._shrinking:
            return
        self._shrinking = None
        with contextlib.suppress(ClusterError):
            change = {"spec": {"paused": False}}
            self._client.patch(REPLICA_SETS, self.name, change, Deadline(_LIMIT_S))

    def _next(self, deadline: Deadline) -> dict[str, Any]:
        def free() -> list[dict[str, Any]]:
            members = self._members()
            return [each for each in members if each["metadata"]["uid"] not in self._given]

        def running() -> dict[str, Any] | None:
            if self._closed:
                raise ClusterError(f"the set {self.name} is being removed")
            # Under the watches' lock: of two who look at once, each gets another.
            for vmi in free():
                if diagnosis.phase_of(vmi) == "Running":
                    self._given.add(vmi["metadata"]["uid"])
                    return vmi
            return None

        def trouble() -> diagnosis.Trouble | None:
            pods = self._watches.pods.all()
            found = (diagnosis.machine_trouble(vmi, pods, None) for vmi in free())
            return next(filter(None, found), None)

        patience = Patience(self._client, f"the set {self.name}")
        found = wait_for(self._watches.vmis, running, trouble, patience, deadline)
        if found is None:
            raise ClusterError(
                f"the set {self.name} has started no machine in {deadline.seconds:.0f} s"
                f"{self._failure()}; see: kubectl describe vmirs {self.name}"
            )
        return dict(found)

    def _failure(self) -> str:
        """Why the set makes no instance, as it says itself."""
        there = claims.find(self._client, REPLICA_SETS, self.name) or {}
        for condition in there.get("status", {}).get("conditions") or ():
            if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                return f": {condition.get('message')}"
        return ""


@contextlib.contextmanager
def open_replica_set(
    client: Client,
    watches: Watches,
    run: Run,
    spec: MachineSpec,
    settings: ClusterConfig,
    *,
    replicas: int,
    deadline: Deadline,
    prepare: Callable[[], object] = lambda: None,
) -> Iterator[ReplicaSet]:
    """The set, for the length of the ``with``; all of its machines go with it."""
    wanted = manifest(spec, run, settings, replicas=replicas)
    judged = vm_manifest.manifest(spec, run, settings)
    preflight.check(client, judged, settings.cluster_patch, deadline)
    prepare()
    name = wanted["metadata"]["name"]
    create_when_allowed(client, wanted, f"the set {name}", deadline)
    try:
        yield ReplicaSet(client, watches, run, spec, name)
    finally:
        try:
            client.delete(REPLICA_SETS, name, Deadline(_LIMIT_S))
        except ClusterError as error:
            logger.warning("the set %s could not be deleted: %s", name, error)
