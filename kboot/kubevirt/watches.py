"""What the cluster shows of machines: their objects, as the watches of a run have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt import diagnosis, waiting
from kboot.kubevirt.api import PODS, VIRTUAL_MACHINES, VMIS, ApiError, Client, Watch
from kboot.kubevirt.api.client import Resource
from kboot.kubevirt.manifests import MACHINE_LABEL, RUN_LABEL, Manifest

_MISSING = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Watches:
    """What the machines of a run share to see how they are."""

    vms: Watch
    vmis: Watch
    pods: Watch

    def check(self) -> None:
        """Raise what ended one of them for good, if anything has."""
        for watch in (self.vms, self.vmis, self.pods):
            watch.check()


class MachineView:
    """One machine's objects as they are now. None of them is to be changed."""

    def __init__(self, watches: Watches, manifest: Manifest, client: Client) -> None:
        self._watches = watches
        labels = manifest["metadata"]["labels"]
        self._label = labels[MACHINE_LABEL]
        keys = (RUN_LABEL, MACHINE_LABEL)
        self._selector = ",".join(f"{key}={labels[key]}" for key in keys)
        self._client = client
        #: Of the VirtualMachine, and of each of its instances.
        self.name: str = manifest["metadata"]["name"]

    def vm(self) -> dict[str, Any] | None:
        """The VirtualMachine, or None if it is not there."""
        return self._watches.vms.get(self.name)

    def instance(self) -> dict[str, Any] | None:
        """The VirtualMachineInstance that there is now, or None."""
        return self._watches.vmis.get(self.name)

    def other_than(self, uid: str) -> dict[str, Any] | None:
        """The instance that there is now, unless it is the one with this uid."""
        vmi = self.instance()
        return vmi if vmi and vmi["metadata"]["uid"] != uid else None

    @property
    def uid(self) -> str:
        """The uid of the instance that there is now; empty if there is none."""
        return str((self.instance() or {}).get("metadata", {}).get("uid", ""))

    @property
    def phase(self) -> str:
        """The instance's phase; empty if there is none."""
        return diagnosis.phase_of(self.instance())

    def pods(self) -> list[dict[str, Any]]:
        """The launcher pods of the instance."""
        vmi = self.instance()
        return [
            pod
            for pod in self._watches.pods.all()
            if pod["metadata"].get("labels", {}).get(MACHINE_LABEL) == self._label
            and _is_of(pod, vmi)
        ]

    def look(
        self, client: Client, deadline: Deadline
    ) -> tuple[dict[str, Any] | None, list[dict[str, Any]], dict[str, Any] | None]:
        """Instance, launcher pods and VirtualMachine as the cluster has them at this moment."""
        vmi = _get(client, VMIS, self.name, deadline)
        found, _ = client.find(PODS, deadline, labelSelector=self._selector)
        return vmi, found, _get(client, VIRTUAL_MACHINES, self.name, deadline)

    def fault(self) -> str | None:
        """What keeps the machine from running, or ended it; None if nothing does."""
        return diagnosis.machine_fault(self.instance(), self.pods(), self.vm())

    def is_over(self) -> bool:
        """Whether the instance has ended, or somebody has begun to end it."""
        vmi = self.instance()
        return (
            vmi is None
            or diagnosis.phase_of(vmi) in {"Succeeded", "Failed"}
            or diagnosis.ended_from_outside(vmi, self.pods(), self.vm()) is not None
        )

    def is_running(self, uid: str) -> bool:
        """Whether the instance with this uid is there, and runs."""
        vmi = self.instance()
        return (
            vmi is not None
            and vmi["metadata"]["uid"] == uid
            and "deletionTimestamp" not in vmi["metadata"]
            and diagnosis.phase_of(vmi) == "Running"
        )

    def is_off(self) -> bool | None:
        """True if nothing of the machine runs; None if something does (see `wait_for`)."""
        return self.phase in {"", "Succeeded", "Failed"} or None

    def is_paused(self) -> bool:
        """Whether the instance's processors are stopped."""
        return diagnosis.is_paused(self.instance())

    def wait_for(self, find: Callable[[], Any], deadline: Deadline) -> Any:
        """As `kboot.kubevirt.api.Watch.wait_for`, with changes of every kind of object."""
        return self._watches.vmis.wait_for(find, deadline)

    def wait_until_it_runs(self, old: str, deadline: Deadline) -> dict[str, Any]:
        """The instance that follows the one with the uid `old`, once it runs.

        `ClusterError` if it cannot, with the reason. One that has powered itself off did run. What
        passes by itself is waited for.
        """

        def running() -> dict[str, Any] | None:
            vmi = self.other_than(old)
            if trouble() is None and diagnosis.phase_of(vmi) in {"Running", "Succeeded"}:
                return vmi
            return None

        def trouble() -> diagnosis.Trouble | None:
            # The end of an old instance is no fault of the one that is to come.
            if old and self.other_than(old) is None:
                return None
            return diagnosis.machine_trouble(self.instance(), self.pods(), self.vm())

        patience = waiting.Patience(self._client, f"machine {self.name}")
        found: dict[str, Any] | None = waiting.wait_for(
            self._watches.vmis, running, trouble, patience, deadline
        )
        if found is None:
            raise ClusterError(
                f"machine {self.name} did not run in {deadline.seconds:.0f} s: it is "
                f"{self.phase or 'not there'}; see: kubectl describe vmi {self.name}"
            )
        return found


def _get(
    client: Client, resource: Resource, name: str, deadline: Deadline
) -> dict[str, Any] | None:
    try:
        return client.get(resource, name, deadline)
    except ApiError as error:
        if error.status != _MISSING:
            raise
    return None


def _is_of(pod: Mapping[str, Any], vmi: Mapping[str, Any] | None) -> bool:
    uid = vmi and vmi["metadata"]["uid"]
    return any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences", ()))
