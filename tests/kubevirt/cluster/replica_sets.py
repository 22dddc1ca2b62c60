"""What KubeVirt does for VirtualMachineInstanceReplicaSets, as recorded: instances in their place.

Whose labels do not fit any more is released; what has ended is removed and replaced.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
from typing import TYPE_CHECKING, Any

from tests.kubevirt.cluster.instances import SPEED
from tests.kubevirt.cluster.store import Object, Store

if TYPE_CHECKING:
    from tests.kubevirt.cluster.machines import Virt

_KIND = "virtualmachineinstancereplicasets"
_VMIS = "virtualmachineinstances"
_OVER = {"Succeeded", "Failed"}


class ReplicaSets:
    def __init__(self, store: Store, virt: Virt) -> None:
        self._store = store
        self._virt = virt
        self._busy = False
        self._again = False
        #: Instances whose guests are probed.
        self._probed: set[str] = set()
        store.listeners.append(self._notice)

    def _notice(self, _event: str, plural: str, _thing: Object) -> None:
        if plural not in {_KIND, _VMIS}:
            return
        if self._busy:
            self._again = True
            return
        if any(self._store.find(_KIND)):
            self._busy = True
            self._virt.spawn(self._reconcile())

    async def _reconcile(self) -> None:
        try:
            await asyncio.sleep(0)
            self._again = True
            while self._again:
                self._again = False
                for wanted in self._store.find(_KIND):
                    self._look(wanted)
                await asyncio.sleep(0.01)
        finally:
            self._busy = False

    def _look(self, wanted: Object) -> None:
        uid = wanted["metadata"]["uid"]
        selected = wanted["spec"]["selector"]["matchLabels"].items()
        owned = []
        for vmi in self._store.find(_VMIS, wanted["metadata"]["namespace"]):
            metadata = vmi["metadata"]
            is_ours = any(it["uid"] == uid for it in metadata.get("ownerReferences", ()))
            fits = selected <= metadata.get("labels", {}).items()
            if is_ours and not fits:
                self._store.update(_VMIS, vmi, _release(uid))
            elif is_ours and vmi["status"]["phase"] in _OVER:
                self._store.delete(_VMIS, vmi)
            elif is_ours:
                owned.append(vmi)
        if not wanted["spec"].get("paused"):
            self._adjust(wanted, owned)
        self._tell(wanted, owned)
        for vmi in owned:
            self._probe(vmi)

    def _adjust(self, wanted: Object, owned: list[Object]) -> None:
        missing = wanted["spec"]["replicas"] - len(owned)
        for _ in range(missing):
            vmi = self._store.create(_VMIS, _instance(wanted))
            self._virt.spawn(self._virt.bring_up(vmi))
        for vmi in owned[len(owned) + missing :] if missing < 0 else ():
            self._store.delete(_VMIS, vmi)

    def _tell(self, wanted: Object, owned: list[Object]) -> None:
        ready = [
            vmi
            for vmi in owned
            if {"type": "Ready", "status": "True"} in vmi["status"].get("conditions", ())
        ]
        labels = wanted["spec"]["selector"]["matchLabels"]
        status: dict[str, Any] = {
            "labelSelector": ",".join(f"{key}={value}" for key, value in labels.items())
        }
        # Zeros are left out.
        status |= {"replicas": len(owned)} if owned else {}
        status |= {"readyReplicas": len(ready)} if ready else {}
        if wanted.get("status") != status:
            wanted["status"] = status
            self._store.status(_KIND, wanted)

    def _probe(self, vmi: Object) -> None:
        probe = vmi["spec"].get("livenessProbe")
        uid = vmi["metadata"]["uid"]
        if probe and vmi["status"]["phase"] == "Running" and uid not in self._probed:
            self._probed.add(uid)
            self._virt.spawn(self._live(vmi["metadata"]["name"], uid, probe))

    async def _live(self, name: str, uid: str, probe: Object) -> None:
        """End an instance whose guest does not answer: it succeeds, without any mark."""
        await asyncio.sleep(probe.get("initialDelaySeconds", 0) * SPEED * SPEED)
        failed = 0
        while True:
            await asyncio.sleep(probe.get("periodSeconds", 10) * SPEED * SPEED)
            instance = self._virt.instances.get(name)
            if instance is None or instance.vmi["metadata"]["uid"] != uid:
                return
            failed = 0 if getattr(instance.guest, "listens", True) else failed + 1
            if failed == probe.get("failureThreshold", 3):
                self._virt.cut(instance)
                self._virt.set_phase(instance, "Succeeded", ready=True)
                return


def _instance(wanted: Object) -> Object:
    template, metadata = wanted["spec"]["template"], wanted["metadata"]
    owner = {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstanceReplicaSet",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": metadata["name"] + secrets.token_hex(3)[:5],
            "namespace": metadata["namespace"],
            "labels": dict(template["metadata"]["labels"]),
            "ownerReferences": [owner],
        },
        "spec": copy.deepcopy(template["spec"]),
        "status": {"phase": "Pending"},
    }


def _release(uid: str) -> Any:
    def change(vmi: Object) -> None:
        owners = vmi["metadata"]["ownerReferences"]
        vmi["metadata"]["ownerReferences"] = [it for it in owners if it["uid"] != uid]

    return change
