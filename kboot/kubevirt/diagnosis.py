"""Why something on the cluster does not come up, or is gone: functions of its objects.

Each looks at objects as the API has them, and returns the fault in words with its remedy, or None
if nothing is wrong (yet).
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kboot.kubevirt.api import explain

Object = Mapping[str, Any]

#: Why a container waits, where waiting longer would not help.
_IMAGE_FAULTS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_CONTAINER_FAULTS = {
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
}

_POD_GONE = "its launcher pod is gone (deleted, evicted, or its node lost)"
_DELETED_BY = "kubectl delete vm, kboot down or kboot gc elsewhere"
_STOPPED_BY = "virtctl stop, or another client of KubeVirt's"
_RESTARTED_BY = "virtctl restart, or another client of KubeVirt's"

#: What a pod's condition ``DisruptionTarget`` gives as its reason.
_DISRUPTIONS = {
    "EvictionByEvictionAPI": "was evicted, as kubectl drain and autoscalers do",
    "PreemptionByScheduler": "was preempted by a pod of higher priority",
    "DeletionByTaintManager": "was evicted from a node with a taint",
    "DeletionByPodGC": "was removed, since its node is gone",
    "TerminationByKubelet": "was ended by its node, which shuts down or lacks resources",
}


#: How much of a container's log goes into a message.
_SHOWN = 300

_ARCHITECTURE = "kubernetes.io/arch"
_UNBOUND = "unbound immediate PersistentVolumeClaims"
#: Of an event about a pod: what it mounts is not there, which waiting does not mend.
_NOT_THERE = re.compile(r'volume "([^"]+)" : (secret|configmap) "([^"]+)" not found')
_MOUNT_EVENTS = {"FailedMount", "FailedAttachVolume", "FailedMapVolume"}

_NO_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found|PVC (\S+) does not exist')


#: As the scheduler says how many nodes there are, and how many are none that the pod may run on.
_UNFIT_NODES = re.compile(
    r"0/(?P<all>\d+) nodes are available: "
    r"(?P<unfit>\d+) node\(s\) didn't match Pod's node affinity/selector"
)


class Obstacle(Enum):
    """What keeps a pod from starting and may pass by itself."""

    #: No node has room for it.
    ROOM = "room"
    #: A quota is used up.
    QUOTA = "quota"
    #: A volume claim is not bound.
    CLAIM = "claim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What keeps a machine or a pod from running."""

    #: With its remedy.
    text: str
    #: In the cluster's words.
    message: str = ""
    #: None if it does not pass by itself.
    obstacle: Obstacle | None = None
    #: The pod that waits for a node, and the volume claims that it has; empty if there is none.
    pod: str = ""
    claims: tuple[str, ...] = ()


def machine_trouble(
    vmi: Object | None, pods: Iterable[Object], vm: Object | None
) -> Trouble | None:
    """As `machine_fault`, with what is needed to decide whether it may pass by itself."""
    pods = list(pods)
    text = machine_fault(vmi, pods, vm)
    if text is None:
        return None
    for pod in [pod for pod in pods if vmi and _belongs(pod, vmi)]:
        if (trouble := pod_trouble(pod)) and trouble.obstacle:
            return Trouble(
                text=text,
                message=trouble.message,
                obstacle=trouble.obstacle,
                pod=trouble.pod,
                claims=trouble.claims,
            )
    refused = vmi and _condition(vmi, "Synchronized", status="False")
    if refused and "exceeded quota" in str(refused.get("message")):
        return Trouble(text=text, message=str(refused["message"]), obstacle=Obstacle.QUOTA)
    if vmi and (message := _unscheduled(vmi)):
        return Trouble(text=text, message=message, obstacle=_obstacle(message))
    return Trouble(text=text)


def pod_trouble(pod: Object) -> Trouble | None:
    """As `pod_fault`, with what is needed to decide whether it may pass by itself."""
    text = pod_fault(pod)
    if text is None:
        return None
    message = _unscheduled(pod)
    return Trouble(
        text=text,
        message=message,
        obstacle=_obstacle(message) if message else None,
        pod=_name(pod),
        claims=_claims(pod),
    )


def machine_fault(vmi: Object | None, pods: Iterable[Object], vm: Object | None) -> str | None:
    """What keeps a machine that was started from running, or ended it; None if nothing does.

    `pods` are the machine's launcher pods. A guest that powered itself off is no fault of the
    cluster's: see `has_succeeded`.
    """
    if vmi is None:
        return _vm_fault(vm)
    pods = [pod for pod in pods if _belongs(pod, vmi)]
    return ended_from_outside(vmi, pods, vm) or _instance_fault(vmi, pods)


def _instance_fault(vmi: Object, pods: list[Object]) -> str | None:
    name, namespace = _name(vmi), vmi["metadata"]["namespace"]
    for pod in pods:
        if fault := pod_fault(pod):
            return f"machine {name}: {fault}"
    unsynchronised = _condition(vmi, "Synchronized", status="False")
    if unsynchronised:
        text = str(unsynchronised.get("message", ""))
        words = explain(0, text, path="", namespace=namespace) or _no_claim(text)
        return f"machine {name}: {words or _bad_disk(text) or text}"
    if message := _unscheduled(vmi):
        architecture = vmi["spec"].get("architecture")
        selector = {_ARCHITECTURE: architecture} if architecture else {}
        return _unschedulable(f"machine {name}", message, (), selector)
    if phase_of(vmi) == "Failed":
        return _failure(vmi, pods)
    return None


def pod_fault(pod: Object) -> str | None:
    """What keeps a pod from running, or ended it; None if nothing does."""
    name, status = _name(pod), pod.get("status", {})
    if message := _unscheduled(pod):
        selector = pod["spec"].get("nodeSelector") or {}
        return _unschedulable(f"pod {name}", message, _claims(pod), selector)
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_FAULTS:
            return (
                f"pod {name}: the image {container['image']} cannot be pulled ({reason}): "
                f"{message}; correct its name, or name a pull secret that "
                "may read it: --cluster-pull-secret"
            )
        if reason in _CONTAINER_FAULTS:
            return f"pod {name}: container {container['name']} does not start ({reason}): {message}"
    if status.get("phase") == "Failed" and not _is_launcher(pod):
        return f"pod {name} failed{_last_words(containers, status)}"
    return None


def is_stopped(vm: Mapping[str, Any] | None) -> bool:
    """Whether a VirtualMachine is there, and is off."""
    return vm is not None and vm.get("status", {}).get("printableStatus") == "Stopped"


def has_succeeded(vmi: Object | None) -> bool:
    """Whether an instance has ended in good order: by its guest's power-off, or from outside."""
    return phase_of(vmi) == "Succeeded"


def ended_from_outside(vmi: Object, pods: Iterable[Object], vm: Object | None) -> str | None:
    """Who ended an instance, or is about to, in words; None if nobody but its guest has.

    As recorded (KubeVirt 1.9): where the machine is stopped, restarted or deleted, its instance is
    marked for deletion; where its launcher pod is deleted or evicted, that is, a second before the
    instance succeeds; a power-off leaves no mark. The reason ``PodTerminating`` tells nothing: it
    shows some seconds after a power-off, too.
    """
    if _marked_before_the_end(vmi, vmi):
        return _ended_by_request(vmi, vm)
    pods = [pod for pod in pods if _belongs(pod, vmi)]
    # One that moves to another node has a pod that goes on.
    if pods and all(_marked_before_the_end(pod, vmi) for pod in pods):
        return (
            f"machine {_name(vmi)} was ended from outside: its launcher pod {_name(pods[-1])} "
            f"{_disruption(pods[-1])}"
        )
    if not pods and has_succeeded(vmi):
        # After a power-off its pod stays, so whether there was one cannot be told.
        return f"machine {_name(vmi)} was ended from outside: {_POD_GONE}"
    return None


def gone_from_outside(name: str, vmi: Object | None, vm: Object | None) -> str:
    """Why the instance that we had is gone: `vmi` is another one, or None."""
    if vm is None or "deletionTimestamp" in vm["metadata"]:
        return f"machine {name} was deleted from outside ({_DELETED_BY})"
    if vmi is not None:
        return f"machine {name} was restarted from outside ({_RESTARTED_BY})"
    if is_stopped(vm):
        return f"machine {name} was stopped from outside ({_STOPPED_BY})"
    return f"machine {name} was restarted or deleted from outside"


def phase_of(vmi: Object | None) -> str:
    """The phase of a VirtualMachineInstance; empty if there is none."""
    return str((vmi or {}).get("status", {}).get("phase", ""))


def is_paused(vmi: Object | None) -> bool:
    """Whether the processors of a VirtualMachineInstance are stopped."""
    return vmi is not None and _condition(vmi, "Paused", status="True") is not None


def is_ready(pod: Object | None) -> bool:
    """Whether a pod is there and ready."""
    return pod is not None and _condition(pod, "Ready", status="True") is not None


def _vm_fault(vm: Object | None) -> str | None:
    """Why a machine that was started has no instance: its VirtualMachine may say so."""
    failure = vm and _condition(vm, "Failure", status="True")
    if not vm or not failure:
        return None
    text = str(failure.get("message", ""))
    words = explain(0, text, path="", namespace=vm["metadata"]["namespace"]) or text
    return f"machine {_name(vm)}: {words}"


def _ended_by_request(vmi: Object, vm: Object | None) -> str:
    """Why an instance is to be deleted: its machine may say what was asked for."""
    name, uid = _name(vmi), vmi["metadata"]["uid"]
    if vm is None or "deletionTimestamp" in vm["metadata"]:
        return gone_from_outside(name, None, vm)
    requests = vm.get("status", {}).get("stateChangeRequests") or ()
    actions = [each["action"] for each in requests if each.get("uid") in {None, uid}]
    if "Start" in actions:
        return f"machine {name} was restarted from outside ({_RESTARTED_BY})"
    if "Stop" in actions:
        return f"machine {name} was stopped from outside ({_STOPPED_BY})"
    strategy = vm.get("spec", {}).get("runStrategy")
    if strategy == "Halted":
        return f"machine {name} was stopped from outside (somebody set its runStrategy to Halted)"
    return (
        f"machine {name} was ended from outside: its VirtualMachineInstance was deleted (kubectl "
        "delete vmi)"
    )


def _disruption(pod: Object) -> str:
    """What was done to a pod that is to be deleted, as far as the cluster says."""
    condition = _condition(pod, "DisruptionTarget", status="True")
    if condition is None:
        return "was deleted (kubectl delete pod)"
    reason = str(condition.get("reason", ""))
    words = _DISRUPTIONS.get(reason, "was disrupted by the cluster")
    message = f": {condition['message']}" if condition.get("message") else ""
    return f"{words} ({reason}{message})"


def _marked_before_the_end(thing: Object, vmi: Object) -> bool:
    """Whether `thing` was to be deleted before the instance ended, or is while it runs."""
    metadata = thing["metadata"]
    if "deletionTimestamp" not in metadata:
        return False
    phases = vmi.get("status", {}).get("phaseTransitionTimestamps") or ()
    ends = [each["phaseTransitionTimestamp"] for each in phases if each["phase"] == "Succeeded"]
    # It names the end of the grace period, which is cut to nothing in a pod's last moment.
    grace_s = metadata.get("deletionGracePeriodSeconds") or 0
    if not ends or (metadata is not vmi["metadata"] and not grace_s):
        return True
    marked = _time(metadata["deletionTimestamp"]) - datetime.timedelta(seconds=grace_s)
    return marked <= _time(ends[-1])


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def _unscheduled(thing: Object) -> str:
    """Why the scheduler finds no node for a pod, or for a machine's; empty if it does not say."""
    condition = _condition(thing, "PodScheduled", status="False")
    if condition and condition.get("reason") == "Unschedulable":
        return str(condition.get("message") or "no reason given")
    return ""


def _obstacle(message: str) -> Obstacle | None:
    if _NO_CLAIM.search(message) or _fits_no_node(message):
        return None
    return Obstacle.CLAIM if _UNBOUND in message else Obstacle.ROOM


def _claims(pod: Object) -> tuple[str, ...]:
    volumes = (pod.get("spec") or {}).get("volumes") or ()
    claims = (volume.get("persistentVolumeClaim") or {} for volume in volumes)
    return tuple(str(claim["claimName"]) for claim in claims if "claimName" in claim)


def _no_claim(message: str) -> str:
    """The words for a volume claim that is not there; empty if the message is of something else."""
    found = _NO_CLAIM.search(message)
    if not found:
        return ""
    return (
        f"there is no volume claim {found[1] or found[2]}; create it, or name another one: "
        "--cluster-claim for the boot server's files, --cluster-ipxe-disk and --disk for the "
        "machine's disks"
    )


#: What KubeVirt says of disks that it cannot make, and what that means.
_BAD_DISKS = (
    (
        "failed to find disk file",
        "a container image of its disks has no disk in it: it needs a directory /disk with one "
        "image, for the user 107 to read",
    ),
    ("is too low", "an empty disk is too small for KubeVirt: give it size=1M or more"),
    (
        "image.reference: Required value",
        "a disk's container image has no name: --disk container:IMAGE",
    ),
)


def _bad_disk(message: str) -> str:
    """The words for a disk that cannot be made; empty if the message is of something else."""
    words = next((words for sign, words in _BAD_DISKS if sign in message), "")
    return f"{words} ({message})" if words else ""


def awaits_volumes(pod: Object) -> bool:
    """Whether a pod has a node, and none of its containers was begun."""
    status = pod.get("status", {})
    begun = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    states = [each.get("state") or {} for each in begun]
    return (
        status.get("phase") == "Pending"
        and _condition(pod, "PodScheduled", status="True") is not None
        and not any("running" in state or "terminated" in state for state in states)
    )


def mount_fault(pod: Object, events: Iterable[Object]) -> str | None:
    """What keeps a pod from its volumes, as only the events about it say; None if nothing does."""
    for event in events:
        if event.get("reason") in _MOUNT_EVENTS and (
            found := _NOT_THERE.search(str(event.get("message", "")))
        ):
            volume, kind, name = found.groups()
            return (
                f"pod {_name(pod)}: its volume {volume} needs the {kind} {name}, which is not "
                f"there; create it: kubectl create {kind}, or correct its name in the patch"
            )
    return None


def _fits_no_node(message: str) -> bool:
    """Whether nothing that ends elsewhere would give the pod a node: there is none of its kind."""
    found = _UNFIT_NODES.search(message)
    return found is not None and found["all"] == found["unfit"]


def _unschedulable(
    what: str, message: str, claims: tuple[str, ...], selector: Mapping[str, str]
) -> str:
    architecture = selector.get(_ARCHITECTURE)
    if words := _no_claim(message):
        return f"{what}: {words}"
    if _UNBOUND in message:
        return (
            f"{what} waits for a volume claim that is not bound: {message.rstrip('.')}; see: "
            f"kubectl describe pvc {' '.join(claims)}".rstrip()
            + "; it needs a storage class that is there and has room (--cluster-storage-class)"
        )
    if kind := _wanted_node(selector) if _fits_no_node(message) else "":
        return (
            f"{what} finds no node: the cluster has none {kind}: {message.rstrip('.')}; change it "
            "in the patch, or give another cluster: --context"
        )
    if architecture and _fits_no_node(message):
        return (
            f"{what} finds no node: the cluster has none for {architecture}, or none that a patch "
            f"lets it run on: {message.rstrip('.')}; give a kernel for another architecture, or "
            "another cluster: --context"
        )
    if "Insufficient hugepages" in message:
        return (
            f"{what} finds no node: {message.rstrip('.')}; set huge pages up on a node "
            "(vm.nr_hugepages), or leave out --hugepages"
        )
    return (
        f"{what} finds no node: {message.rstrip('.')}; lower memory or cpus, or change where it "
        "may run with a patch"
    )


def _wanted_node(selector: Mapping[str, str]) -> str:
    """What KubeVirt wants of a node beside its architecture, in words; empty for nothing."""
    if "kubevirt.io/cpumanager" in selector:
        return "with dedicated processors (the kubelet's static CPU manager)"
    prefix = "cpu-model.node.kubevirt.io/"
    models = [key.removeprefix(prefix) for key in selector if key.startswith(prefix)]
    return f"with processors of the model {models[0]}" if models else ""


def _failure(vmi: Object, pods: list[Object]) -> str:
    """Why an instance that ran has failed."""
    name = _name(vmi)
    if not pods or _condition(vmi, "Ready", reason="PodNotExists"):
        return f"machine {name} was ended from outside: {_POD_GONE}"
    status = pods[-1].get("status", {})
    words = _last_words(status.get("containerStatuses") or (), status)
    return f"machine {name} failed: KubeVirt could not run it{words}"


def _last_words(containers: Iterable[Object], status: Object) -> str:
    """Why containers ended, for the end of a sentence."""
    if status.get("reason") or status.get("message"):
        return f": {status.get('reason', '')} {status.get('message', '')}".rstrip()
    for container in containers:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            reason = ended.get("reason", "")
            message = f": {_end_of_log(ended['message'])}" if ended.get("message") else ""
            return f" ({container['name']} exited with {ended['exitCode']}, {reason}{message})"
    return ""


def _end_of_log(text: str) -> str:
    """What the end of a container's log says, in one short line; KubeVirt's logs are JSON lines."""
    entries = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("msg"):
            entries.append(entry)
    if entries:
        bad = [each for each in entries if each.get("level") in {"error", "fatal", "panic"}]
        entry = (bad or entries)[-1]
        words = ": ".join(str(entry[key]) for key in ("msg", "reason") if entry.get(key))
    else:
        words = " ".join(text.split())
    # A line that the cluster has cut begins in its middle: its end says more.
    return words if len(words) <= _SHOWN else f"...{words[-_SHOWN:]}"


def _condition(
    thing: Object, kind: str, *, status: str | None = None, reason: str | None = None
) -> Object | None:
    for condition in thing.get("status", {}).get("conditions") or ():
        if (
            condition["type"] == kind
            and status in {None, condition["status"]}
            and reason in {None, condition.get("reason")}
        ):
            found: Object = condition
            return found
    return None


def _belongs(pod: Object, vmi: Object) -> bool:
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(owner["uid"] == vmi["metadata"]["uid"] for owner in owners)


def _is_launcher(pod: Object) -> bool:
    return (pod["metadata"].get("labels") or {}).get("kubevirt.io") == "virt-launcher"


def _name(thing: Object) -> str:
    return str(thing["metadata"]["name"])
