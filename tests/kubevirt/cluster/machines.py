"""What KubeVirt's controllers do: VirtualMachines, their instances, launcher pods and consoles."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from kboot.config import Config
from kboot.deadline import Deadline
from kboot.machine import open_backend
from kboot.machine_spec import MachineSpec
from kboot.qemu import QemuBackend
from tests.kubevirt.cluster import admission, answers, architectures, endings
from tests.kubevirt.cluster.disks import Disks
from tests.kubevirt.cluster.guests import Guest, QemuGuest, ReplayGuest, has_boot_disk
from tests.kubevirt.cluster.instances import (
    SPEED,
    Instance,
    event_about,
    instance_of,
    launcher_pod,
    machine_of,
    machine_spec,
    volumes_of,
)
from tests.kubevirt.cluster.pods import Kubelet
from tests.kubevirt.cluster.replica_sets import ReplicaSets
from tests.kubevirt.cluster.room import QUOTA, Room
from tests.kubevirt.cluster.storage import Storage
from tests.kubevirt.cluster.store import Object, Store, now
from tests.kubevirt.recordings import rows

#: Seconds from one phase to the next.
_SCHEDULING_S, _SCHEDULED_S, _RUNNING_S = 0.18, 1.15, 2.2
#: From the end of a guest to that of its pod, and by which it is short where nobody waits.
_STOPPING_S = 8.3

#: For firmware that nobody has saved yet.
_SAVE_LIMIT_S = 180.0

#: What the cluster's one node has for launcher pods.
_NODE_MIB = 64 * 1024

MakeGuest = Callable[[MachineSpec, Path, bool], Guest]


@contextlib.contextmanager
def qemu_with_saved_firmware() -> Iterator[MakeGuest]:
    """For machines whose firmware is not what is tested: it is restored where it is the usual."""
    usual = MachineSpec(firmware_start="saved")
    settings = Config(accel="tcg")
    with open_backend(settings) as backend:
        assert isinstance(backend, QemuBackend)
        firmware = backend.saved_firmware(usual, Deadline(_SAVE_LIMIT_S))

        def make(spec: MachineSpec, directory: Path, paused: bool) -> Guest:
            same = replace(usual, name=spec.name, boot_file=spec.boot_file)
            if replace(spec, mac_address=None, firmware_start="saved") != same:
                return qemu(spec, directory, paused)
            return QemuGuest(spec, directory, paused=paused, firmware=firmware)

        yield make


def qemu(spec: MachineSpec, directory: Path, paused: bool) -> Guest:
    if spec.firmware == "uefi" and not has_boot_disk(spec):
        # As with the ROMs of the recorded cluster: EDK II's own client, which cannot do it.
        said = b"".join(
            row["text"].encode("latin-1") for row in rows("uefi-pxe-e99", "console_data")
        )
        return ReplayGuest(said, seconds=1.5)
    return QemuGuest(spec, directory, paused=paused)


class Virt:
    def __init__(self, store: Store, kubelet: Kubelet, directory: Path, make: MakeGuest) -> None:
        self.store = store
        self._kubelet = kubelet
        self._directory = directory
        self._make = make
        #: By the name of the machine.
        self.instances: dict[str, Instance] = {}
        #: Machines whose start or stop is under way.
        self.underway: set[str] = set()
        #: The guests' ports that are open, and what stands for them on this host.
        self.ports: dict[int, int] = {}
        self.storage = Storage(store, directory, lambda url: self._resolve(url, "127.0.0.1"))
        self.disks = Disks(self.storage)
        #: What refuses launcher pods: Pod Security, a quota that nobody frees.
        self.refusal = ""
        self.room = Room(store, node_mib=_NODE_MIB)
        #: What its one node is, as Kubernetes says it.
        self.node_architecture = "amd64"
        #: For how long a launcher pod stays, with its memory, when its instance is gone.
        self.ending_s = _STOPPING_S * SPEED
        store.listeners.append(self._notice)
        self.replica_sets = ReplicaSets(store, self)

    def close(self) -> None:
        self.storage.close()
        for instance in self.instances.values():
            for task in instance.tasks:
                task.cancel()
            if instance.guest:
                instance.guest.kill()

    # --------------------------------------------------------------------------------- life

    def _notice(self, event: str, plural: str, thing: Object) -> None:
        name = thing["metadata"]["name"]
        if plural == "virtualmachines" and event == "MODIFIED":
            self._see_link(name, thing)
        elif plural == "virtualmachineinstances" and event == "DELETED":
            self._end(name, thing["metadata"]["uid"])
            self.spawn(self._end_pods(thing["metadata"]["uid"]))
        elif plural == "pods" and event == "DELETED":
            for instance in list(self.instances.values()):
                if instance.pod["metadata"]["uid"] == thing["metadata"]["uid"]:
                    self.spawn(self._lose(instance))

    def _see_link(self, name: str, vm: Object) -> None:
        card = vm["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0]
        instance = self.instances.get(name)
        if instance and instance.guest and "state" in card:
            instance.guest.command(f"link-{card['state']}")

    async def start(self, vm: Object) -> None:
        name, namespace = vm["metadata"]["name"], vm["metadata"]["namespace"]
        if old := self.store.get("virtualmachineinstances", namespace, name):
            self.store.delete("virtualmachineinstances", old)
        await asyncio.sleep(0.03)
        self.underway.discard(name)
        if self.store.get("virtualmachines", namespace, name) is None:
            return
        if refused := admission.refusal(instance_of(vm)):
            self._refuse_instance(vm, answers.message_of(refused))
            return
        vmi = self.store.create("virtualmachineinstances", instance_of(vm))
        self.store.status("virtualmachines", vm, printableStatus="Starting", stateChangeRequests=[])
        if self.refusal:
            self._refuse(vmi, self.refusal)
            return
        while self.room.quota_is_used_up(namespace):
            # KubeVirt tries again, less and less often.
            self._refuse(vmi, QUOTA)
            await asyncio.sleep(0.3)
            if self.store.get("virtualmachineinstances", namespace, name) is None:
                return
        await self.bring_up(vmi)

    async def bring_up(self, vmi: Object) -> None:
        """Run an instance that is there."""
        instance = Instance(vmi, self._launcher(vmi))
        self.instances[vmi["metadata"]["name"]] = instance
        # With a machine's objects, if it has a machine.
        await self._bring_up(machine_of(vmi), instance)

    async def _bring_up(self, vm: Object, instance: Instance) -> None:
        uid = instance.vmi["metadata"]["uid"]
        directory = self._directory / f"vm-{uid[:8]}"
        memory_mib = machine_spec(vm, self._resolve).memory_mib
        if claim := self.disks.missing_claim(vm):
            self._lacks_claim(instance, claim)
            return
        volume, image = self.disks.missing_image(vm)
        if volume:
            self._cannot_pull(instance, volume, image)
            return
        if instance.pod["spec"]["nodeSelector"][architectures.LABEL] != self.node_architecture:
            self._unschedulable(instance, architectures.NO_NODE)
            return
        async for message in self.room.schedule(instance.pod, memory_mib, self.disks.pending(vm)):
            self._unschedulable(instance, message)
        if not self._has(instance.pod):
            return
        scheduled = {"type": "PodScheduled", "status": "True"}
        self.store.status("pods", instance.pod, phase="Pending", conditions=[scheduled])
        await asyncio.sleep(_SCHEDULING_S * SPEED)
        self.set_phase(instance, "Scheduling")
        if self._lacks_volumes(vm, instance):
            return
        spec = machine_spec(vm, self._resolve, self.disks.prepare(vm, directory))
        await asyncio.sleep(_SCHEDULED_S * SPEED)
        self.store.status("pods", instance.pod, phase="Running")
        self.set_phase(instance, "Scheduled")
        await asyncio.sleep(_RUNNING_S * SPEED)
        if instance is not self.instances.get(spec.name):
            return
        instance.paused = vm["spec"]["template"]["spec"].get("startStrategy") == "Paused"
        instance.guest = self._make(spec, directory, instance.paused)
        self._see_link(spec.name, vm)
        instance.tasks = [self.spawn(self._pump(instance)), self.spawn(self._mind(instance))]
        self.event(instance.vmi, "Normal", "Created", "VirtualMachineInstance defined.")
        self.set_phase(instance, "Running")
        self.event(instance.vmi, "Normal", "Started", "VirtualMachineInstance started.")
        self.store.status("virtualmachines", vm, printableStatus="Running")
        self.set_phase(instance, "Running", ready=True)

    async def restart(self, vm: Object) -> None:
        self._request(vm, "Stop", "Start")
        # As it was recorded: what is restarted has failed, what is stopped has succeeded.
        await self._take_down(vm, "Failed")
        await self.start(vm)

    async def stop(self, vm: Object) -> None:
        self._request(vm, "Stop")
        await self._take_down(vm, "Succeeded")
        self.store.status("virtualmachines", vm, stateChangeRequests=[])
        self.underway.discard(vm["metadata"]["name"])

    async def _take_down(self, vm: Object, phase: str) -> None:
        instance = self.instances[vm["metadata"]["name"]]
        vmi, pod = instance.vmi, instance.pod
        self.store.status("virtualmachines", vm, printableStatus="Stopping")
        await endings.end_instance(self, instance, phase)
        self.store.status("virtualmachines", vm, printableStatus="Stopped")
        end = asyncio.get_running_loop().time() + self.ending_s
        while self._has(pod) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        self.store.delete("pods", pod)
        self.store.delete("virtualmachineinstances", vmi)

    def _request(self, vm: Object, *actions: str) -> None:
        """Note what is asked of a machine; a stop is for the instance that there is."""
        instance = self.instances.get(vm["metadata"]["name"])
        stop = {"action": "Stop", "uid": instance.vmi["metadata"]["uid"] if instance else ""}
        requests = [stop if action == "Stop" else {"action": action} for action in actions]
        self.store.status("virtualmachines", vm, stateChangeRequests=requests)

    def _has(self, pod: Object) -> bool:
        metadata = pod["metadata"]
        return self.store.get("pods", metadata["namespace"], metadata["name"]) is not None

    async def _lose(self, instance: Instance) -> None:
        """The launcher pod is gone: so is the machine, at once."""
        if self.phase_of(instance) in {"Succeeded", "Failed"}:
            return
        self.cut(instance)
        await asyncio.sleep(0.01)
        gone = {"type": "Ready", "status": "False", "reason": "PodNotExists"}
        self.store.status(
            "virtualmachineinstances", instance.vmi, phase="Failed", conditions=[gone]
        )

    def _end(self, name: str, uid: str) -> None:
        instance = self.instances.get(name)
        if instance and instance.vmi["metadata"]["uid"] == uid:
            self.cut(instance)
            del self.instances[name]

    async def _end_pods(self, instance_uid: str) -> None:
        """A launcher pod ends some time after its instance."""
        pods = [
            pod
            for pod in self.store.find("pods")
            if any(it["uid"] == instance_uid for it in pod["metadata"].get("ownerReferences", ()))
        ]
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                self.store.update(
                    "pods", pod, lambda it: endings.mark(it, grace_s=endings.POD_GRACE_S)
                )
        if pods:
            await asyncio.sleep(self.ending_s)
        for pod in pods:
            self.store.delete("pods", pod)

    def cut(self, instance: Instance) -> None:
        for task in instance.tasks:
            task.cancel()
        instance.tasks = []
        if instance.guest:
            instance.guest.kill()
            instance.guest = None
        instance.drop_session()

    async def _pump(self, instance: Instance) -> None:
        """Carry what the guest says to its record and to the session there is."""
        guest = instance.guest
        assert guest is not None
        while data := await guest.read():
            instance.record += data
            if instance.session is not None:
                with contextlib.suppress(ConnectionError, RuntimeError):
                    await instance.session.send_bytes(data)
        if instance.guest is guest:
            self.set_phase(instance, "Failed")

    async def _mind(self, instance: Instance) -> None:
        """See when the guest switches itself off."""
        while instance.guest and not instance.guest.powered_off():
            await asyncio.sleep(0.1)
        instance.tasks = [task for task in instance.tasks if task is not asyncio.current_task()]
        self.cut(instance)
        await asyncio.sleep(0.25)
        self.set_phase(instance, "Succeeded")
        self.set_status(instance, "Stopped")
        # Its pod takes its time, and nobody has deleted it: the reason tells nothing.
        await asyncio.sleep(9.1 * SPEED)
        self.set_phase(instance, "Succeeded", reason="PodTerminating")
        self.store.status("pods", instance.pod, phase="Succeeded")

    # ------------------------------------------------------------------------------- inside

    def _launcher(self, vmi: Object) -> Object:
        pod = self.store.create("pods", launcher_pod(vmi))
        message = f"Created virtual machine pod {pod['metadata']['name']}"
        self.event(vmi, "Normal", "SuccessfulCreate", message)
        return pod

    def _refuse(self, vmi: Object, refusal: str) -> None:
        pod = f"virt-launcher-{vmi['metadata']['name']}-{secrets.token_hex(3)[:5]}"
        text = refusal.format(pod=pod)
        self.event(vmi, "Warning", "FailedCreate", text)
        conditions = [
            {"type": "Ready", "status": "False", "reason": "PodNotExists"},
            {
                "type": "Synchronized",
                "status": "False",
                "reason": "FailedCreate",
                "message": f"failed to create virtual machine pod: {text}",
            },
        ]
        self.store.status("virtualmachineinstances", vmi, conditions=conditions)

    def _refuse_instance(self, vm: Object, refusal: str) -> None:
        """A machine that was accepted, and of which no instance is made: it stays stopped."""
        event = f"Error creating virtual machine instance: {refusal}"
        self.event(vm, "Warning", "FailedCreate", event)
        text = f"Failure while starting VMI: {refusal}"
        failure = {"type": "Failure", "status": "True", "reason": "FailedCreate", "message": text}
        self.store.status(
            "virtualmachines",
            vm,
            printableStatus="Stopped",
            conditions=[failure],
            stateChangeRequests=[],
        )

    def _lacks_volumes(self, vm: Object, instance: Instance) -> bool:
        """Whether the launcher pod is held up by its volumes, which is told."""
        if secret := self._missing_secret(vm):
            self.event(instance.pod, "Warning", "FailedMount", secret)
            return True
        if fault := self.disks.fault(vm):
            self._cannot_sync(instance, fault)
            return True
        return False

    def _missing_secret(self, vm: Object) -> str:
        """What the kubelet says of a Secret with user-data that is not there; else empty."""
        for _, volume in volumes_of(vm):
            source = volume.get("cloudInitNoCloud", {})
            secret = source.get("secretRef", {}).get("name")
            if secret and not self.store.get("secrets", vm["metadata"]["namespace"], secret):
                place = f'volume "{volume["name"]}-udata"'
                return f'MountVolume.SetUp failed for {place} : secret "{secret}" not found'
        return ""

    def _lacks_claim(self, instance: Instance, claim: str) -> None:
        namespace = instance.vmi["metadata"]["namespace"]
        text = f"PVC {namespace}/{claim} does not exist, waiting for it to appear"
        self._cannot_sync(instance, text, reason="FailedPvcNotFound")

    def _cannot_sync(
        self, instance: Instance, message: str, *, reason: str = "Synchronizing"
    ) -> None:
        condition = {
            "type": "Synchronized",
            "status": "False",
            "reason": reason,
            "message": message,
        }
        self.store.status("virtualmachineinstances", instance.vmi, conditions=[condition])

    def _unschedulable(self, instance: Instance, message: str) -> None:
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
        }
        self.store.status("pods", instance.pod, phase="Pending", conditions=[condition])
        self.store.status(
            "virtualmachineinstances", instance.vmi, phase="Scheduling", conditions=[condition]
        )

    def _cannot_pull(self, instance: Instance, volume: str, image: str) -> None:
        """The launcher pod's first container brings the disk: its image is in no registry."""
        waiting = {"reason": "ErrImagePull", "message": f'failed to pull and unpack "{image}"'}
        container = {
            "name": f"volume{volume}",
            "image": image,
            "ready": False,
            "state": {"waiting": waiting},
        }
        self.store.status("pods", instance.pod, phase="Pending", initContainerStatuses=[container])
        self.set_phase(instance, "Scheduling")

    def set_status(self, instance: Instance, text: str) -> None:
        """What the instance's VirtualMachine shows, if it is there."""
        metadata = instance.vmi["metadata"]
        vm = self.store.get("virtualmachines", metadata["namespace"], metadata["name"])
        if vm is not None:
            self.store.status("virtualmachines", vm, printableStatus=text)

    def set_phase(
        self,
        instance: Instance,
        phase: str,
        *,
        ready: bool = False,
        reason: str = "GuestNotRunning",
    ) -> None:
        conditions: list[dict[str, Any]] = [
            {"type": "Ready", "status": "True"}
            if ready
            else {"type": "Ready", "status": "False", "reason": reason}
        ]
        if instance.paused:
            conditions.append({"type": "Paused", "status": "True", "reason": "PausedByUser"})
        if self.phase_of(instance) != phase:
            instance.transitions.append({"phase": phase, "phaseTransitionTimestamp": now()})
        self.store.status(
            "virtualmachineinstances",
            instance.vmi,
            phase=phase,
            conditions=conditions,
            nodeName="testnode",
            phaseTransitionTimestamps=list(instance.transitions),
        )

    def phase(self, name: str) -> str:
        instance = self.instances.get(name)
        return self.phase_of(instance) if instance else ""

    def phase_of(self, instance: Instance) -> str:
        metadata = instance.vmi["metadata"]
        vmi = self.store.get("virtualmachineinstances", metadata["namespace"], metadata["name"])
        return str(vmi["status"]["phase"]) if vmi else ""

    def _resolve(self, url: str, host: str = "10.0.2.2") -> str:
        """An address of the cluster, as machines on this host reach it, or who else has `host`."""
        parts = urlsplit(url)
        name, _, namespace = (parts.hostname or "").partition(".")
        pod = self.store.get("pods", namespace.partition(".")[0], name)
        running = pod and self._kubelet.running.get(pod["metadata"]["uid"])
        if not running:
            return url
        return urlunsplit(parts._replace(netloc=f"{host}:{running.ports[8080]}"))

    def event(self, thing: Object, kind: str, reason: str, message: str) -> None:
        self.store.create("events", event_about(thing, kind, reason, message))

    def spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        return task


#: The event loop itself does not keep its tasks.
_tasks: set[asyncio.Task[None]] = set()
