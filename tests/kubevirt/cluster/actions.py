"""What is asked of machines: start, stop, reset, console, port-forward; answered as recorded."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tests.kubevirt.cluster import answers
from tests.kubevirt.cluster.connections import connection_of, cut
from tests.kubevirt.cluster.machines import Virt


class Actions:
    def __init__(self, virt: Virt) -> None:
        self._virt = virt

    def act(self, namespace: str, name: str, action: str) -> web.Response:
        """start, stop and restart of a VirtualMachine."""
        vm = self._virt.store.get("virtualmachines", namespace, name)
        if vm is None:
            return answers.no_machine("virtualmachine", name)
        phase = self._virt.phase(name)
        alive = phase not in {"", "Succeeded", "Failed"}
        if action == "start":
            if alive:
                return answers.conflict(name, "VM is already running")
        elif action == "restart":
            # One that has powered itself off is restarted, one that is not there is not.
            if not phase:
                return answers.conflict(name, "VM is not running: Halted")
        elif not alive:
            return answers.conflict(name, "VM is not running")
        # A stop takes the place of what is under way; nothing else does.
        if name in self._virt.underway and action != "stop":
            return answers.underway()
        self._virt.underway.add(name)
        self._virt.spawn(getattr(self._virt, action)(vm))
        return web.Response(status=202)

    def act_on_instance(self, namespace: str, name: str, action: str) -> web.Response:
        """reset, softreboot, pause and unpause of a running instance."""
        if self._virt.store.get("virtualmachineinstances", namespace, name) is None:
            return answers.no_machine("virtualmachineinstance", name)
        instance = self._virt.instances[name]
        if self._virt.phase(name) != "Running" or instance.guest is None:
            return answers.not_running()
        if action in {"pause", "unpause"}:
            # Not recorded; as in KubeVirt's own tests of it.
            if instance.paused == (action == "pause"):
                state = "already paused" if instance.paused else "not paused"
                return answers.conflict(name, f"VMI is {state}", kind="virtualmachineinstance")
            instance.paused = action == "pause"
            self._virt.set_phase(instance, "Running", ready=True)
        instance.guest.command(action)
        reasons = {"reset": "Reset", "pause": "Paused", "unpause": "Unpaused"}
        self._virt.event(instance.vmi, "Normal", reasons.get(action, "SoftRebooted"), action)
        return web.Response(status=200)

    async def console(self, request: web.Request, namespace: str, name: str) -> web.StreamResponse:
        """A console session, which ends the one before it."""
        if self._virt.store.get("virtualmachineinstances", namespace, name) is None:
            return answers.no_machine("virtualmachineinstance", name)
        if self._virt.phase(name) != "Running":
            return answers.not_running()
        instance = self._virt.instances[name]
        session = web.WebSocketResponse(protocols=["plain.kubevirt.io"], compress=False)
        await session.prepare(request)
        instance.drop_session()
        instance.session = session
        instance.connection = connection_of(request)
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
        if self._virt.store.get("virtualmachineinstances", namespace, name) is None:
            return answers.no_machine("virtualmachineinstance", name)
        here = self._virt.ports.get(port)
        if here is None:
            return answers.status(500, "InternalError", f"dialing VM: port {port}: refused")
        reader, writer = await asyncio.open_connection("127.0.0.1", here)
        session = web.WebSocketResponse(protocols=["plain.kubevirt.io"], compress=False)
        await session.prepare(request)

        async def carry() -> None:
            while data := await reader.read(65536):
                await session.send_bytes(data)
            cut(request)

        task = self._virt.spawn(carry())
        try:
            async for message in session:
                if message.type == web.WSMsgType.BINARY:
                    writer.write(message.data)
        finally:
            task.cancel()
            writer.close()
        return session
