"""What KubeVirt's controllers do: VirtualMachines, their instances, launcher pods and consoles."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aiohttp import web

from kboot.backend import MachineSpec
from tests.kubevirt.cluster import answers
from tests.kubevirt.cluster.faults import cut
from tests.kubevirt.cluster.guests import Guest, QemuGuest
from tests.kubevirt.cluster.pods import Kubelet
from tests.kubevirt.cluster.store import Object, Store, now

#: Seconds from one phase to the next, and the factor by which this cluster is quicker than the
#: recorded one.
_SPEED = 0.2
_SCHEDULING_S, _SCHEDULED_S, _RUNNING_S = 0.18, 1.15, 2.2
_STOPPING_S = 2.0

#: More memory than any node has.
_LARGEST_MIB = 64 * 1024

MakeGuest = Callable[[MachineSpec, Path, bool], Guest]


def qemu(spec: MachineSpec, directory: Path, paused: bool) -> Guest:
    return QemuGuest(spec, directory, paused=paused)


class Instance:
    """A VirtualMachineInstance with its guest and its serial line."""

    def __init__(self, vmi: Object, pod: Object) -> None:
        self.vmi = vmi
        self.pod = pod
        self.guest: Guest | None = None
        self.record = b""
        self.session: web.WebSocketResponse | None = None
        self.transport: asyncio.Transport | None = None
        self.paused = False
        self.tasks: list[asyncio.Task[None]] = []

    def lines(self) -> bytes:
        """What the log container has: whole lines, without carriage returns."""
        whole, newline, _ = self.record.replace(b"\r", b"").rpartition(b"\n")
        return whole + newline

    def drop_session(self) -> None:
        """Cut the console as KubeVirt does: the TCP connection ends, without a close frame."""
        self.session = None
        if self.transport is not None:
            self.transport.abort()
            self.transport = None


class Virt:
    def __init__(self, store: Store, kubelet: Kubelet, directory: Path, make: MakeGuest) -> None:
        self._store = store
        self._kubelet = kubelet
        self._directory = directory
        self._make = make
        #: By the name of the machine.
        self.instances: dict[str, Instance] = {}
        #: Machines whose start or stop is under way.
        self._underway: set[str] = set()
        #: The guests' ports that are open, and what stands for them on this host.
        self.ports: dict[int, int] = {}
        #: What refuses launcher pods: a quota, Pod Security.
        self.refusal = ""
        store.listeners.append(self._notice)

    def close(self) -> None:
        for instance in self.instances.values():
            for task in instance.tasks:
                task.cancel()
            if instance.guest:
                instance.guest.kill()

    # --------------------------------------------------------------------------- subresources

    def act(self, namespace: str, name: str, action: str) -> web.Response:
        """start, stop and restart of a VirtualMachine."""
        vm = self._store.get("virtualmachines", namespace, name)
        if vm is None:
            return answers.no_machine("virtualmachine", name)
        phase = self._phase(name)
        alive = phase not in {"", "Succeeded", "Failed"}
        if action == "start":
            if name in self._underway and not phase:
                return answers.underway()
            if alive:
                return answers.conflict(name, "VM is already running")
            self._spawn(self._start(vm))
        elif not alive:
            why = "VM is not running: Halted" if action == "restart" else "VM is not running"
            return answers.conflict(name, why)
        elif action == "restart":
            self._spawn(self._restart(vm))
        else:
            self._spawn(self._stop(vm))
        self._underway.add(name)
        return web.Response(status=202)

    def act_on_instance(self, namespace: str, name: str, action: str) -> web.Response:
        """reset, softreboot, pause and unpause of a running instance."""
        if self._store.get("virtualmachineinstances", namespace, name) is None:
            return answers.no_machine("virtualmachineinstance", name)
        instance = self.instances[name]
        if self._phase(name) != "Running" or instance.guest is None:
            return answers.not_running()
        instance.guest.command(action)
        if action in {"pause", "unpause"}:
            instance.paused = action == "pause"
            self._set_phase(instance, "Running", ready=True)
        reasons = {"reset": "Reset", "pause": "Paused", "unpause": "Unpaused"}
        self._event(instance.vmi, "Normal", reasons.get(action, "SoftRebooted"), action)
        return web.Response(status=200)

    async def console(self, request: web.Request, namespace: str, name: str) -> web.StreamResponse:
        """A console session, which ends the one before it."""
        if self._store.get("virtualmachineinstances", namespace, name) is None:
            return answers.no_machine("virtualmachineinstance", name)
        if self._phase(name) != "Running":
            return answers.not_running()
        instance = self.instances[name]
        session = web.WebSocketResponse(protocols=["plain.kubevirt.io"], compress=False)
        await session.prepare(request)
        instance.drop_session()
        instance.session = session
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        instance.transport = transport
        async for message in session:
            # A text frame is dropped without a word.
            if message.type == web.WSMsgType.BINARY and instance.guest:
                instance.guest.write(message.data)
        if instance.session is session:
            instance.session = None
        return session

    async def portforward(
        self, request: web.Request, namespace: str, name: str, port: int
    ) -> web.StreamResponse:
        """A connection to a port of the guest: to the one on this host that stands for it."""
        if self._store.get("virtualmachineinstances", namespace, name) is None:
            return answers.no_machine("virtualmachineinstance", name)
        here = self.ports.get(port)
        if here is None:
            return answers.status(500, "InternalError", f"dialing VM: port {port}: refused")
        reader, writer = await asyncio.open_connection("127.0.0.1", here)
        session = web.WebSocketResponse(protocols=["plain.kubevirt.io"], compress=False)
        await session.prepare(request)

        async def carry() -> None:
            while data := await reader.read(65536):
                await session.send_bytes(data)
            cut(request)

        task = self._spawn(carry())
        try:
            async for message in session:
                if message.type == web.WSMsgType.BINARY:
                    writer.write(message.data)
        finally:
            task.cancel()
            writer.close()
        return session

    # --------------------------------------------------------------------------------- life

    def _notice(self, event: str, plural: str, thing: Object) -> None:
        name = thing["metadata"]["name"]
        if plural == "virtualmachines" and event == "MODIFIED":
            self._see_link(name, thing)
        elif plural == "virtualmachineinstances" and event == "DELETED":
            self._end(name, thing["metadata"]["uid"])
        elif plural == "pods" and event == "DELETED":
            for instance in list(self.instances.values()):
                if instance.pod["metadata"]["uid"] == thing["metadata"]["uid"]:
                    self._spawn(self._lose(instance))

    def _see_link(self, name: str, vm: Object) -> None:
        card = vm["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"][0]
        instance = self.instances.get(name)
        if instance and instance.guest and "state" in card:
            instance.guest.command(f"link-{card['state']}")

    async def _start(self, vm: Object) -> None:
        name, namespace = vm["metadata"]["name"], vm["metadata"]["namespace"]
        if old := self._store.get("virtualmachineinstances", namespace, name):
            self._store.delete("virtualmachineinstances", old)
        await asyncio.sleep(0.03)
        labels = dict(vm["spec"]["template"].get("metadata", {}).get("labels", {}))
        if self._store.get("virtualmachines", namespace, name) is None:
            return
        vmi = self._store.create(
            "virtualmachineinstances",
            {
                "apiVersion": "kubevirt.io/v1",
                "kind": "VirtualMachineInstance",
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "labels": labels,
                    "ownerReferences": [_owner(vm)],
                },
                "spec": vm["spec"]["template"]["spec"],
                "status": {"phase": "Pending"},
            },
        )
        self._store.status("virtualmachines", vm, printableStatus="Starting")
        if self.refusal:
            self._refuse(vmi)
            return
        self._underway.discard(name)
        pod = self._launcher(vmi)
        instance = Instance(vmi, pod)
        self.instances[name] = instance
        await self._bring_up(vm, instance)

    async def _bring_up(self, vm: Object, instance: Instance) -> None:
        spec = _machine_spec(vm, self._resolve)
        if spec.memory_mib > _LARGEST_MIB:
            self._unschedulable(instance)
            return
        self._store.status("pods", instance.pod, phase="Pending")
        await asyncio.sleep(_SCHEDULING_S * _SPEED)
        self._set_phase(instance, "Scheduling")
        await asyncio.sleep(_SCHEDULED_S * _SPEED)
        self._store.status("pods", instance.pod, phase="Running")
        self._set_phase(instance, "Scheduled")
        await asyncio.sleep(_RUNNING_S * _SPEED)
        uid = instance.vmi["metadata"]["uid"]
        if instance is not self.instances.get(spec.name):
            return
        instance.paused = vm["spec"]["template"]["spec"].get("startStrategy") == "Paused"
        instance.guest = self._make(spec, self._directory / f"vm-{uid[:8]}", instance.paused)
        self._see_link(spec.name, vm)
        instance.tasks = [self._spawn(self._pump(instance)), self._spawn(self._mind(instance))]
        self._event(instance.vmi, "Normal", "Created", "VirtualMachineInstance defined.")
        self._set_phase(instance, "Running")
        self._event(instance.vmi, "Normal", "Started", "VirtualMachineInstance started.")
        self._store.status("virtualmachines", vm, printableStatus="Running")
        self._set_phase(instance, "Running", ready=True)

    async def _restart(self, vm: Object) -> None:
        await self._stop(vm)
        await self._start(vm)

    async def _stop(self, vm: Object) -> None:
        name = vm["metadata"]["name"]
        instance = self.instances[name]
        vmi, pod = instance.vmi, instance.pod

        def mark(current: Object) -> None:
            current["metadata"]["deletionTimestamp"] = now()

        self._store.update("virtualmachineinstances", vmi, mark)
        self._store.update("pods", pod, mark)
        await asyncio.sleep(0.05)
        self._cut(instance)
        await asyncio.sleep(0.1)
        self._set_phase(instance, "Failed")
        await asyncio.sleep(_STOPPING_S * _SPEED)
        self._store.delete("virtualmachineinstances", vmi)
        self._store.status("virtualmachines", vm, printableStatus="Stopped")
        self._underway.discard(name)

    async def _lose(self, instance: Instance) -> None:
        """The launcher pod is gone: so is the machine, at once."""
        self._cut(instance)
        await asyncio.sleep(0.01)
        gone = {"type": "Ready", "status": "False", "reason": "PodNotExists"}
        self._store.status(
            "virtualmachineinstances", instance.vmi, phase="Failed", conditions=[gone]
        )

    def _end(self, name: str, uid: str) -> None:
        instance = self.instances.get(name)
        if instance and instance.vmi["metadata"]["uid"] == uid:
            self._cut(instance)
            del self.instances[name]

    def _cut(self, instance: Instance) -> None:
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
            self._set_phase(instance, "Failed")

    async def _mind(self, instance: Instance) -> None:
        """See when the guest switches itself off."""
        while instance.guest and not instance.guest.powered_off():
            await asyncio.sleep(0.1)
        instance.tasks = [task for task in instance.tasks if task is not asyncio.current_task()]
        self._cut(instance)
        await asyncio.sleep(0.25)
        self._set_phase(instance, "Succeeded")

    # ------------------------------------------------------------------------------- inside

    def _launcher(self, vmi: Object) -> Object:
        name = vmi["metadata"]["name"]
        own = {
            "kubevirt.io": "virt-launcher",
            "kubevirt.io/created-by": vmi["metadata"]["uid"],
            "vm.kubevirt.io/name": name,
        }
        pod = self._store.create(
            "pods",
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "generateName": f"virt-launcher-{name}-",
                    "namespace": vmi["metadata"]["namespace"],
                    "labels": {**vmi["metadata"]["labels"], **own},
                    "ownerReferences": [_owner(vmi)],
                },
                "spec": {"containers": [{"name": "compute", "image": "virt-launcher"}]},
                "status": {"phase": "Pending"},
            },
        )
        message = f"Created virtual machine pod {pod['metadata']['name']}"
        self._event(vmi, "Normal", "SuccessfulCreate", message)
        return pod

    def _refuse(self, vmi: Object) -> None:
        pod = f"virt-launcher-{vmi['metadata']['name']}-{secrets.token_hex(3)[:5]}"
        text = self.refusal.format(pod=pod)
        self._event(vmi, "Warning", "FailedCreate", text)
        conditions = [
            {"type": "Ready", "status": "False", "reason": "PodNotExists"},
            {
                "type": "Synchronized",
                "status": "False",
                "reason": "FailedCreate",
                "message": f"failed to create virtual machine pod: {text}",
            },
        ]
        self._store.status("virtualmachineinstances", vmi, conditions=conditions)

    def _unschedulable(self, instance: Instance) -> None:
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient memory.",
        }
        self._store.status("pods", instance.pod, phase="Pending", conditions=[condition])
        self._store.status(
            "virtualmachineinstances", instance.vmi, phase="Scheduling", conditions=[condition]
        )

    def _set_phase(self, instance: Instance, phase: str, *, ready: bool = False) -> None:
        conditions: list[dict[str, Any]] = [
            {"type": "Ready", "status": "True"}
            if ready
            else {"type": "Ready", "status": "False", "reason": "GuestNotRunning"}
        ]
        if instance.paused:
            conditions.append({"type": "Paused", "status": "True", "reason": "PausedByUser"})
        self._store.status(
            "virtualmachineinstances",
            instance.vmi,
            phase=phase,
            conditions=conditions,
            nodeName="testnode",
        )

    def _phase(self, name: str) -> str:
        instance = self.instances.get(name)
        if instance is None:
            return ""
        metadata = instance.vmi["metadata"]
        vmi = self._store.get("virtualmachineinstances", metadata["namespace"], name)
        return str(vmi["status"]["phase"]) if vmi else ""

    def _resolve(self, url: str) -> str:
        """An address of the cluster, as machines on this host reach it."""
        parts = urlsplit(url)
        name, _, namespace = (parts.hostname or "").partition(".")
        pod = self._store.get("pods", namespace.partition(".")[0], name)
        running = pod and self._kubelet.running.get(pod["metadata"]["uid"])
        if not running:
            return url
        return urlunsplit(parts._replace(netloc=f"10.0.2.2:{running.ports[8080]}"))

    def _event(self, thing: Object, kind: str, reason: str, message: str) -> None:
        metadata = thing["metadata"]
        self._store.create(
            "events",
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {
                    "name": f"{metadata['name']}.{secrets.token_hex(8)}",
                    "namespace": metadata["namespace"],
                },
                "involvedObject": {
                    "kind": thing["kind"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
                "type": kind,
                "reason": reason,
                "message": message,
            },
        )

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        return task


#: The event loop itself does not keep its tasks.
_tasks: set[asyncio.Task[None]] = set()


def _owner(thing: Object) -> Object:
    return {
        "apiVersion": thing["apiVersion"],
        "kind": thing["kind"],
        "name": thing["metadata"]["name"],
        "uid": thing["metadata"]["uid"],
        "controller": True,
    }


def _machine_spec(vm: Object, resolve: Callable[[str], str]) -> MachineSpec:
    spec = vm["spec"]["template"]["spec"]
    domain = spec["domain"]
    card = domain["devices"]["interfaces"][0]
    guest = domain["memory"]["guest"]
    assert guest.endswith("Mi")
    return MachineSpec(
        name=vm["metadata"]["name"],
        boot_file=resolve(card["dhcpOptions"]["bootFileName"]),
        memory_mib=int(guest.removesuffix("Mi")),
        cpus=domain["cpu"]["cores"] * domain["cpu"].get("sockets", 1),
        firmware="uefi" if "efi" in domain["firmware"]["bootloader"] else "bios",
        mac_address=card["macAddress"],
    )
