"""A run's objects as its watches have them, and how long what keeps them from starting is borne."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt import diagnosis
from kboot.kubevirt.api import EVENTS, PODS, VIRTUAL_MACHINES, VMIS, ApiError, Client, Watch
from kboot.kubevirt.api.client import Resource
from kboot.kubevirt.manifests import MACHINE_LABEL, RUN_LABEL, Manifest, selector
from kboot.log import logger

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

        patience = Patience(self._client, f"machine {self.name}")
        found: dict[str, Any] | None = wait_for(
            self._watches.vmis, running, trouble, patience, deadline, self._mount_fault
        )
        if found is None:
            raise ClusterError(
                f"machine {self.name} did not run in {deadline.seconds:.0f} s: it is "
                f"{self.phase or 'not there'}; see: kubectl describe vmi {self.name}"
            )
        return found

    def _mount_fault(self) -> str | None:
        """What keeps its launcher pod from its volumes: nothing but events says so."""
        for pod in self.pods():
            if diagnosis.awaits_volumes(pod):
                about = f"involvedObject.name={pod['metadata']['name']}"
                deadline = Deadline(_REQUEST_LIMIT_S)
                events, _ = self._client.find(EVENTS, deadline, fieldSelector=about)
                if fault := diagnosis.mount_fault(pod, events):
                    return f"machine {self.name}: {fault}"
        return None


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


#: How often it is looked again whether waiting helps.
_LOOK_S = 0.5
#: After how long it is asked for what no watch shows.
LOOK_CLOSER_S = 4.0
_REQUEST_LIMIT_S = 10.0

#: How long a trouble is borne for which nothing is known to be under way. A cluster's autoscaler
#: looks for pods without a node every 10 s; the scheduler comes back to a pod after 10 s at most;
#: a quota's use is counted anew a little after a pod is gone, and KubeVirt then tries again.
GRACE_S = {
    diagnosis.Obstacle.ROOM: 12.0,
    diagnosis.Obstacle.QUOTA: 5.0,
    diagnosis.Obstacle.CLAIM: 0.0,
}
_GRACE_AFTER_ENDING_S = 15.0

#: Of the cluster autoscaler and of Karpenter: a node is on its way, or none will come.
_ADDS_NODE = {"TriggeredScaleUp", "Nominated"}
_ADDS_NONE = "NotTriggerScaleUp"
_STARTS_NODE = "node.kubernetes.io/not-ready"


class Patience:
    """Decides for one start whether waiting helps, and says in the log why it waits."""

    def __init__(self, client: Client, what: str) -> None:
        """`what` is what is to start, for the log."""
        self._client = client
        self._what = what
        self._begun = time.monotonic()
        #: Until when a trouble without a reason to wait is borne, by its kind.
        self._grace: dict[diagnosis.Obstacle, Deadline] = {}
        self._told = ""

    def bears(self, trouble: diagnosis.Trouble) -> bool:
        """Whether to wait on."""
        if trouble.obstacle is None:
            return False
        try:
            reason = self._reason(trouble, trouble.obstacle)
        except ClusterError as error:
            logger.debug("what %s waits for is not known: %s", self._what, error)
            reason = None
        if reason:
            if reason != self._told:
                logger.warning("%s waits: %s (%s)", self._what, reason, trouble.message)
                self._told = reason
            self._grace[trouble.obstacle] = Deadline(_GRACE_AFTER_ENDING_S)
            return True
        if reason == "":
            return False
        grace = self._grace.setdefault(trouble.obstacle, Deadline(GRACE_S[trouble.obstacle]))
        if not self._told and not grace.expired:
            self._told = "to see whether room is made"
            logger.warning(
                "%s waits %.0f s %s (%s)", self._what, grace.seconds, self._told, trouble.message
            )
        return not grace.expired

    def error(self, trouble: diagnosis.Trouble) -> ClusterError:
        """The error for a trouble that was not borne, or did not pass in time."""
        words = trouble.text
        if trouble.obstacle is diagnosis.Obstacle.CLAIM:
            for claim in trouble.claims:
                if said := self._last_warning(claim):
                    words += f"; the cluster says about claim {claim}: {said}"
        waited_s = time.monotonic() - self._begun
        return ClusterError(f"{words} (waited {waited_s:.0f} s)" if self._told else words)

    # -------------------------------------------------------------------------------- inside

    def _reason(self, trouble: diagnosis.Trouble, obstacle: diagnosis.Obstacle) -> str | None:
        """Why to wait; empty if it is known to be in vain, None if nothing is known."""
        if obstacle is diagnosis.Obstacle.CLAIM:
            hopeless = any(_is_hopeless(self._last_warning(claim)) for claim in trouble.claims)
            return "" if hopeless else "a volume claim is being bound"
        pods, _ = self._client.find(PODS, Deadline(_REQUEST_LIMIT_S), labelSelector=selector())
        if ending := sum(map(_is_ending, pods)):
            return f"{ending} pod{'s' * (ending > 1)} of earlier machines or runs still ending"
        if obstacle is diagnosis.Obstacle.QUOTA:
            return None
        if _STARTS_NODE in trouble.message:
            return "a node is starting"
        seen = [str(each.get("reason")) for each in self._events_about(trouble.pod)]
        if _ADDS_NODE.intersection(seen):
            return "a node is being added"
        return "" if _ADDS_NONE in seen else None

    def _events_about(self, name: str) -> list[dict[str, Any]]:
        if not name:
            return []
        about = f"involvedObject.name={name}"
        return self._client.find(EVENTS, Deadline(_REQUEST_LIMIT_S), fieldSelector=about)[0]

    def _last_warning(self, name: str) -> str:
        """What the cluster has warned of last about an object; empty if of nothing."""
        try:
            events = self._events_about(name)
        except ClusterError as error:
            logger.debug("what was said about %s is not known: %s", name, error)
            return ""
        said = [str(each.get("message", "")) for each in events if each.get("type") == "Warning"]
        return said[-1] if said else ""


def wait_for(
    watch: Watch,
    find: Callable[[], Any],
    find_trouble: Callable[[], diagnosis.Trouble | None],
    patience: Patience,
    deadline: Deadline,
    look_closer: Callable[[], str | None] = lambda: None,
) -> Any:
    """As `Watch.wait_for`, as long as no trouble shows that waiting does not mend.

    `look_closer` asks the cluster from time to time for a fault that is not in what is watched.
    Raises `ClusterError` with the trouble, also if there still is one at the deadline.
    """
    trouble: diagnosis.Trouble | None = None

    def look() -> Any:
        nonlocal trouble
        if (found := find()) is not None:
            trouble = None
            return found
        trouble = find_trouble()
        return True if trouble else None

    while True:
        found = watch.wait_for(look, deadline.within(LOOK_CLOSER_S))
        if trouble is None:
            if found is not None or deadline.expired:
                return found
            if fault := look_closer():
                raise ClusterError(fault)
            continue
        # Asked outside of the wait, which has the watches' lock.
        if deadline.expired or not patience.bears(trouble):
            raise patience.error(trouble)
        time.sleep(min(_LOOK_S, deadline.remaining))


def create_when_allowed(
    client: Client, manifest: Manifest, what: str, deadline: Deadline
) -> dict[str, Any]:
    """Create an object, once a quota that is held by what is ending allows it."""
    patience = Patience(client, what)
    while True:
        try:
            return client.create(manifest, deadline)
        except ApiError as error:
            if "exceeded quota" not in error.text:
                raise
            trouble = diagnosis.Trouble(
                text=str(error), message=error.text, obstacle=diagnosis.Obstacle.QUOTA
            )
            if deadline.expired or not patience.bears(trouble):
                raise
        time.sleep(min(_LOOK_S, deadline.remaining))


def _is_ending(pod: dict[str, Any]) -> bool:
    """Whether a pod ends, and has its memory still."""
    phase = pod.get("status", {}).get("phase")
    return "deletionTimestamp" in pod["metadata"] and phase not in {"Succeeded", "Failed"}


def _is_hopeless(warning: str) -> bool:
    return "storageclass" in warning and "not found" in warning
