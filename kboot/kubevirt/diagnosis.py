"""Why something on the cluster does not come up, or is gone: functions of its objects.

Each looks at objects as the API has them, and returns the fault in words with its remedy, or None
if nothing is wrong (yet).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kboot.kube import explain

Object = Mapping[str, Any]

#: Why a container waits, where waiting longer would not help.
_IMAGE_FAULTS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_CONTAINER_FAULTS = {
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
}


def machine_fault(vmi: Object | None, pods: Iterable[Object], vm: Object | None) -> str | None:
    """What keeps a machine that was started from running, or ended it; None if nothing does.

    `pods` are the machine's launcher pods. A guest that powered itself off is no fault of the
    cluster's: see `powered_off`.
    """
    if vmi is None:
        return _vm_fault(vm)
    name, namespace = _name(vmi), vmi["metadata"]["namespace"]
    pods = [pod for pod in pods if _belongs(pod, vmi)]
    for pod in pods:
        if fault := pod_fault(pod):
            return f"machine {name}: {fault}"
    unsynchronised = _condition(vmi, "Synchronized", status="False")
    if unsynchronised:
        text = str(unsynchronised.get("message", ""))
        words = explain(0, text, path="", namespace=namespace) or text
        return f"machine {name}: {words}"
    unscheduled = _condition(vmi, "PodScheduled", status="False")
    if unscheduled and unscheduled.get("reason") == "Unschedulable":
        return _unschedulable(f"machine {name}", str(unscheduled.get("message", "")))
    if phase_of(vmi) == "Failed":
        return _failure(vmi, pods)
    return None


def pod_fault(pod: Object) -> str | None:
    """What keeps a pod from running, or ended it; None if nothing does."""
    name, status = _name(pod), pod.get("status", {})
    unscheduled = _condition(pod, "PodScheduled", status="False")
    if unscheduled and unscheduled.get("reason") == "Unschedulable":
        return _unschedulable(f"pod {name}", str(unscheduled.get("message", "")))
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
                f"{message}; mend its name, or name a pull secret that may read it: --pull-secret"
            )
        if reason in _CONTAINER_FAULTS:
            return f"pod {name}: container {container['name']} does not start ({reason}): {message}"
    if status.get("phase") == "Failed" and not _is_launcher(pod):
        return f"pod {name} failed{_last_words(containers, status)}"
    return None


def is_stopped(vm: Mapping[str, Any] | None) -> bool:
    """Whether a VirtualMachine is there, and is off."""
    return vm is not None and vm.get("status", {}).get("printableStatus") == "Stopped"


def powered_off(vmi: Object | None) -> bool:
    """Whether the guest has switched its machine off in good order."""
    return phase_of(vmi) == "Succeeded"


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


def _unschedulable(what: str, message: str) -> str:
    return (
        f"{what} finds no node: {message.rstrip('.')}; lower memory or cpus, or change where it "
        "may run with a patch"
    )


def _failure(vmi: Object, pods: list[Object]) -> str:
    """Why an instance that ran has failed."""
    name = _name(vmi)
    if not pods or _condition(vmi, "Ready", reason="PodNotExists"):
        return (
            f"machine {name} was ended from outside: its launcher pod is gone (deleted, evicted, "
            "or its node lost)"
        )
    status = pods[-1].get("status", {})
    words = _last_words(status.get("containerStatuses") or (), status)
    if "deletionTimestamp" in pods[-1]["metadata"]:
        words = f": its launcher pod was deleted{words}"
    return f"machine {name} failed: KubeVirt could not run it{words}"


def _last_words(containers: Iterable[Object], status: Object) -> str:
    """Why containers ended, for the end of a sentence."""
    if status.get("reason") or status.get("message"):
        return f": {status.get('reason', '')} {status.get('message', '')}".rstrip()
    for container in containers:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            reason = ended.get("reason", "")
            message = f": {ended['message']}" if ended.get("message") else ""
            return f" ({container['name']} exited with {ended['exitCode']}, {reason}{message})"
    return ""


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
