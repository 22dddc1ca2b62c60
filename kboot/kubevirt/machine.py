"""One VirtualMachine on the cluster: a machine that is switched on."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot.backend import MachineSpec, Stream
from kboot.deadline import Deadline
from kboot.errors import ClusterError, GuestError
from kboot.kube import (
    EVENTS,
    PODS,
    VIRTUAL_MACHINES,
    ApiError,
    Client,
    Watch,
    WebSocket,
    open_websocket,
)
from kboot.kube.resources import VM_ACTIONS, VMI_ACTIONS
from kboot.kubevirt import diagnosis
from kboot.kubevirt.console import ConsoleStream
from kboot.kubevirt.forward import forwarded
from kboot.kubevirt.manifests import Manifest, to_yaml
from kboot.kubevirt.names import MACHINE_LABEL
from kboot.log import logger, step

#: For what the cluster does at once, or not at all.
_CONTROL_LIMIT_S = 30.0
#: For a stopped machine's pod to go, and a new one to come.
_RESTART_LIMIT_S = 180.0
_DELETE_LIMIT_S = 30.0

#: How the cluster says "not now": a conflict, and "stop/start already underway", which is a 500.
_CONFLICTS = {409, 500}
_UNDERWAY = "already underway"

_RECORD_LINES = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Watches:
    """What the machines of a run share to see how they are."""

    vms: Watch
    vmis: Watch
    pods: Watch


class ClusterMachine:
    """A machine on the cluster (see `kboot.backend.Machine`). Made by `kboot.kubevirt.backend`."""

    def __init__(
        self,
        client: Client,
        watches: Watches,
        spec: MachineSpec,
        manifest: Manifest,
        *,
        paused: bool,
    ) -> None:
        """`paused` says that the machine waits for its console before its first instruction."""
        self.spec = spec
        self._client = client
        self._watches = watches
        self._manifest = manifest
        self._paused = paused
        self._name: str = manifest["metadata"]["name"]
        self._uid = ""
        self._lock = threading.Lock()
        self._stream: ConsoleStream
        self._link_up = True
        self._last: Mapping[str, Any] = {}
        self._stack = contextlib.ExitStack()
        self._ssh: tuple[str, int] | None = None

    # ------------------------------------------------------------------ what the protocol promises

    @property
    def stream(self) -> Stream:
        """Its serial line; a new one after `restart`."""
        return self._stream

    @property
    def description(self) -> str:
        """Such as ``KubeVirt, node kvnode, machine kboot-r0123-m-1``."""
        node = self._last.get("status", {}).get("nodeName", "unknown")
        return f"KubeVirt, node {node}, machine {self._name}"

    def reset(self) -> None:
        """Push the reset button."""
        with self._lock, step("reset"):
            if diagnosis.phase_of(self._vmi()) == "Running":
                self._vmi_action("reset")
                return
        # A machine that has powered itself off has no button to push; it has a switch.
        raise GuestError("the guest switched the machine off: restart it instead of resetting it")

    def restart(self) -> None:
        """Cut the power and switch it on again: a new instance, with empty memory."""
        with self._lock, step("power cycle"):
            deadline = Deadline(_RESTART_LIMIT_S)
            if not self._link_up:
                self._patch_link(up=True)
            old = self._uid
            self._stream.close()
            self._ask_until_changed("restart", {"gracePeriodSeconds": 0}, old, deadline)
            self._attach(deadline)

    def pause(self) -> None:
        """Stop its processors; the machine stays as it is."""
        with self._lock:
            self._vmi_action("pause")

    def unpause(self) -> None:
        """Let its processors go on."""
        with self._lock:
            self._vmi_action("unpause")

    def set_link(self, *, up: bool) -> None:
        """Plug in or pull the network cable."""
        with self._lock:
            self._patch_link(up=up)

    def check(self) -> None:
        """Raise `ClusterError` if the machine is gone, `GuestError` if the guest powered off."""
        for watch in (self._watches.vmis, self._watches.pods):
            watch.check()
        vmi = self._vmi()
        if vmi is not None and vmi["metadata"]["uid"] == self._uid:
            self._last = vmi
            if diagnosis.powered_off(vmi):
                raise GuestError("the guest switched the machine off")
            if fault := diagnosis.machine_fault(vmi, self._pods(), self._vm()):
                raise ClusterError(fault)
        elif not self._lock.locked():
            raise ClusterError(
                f"machine {self._name} was replaced or deleted from outside while it ran"
            )

    def ssh_address(self) -> tuple[str, int]:
        """Where the guest's ssh port is to be reached, from this host, while the machine is on."""
        with self._lock:
            if self._ssh is None:
                path = VMI_ACTIONS.path(self._client.namespace, self._name, "portforward/22/tcp")
                self._ssh = self._stack.enter_context(
                    forwarded(
                        lambda: open_websocket(self._client, path, Deadline(_CONTROL_LIMIT_S))
                    )
                )
            return self._ssh

    def evidence(self, directory: Path) -> None:
        """Write vm.yaml, to be applied by hand, and what the cluster said about it."""
        (directory / "vm.yaml").write_text(to_yaml([self._manifest]), encoding="utf-8")
        last = json.dumps(self._last, indent=2)
        (directory / "vmi.json").write_text(last + "\n", encoding="utf-8")
        events, _ = self._client.find(
            EVENTS,
            Deadline(_CONTROL_LIMIT_S),
            fieldSelector=f"involvedObject.name={self._name}",
        )
        text = "".join(json.dumps(event) + "\n" for event in events)
        (directory / "events.jsonl").write_text(text, encoding="utf-8")

    # ------------------------------------------------------------------------------------ its life

    @contextlib.contextmanager
    def powered_on(self, deadline: Deadline) -> Iterator[None]:
        """Have the machine for the length of the ``with``."""
        try:
            with step(f"machine {self._name}"):
                self._client.create(self._manifest, deadline)
                self._ask_until_changed("start", {}, "", deadline)
                self._attach(deadline)
            with self._stack:
                self._stack.callback(lambda: self._stream.close())
                yield
        finally:
            self._delete()

    def _delete(self) -> None:
        try:
            self._client.delete(VIRTUAL_MACHINES, self._name, Deadline(_DELETE_LIMIT_S))
        except ClusterError as error:
            # The run's owner takes it along in the end, and this must not hide what went wrong.
            logger.warning("machine %s could not be deleted: %s", self._name, error)

    def _ask_until_changed(
        self, action: str, body: Mapping[str, Any], old: str, deadline: Deadline
    ) -> None:
        """Start or restart the machine, and wait until it runs as another instance than `old`."""

        def running() -> Mapping[str, Any] | None:
            vmi = self._vmi()
            if vmi is None or vmi["metadata"]["uid"] == old:
                vm_fault = None if old else diagnosis.machine_fault(None, (), self._vm())
                if vm_fault:
                    raise ClusterError(vm_fault)
                return None
            if fault := diagnosis.machine_fault(vmi, self._pods(), self._vm()):
                raise ClusterError(fault)
            return vmi if diagnosis.phase_of(vmi) in {"Running", "Succeeded"} else None

        def changed() -> Mapping[str, Any] | None:
            vmi = self._vmi()
            return vmi if vmi and vmi["metadata"]["uid"] != old else None

        self._ask(action, body, changed, deadline)
        vmi = self._watches.vmis.wait_for(running, deadline)
        if vmi is None:
            phase = diagnosis.phase_of(self._vmi()) or "not there"
            raise ClusterError(
                f"machine {self._name} did not run in {deadline.seconds:.0f} s: it is {phase}; "
                f"see: kubectl describe vmi {self._name}"
            )
        self._uid = vmi["metadata"]["uid"]
        self._last = vmi

    def _ask(self, action: str, body: Mapping[str, Any], done: Any, deadline: Deadline) -> None:
        """Ask for `action`; a conflict means to look whether it is `done`, and to ask again."""
        path = VM_ACTIONS.path(self._client.namespace, self._name, action)
        trouble = ClusterError(f"no time was left to {action} machine {self._name}")
        for _ in deadline.poll(0.2):
            try:
                self._client.json("PUT", path, deadline, body=body, retry=False)
            except ApiError as error:
                if error.status not in {*_CONFLICTS, 429, 502, 503, 504}:
                    raise
                logger.debug("%s of %s: %s", action, self._name, error.text)
                trouble = error
                if error.status in _CONFLICTS:
                    wait = deadline.within(5.0 if _UNDERWAY in error.text else 1.0)
                    if self._watches.vmis.wait_for(done, wait) is not None:
                        return
            except ClusterError as error:
                # The connection broke: the cluster may have heard us, or not.
                trouble = error
                if self._watches.vmis.wait_for(done, deadline.within(2.0)) is not None:
                    return
            else:
                return
        raise trouble

    def _attach(self, deadline: Deadline) -> None:
        uid = self._uid

        def alive() -> bool:
            vmi = self._vmi()
            return (
                vmi is not None
                and vmi["metadata"]["uid"] == uid
                and "deletionTimestamp" not in vmi["metadata"]
                and diagnosis.phase_of(vmi) == "Running"
            )

        self._stream = ConsoleStream(
            self._open_console,
            alive=alive,
            read_record=self._read_record,
            from_the_start=self._paused,
            deadline=deadline,
        )
        if self._paused:
            self._vmi_action("unpause")

    def _open_console(self, deadline: Deadline) -> WebSocket:
        path = VMI_ACTIONS.path(self._client.namespace, self._name, "console")
        error: ClusterError | None = None
        for _ in deadline.within(_CONTROL_LIMIT_S).poll(0.2):
            try:
                return open_websocket(self._client, path, deadline)
            except ApiError as refusal:
                if refusal.status not in {500, 502, 503, 504, 429}:
                    raise
                error = refusal
        raise error or ClusterError(f"no time was left to open the console of {self._name}")

    def _read_record(self, deadline: Deadline) -> bytes:
        """The last lines of the cluster's own record of the serial line."""
        for pod in self._pods():
            answer = self._client.send(
                "GET",
                PODS.path(self._client.namespace, pod["metadata"]["name"], "log"),
                deadline.within(5),
                query={"container": "guest-console-log", "tailLines": str(_RECORD_LINES)},
                retry=False,
            )
            return bytes(answer.data)
        return b""

    def _vmi_action(self, action: str) -> None:
        path = VMI_ACTIONS.path(self._client.namespace, self._name, action)
        self._client.json("PUT", path, Deadline(_CONTROL_LIMIT_S), body={})

    def _patch_link(self, *, up: bool) -> None:
        change = {
            "op": "add",
            "path": "/spec/template/spec/domain/devices/interfaces/0/state",
            "value": "up" if up else "down",
        }
        self._client.patch(VIRTUAL_MACHINES, self._name, [change], Deadline(_CONTROL_LIMIT_S))
        self._link_up = up

    def _vmi(self) -> dict[str, Any] | None:
        return self._watches.vmis.get(self._name)

    def _vm(self) -> dict[str, Any] | None:
        return self._watches.vms.get(self._name)

    def _pods(self) -> list[dict[str, Any]]:
        """The launcher pods of this instance."""
        label = self._manifest["metadata"]["labels"][MACHINE_LABEL]
        return [
            pod
            for pod in self._watches.pods.all()
            if pod["metadata"].get("labels", {}).get(MACHINE_LABEL) == label
            and _is_of(pod, self._vmi())
        ]


def _is_of(pod: Mapping[str, Any], vmi: Mapping[str, Any] | None) -> bool:
    uid = vmi and vmi["metadata"]["uid"]
    return any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences", ()))
