"""A machine on a cluster: a VirtualMachine, its power and console, and its instances."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kboot.backend import Stream
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError, GuestError
from kboot.kubevirt import diagnosis
from kboot.kubevirt.api import (
    EVENTS,
    PODS,
    VIRTUAL_MACHINES,
    ApiError,
    Client,
    WebSocket,
    open_websocket,
)
from kboot.kubevirt.api.client import VMI_ACTIONS
from kboot.kubevirt.console import ConsoleStream, NoStream
from kboot.kubevirt.control import CONTROL_LIMIT_S, Control
from kboot.kubevirt.manifests import Manifest, to_yaml
from kboot.kubevirt.port_forward import forwarded
from kboot.kubevirt.watches import MachineView, Watches, create_when_allowed
from kboot.log import logger, step
from kboot.machine_spec import MachineSpec

#: How much of the cluster's record is read to fill a gap.
_RECORD_LINES = 5000
_RECORD_LIMIT_S = 5.0

_NOT_YET = {429, 500, 502, 503, 504}
#: There is no instance, or it does not run: what we watch may be ahead of who answers for consoles.
_TOO_EARLY = {400, 404}


def attach(
    client: Client,
    view: MachineView,
    uid: str,
    *,
    from_the_start: bool,
    ours: Callable[[], bool],
    deadline: Deadline,
) -> ConsoleStream:
    """The serial line of the instance with this uid, for as long as that runs and is `ours`.

    `from_the_start` says that the machine waits for us before its first instruction.
    """
    path = VMI_ACTIONS.path(client.namespace, view.name, "console")

    def open_console(deadline: Deadline) -> WebSocket:
        error: ClusterError | None = None
        for _ in deadline.within(CONTROL_LIMIT_S).poll(0.2):
            try:
                return open_websocket(client, path, deadline)
            except ApiError as refusal:
                early = refusal.status in _TOO_EARLY and view.is_running(uid)
                if refusal.status not in _NOT_YET and not early:
                    raise
                error = refusal
        raise error or ClusterError(f"no time was left to open the console of {view.name}")

    return ConsoleStream(
        open_console,
        alive=lambda: view.is_running(uid) and ours(),
        read_record=lambda deadline: _read_record(client, view, deadline),
        from_the_start=from_the_start,
        deadline=deadline,
    )


def _read_record(client: Client, view: MachineView, deadline: Deadline) -> bytes:
    """The last lines of the cluster's own record of the serial line."""
    for pod in view.pods():
        answer = client.send(
            "GET",
            PODS.path(client.namespace, pod["metadata"]["name"], "log"),
            deadline.within(_RECORD_LIMIT_S),
            query={"container": "guest-console-log", "tailLines": str(_RECORD_LINES)},
            retry=False,
        )
        return bytes(answer.data)
    return b""


#: For a stopped machine's pod to go, and a new one to come.
_RESTART_LIMIT_S = 180.0
_DELETE_LIMIT_S = 30.0
#: For finding out who ended a machine.
_LOOK_LIMIT_S = 10.0

#: Whose fault the end of a machine is, and in which words.
_End = tuple[type[ClusterError] | type[GuestError], str]


class ClusterVirtualMachine:
    """A `kboot.backend.VirtualMachine` on the cluster. Made by `kboot.kubevirt.backend`."""

    def __init__(
        self,
        client: Client,
        watches: Watches,
        spec: MachineSpec,
        manifest: Manifest,
        *,
        paused: bool,
        ours: Callable[[], bool] = lambda: True,
        prepare: Callable[[Deadline], Deadline] = lambda deadline: deadline,
    ) -> None:
        """`paused` says that the machine waits for its console before its first instruction.

        `ours` is asked before a console that was lost is opened again. `prepare` makes what the
        machine needs, before it is made, and returns the deadline for the rest.
        """
        self.spec = spec
        self._client = client
        self._watches = watches
        self._manifest = manifest
        self._paused = paused
        self._ours = ours
        self._prepare = prepare
        self._view = MachineView(watches, manifest, client)
        self._control = Control(client, self._view)
        self._name = self._view.name
        self._uid = ""
        self._lock = threading.Lock()
        self._stream: ConsoleStream | NoStream
        self._on = False
        self._link_up = True
        self._last: Mapping[str, Any] = {}
        #: Of the present instance, once it was found out.
        self._end: _End | None = None
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
            if self._view.is_running(self._uid):
                self._control.reset()
                return
        if not self._on:
            raise ConfigError(f"machine {self._name} is switched off: start it, then reset it")
        # A machine that has powered itself off has no button to push; it has a switch.
        end = self._find_end()
        if isinstance(end, GuestError):
            raise GuestError(f"{end}: restart it instead of resetting it")
        if end is not None:
            raise end
        raise ClusterError(
            f"machine {self._name} cannot be reset: it is {self._view.phase or 'gone'}"
        )

    def restart(self, *, force: bool = False) -> None:
        """Cut the power and switch it on again: a new instance, with empty memory.

        With `force`, KubeVirt's pod is not given the seconds that it takes to end in good order.
        """
        with self._lock, step("power cycle"):
            self._renew(lambda deadline: self._control.restart(self._uid, deadline, force=force))

    def stop(self, *, force: bool = False) -> None:
        """Cut the power; the machine can be started again. `force` as in `restart`."""
        with self._lock, step("power off"):
            self._on = False
            self._stream.close()
            self._control.stop(Deadline(_RESTART_LIMIT_S), force=force)

    def start(self) -> None:
        """Switch it on, if it is off: by `stop`, or because the guest has powered it off."""
        with self._lock, step("power on"):
            if not self._view.is_running(self._uid):
                self._renew(lambda deadline: self._control.start(self._uid, deadline))

    def pause(self) -> None:
        """Stop its processors; the machine stays as it is."""
        with self._lock:
            self._control.set_paused(paused=True)

    def unpause(self) -> None:
        """Let its processors go on."""
        with self._lock:
            self._control.set_paused(paused=False)

    def set_link(self, *, up: bool) -> None:
        """Plug in or pull the network cable."""
        with self._lock:
            self._patch_link(up=up)

    def set_fleet_link(self, *, up: bool) -> None:
        """Plug in or pull the cable of the card that is not the one that it boots from."""
        with self._lock:
            self._control.set_link(up=up, card=1)

    def check(self) -> None:
        """Raise `ClusterError` if the machine is gone, `GuestError` if the guest powered off."""
        self._watches.check()
        # While we switch it ourselves, it is gone for a while.
        if not self._on or self._lock.locked():
            return
        if end := self._find_end():
            raise end
        if self.console_fault:
            raise ClusterError(f"machine {self._name}: {self.console_fault}")

    @property
    def console_fault(self) -> str:
        """Why its serial line cannot be had, though it runs."""
        return self._stream.fault

    def reattach(self) -> bool:
        """Try to have the serial line again (see `kboot.backend.ReattachableMachine`)."""
        with self._lock:
            return self._stream.reopen(Deadline(CONTROL_LIMIT_S))

    def ssh_address(self) -> tuple[str, int]:
        """Where the guest's ssh port is to be reached, from this host, while the machine is on."""
        with self._lock:
            if self._ssh is None:
                path = VMI_ACTIONS.path(self._client.namespace, self._name, "portforward/22/tcp")
                self._ssh = self._stack.enter_context(
                    forwarded(lambda: open_websocket(self._client, path, Deadline(CONTROL_LIMIT_S)))
                )
            return self._ssh

    def evidence(self, directory: Path) -> None:
        """Write vm.yaml, to be applied by hand, and what the cluster said about it."""
        (directory / "vm.yaml").write_text(to_yaml([self._manifest]), encoding="utf-8")
        last = json.dumps(self._last, indent=2)
        (directory / "vmi.json").write_text(last + "\n", encoding="utf-8")
        events, _ = self._client.find(
            EVENTS,
            Deadline(CONTROL_LIMIT_S),
            fieldSelector=f"involvedObject.name={self._name}",
        )
        text = "".join(json.dumps(event) + "\n" for event in events)
        (directory / "events.jsonl").write_text(text, encoding="utf-8")

    def _find_end(self) -> ClusterError | GuestError | None:
        """What ended the machine, or keeps it from running; None if all is well."""
        if self._end is None:
            vmi = self._view.instance()
            if vmi is not None and vmi["metadata"]["uid"] == self._uid:
                self._last = vmi
                if not self._view.is_over():
                    fault = self._view.fault()
                    return ClusterError(fault) if fault else None
            # Watches come one after another, each in its own time: what they show together may
            # never have been. Whom it is blamed on is decided by what is there now.
            self._end = self._look_at_end(Deadline(_LOOK_LIMIT_S))
        if self._end is None:
            return None
        kind, text = self._end
        return kind(text)

    def _look_at_end(self, deadline: Deadline) -> _End | None:
        vmi, pods, vm = self._view.look(self._client, deadline)
        if vmi is None or vmi["metadata"]["uid"] != self._uid:
            return ClusterError, diagnosis.gone_from_outside(self._name, vmi, vm)
        if fault := diagnosis.machine_fault(vmi, pods, vm):
            return ClusterError, fault
        if diagnosis.has_succeeded(vmi):
            return GuestError, "the guest switched the machine off"
        return None

    # ------------------------------------------------------------------------------------ its life

    @contextlib.contextmanager
    def met(self, deadline: Deadline) -> Iterator[None]:
        """Have a machine that is there, as it is, for the length of the ``with``; it stays."""
        with self._stack:
            with step(f"machine {self._name}"):
                self._connect(deadline)
            self._stack.callback(lambda: self._stream.close())
            yield

    def _connect(self, deadline: Deadline) -> None:
        """Attach to a machine that runs, or is about to; to nothing if there is none."""
        begun = self._view.phase in {"Pending", "Scheduling", "Scheduled"}
        vmi = self._view.wait_until_it_runs("", deadline) if begun else self._view.instance()
        self._uid, self._last = (vmi["metadata"]["uid"], vmi) if vmi else ("", {})
        self._on = True
        self._stream = NoStream()
        if self._view.is_running(self._uid):
            self._stream = self._stream_of(self._uid, from_the_start=False, deadline=deadline)
            if begun and self._paused:
                self._control.set_paused(paused=False)

    def past(self) -> bytes:
        """What it said before we came (see `kboot.backend.ExistingVirtualMachine`)."""
        return self._stream.past()

    @contextlib.contextmanager
    def powered_on(
        self, deadline: Deadline, *, stays: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """Have the machine for the length of the ``with``; it is deleted, unless it `stays`."""
        try:
            with step(f"machine {self._name}"):
                deadline = self._prepare(deadline)
                what = f"machine {self._name}"
                create_when_allowed(self._client, self._manifest, what, deadline)
                self._attach(self._control.start("", deadline), deadline)
            with self._stack:
                self._stack.callback(lambda: self._stream.close())
                yield
        finally:
            if not stays():
                self._delete()

    def _delete(self) -> None:
        try:
            self._client.delete(VIRTUAL_MACHINES, self._name, Deadline(_DELETE_LIMIT_S))
        except ClusterError as error:
            # The run's owner takes it along in the end, and this must not hide what went wrong.
            logger.warning("machine %s could not be deleted: %s", self._name, error)

    def _renew(self, switch_on: Callable[[Deadline], Mapping[str, Any]]) -> None:
        """Have another instance in place of the one that there was, and its serial line."""
        deadline = Deadline(_RESTART_LIMIT_S)
        if not self._link_up:
            self._patch_link(up=True)
        self._stream.close()
        self._attach(switch_on(deadline), deadline)

    def _attach(self, vmi: Mapping[str, Any], deadline: Deadline) -> None:
        """Take `vmi` for the instance that we are, and its serial line."""
        self._uid, self._last, self._on, self._end = vmi["metadata"]["uid"], vmi, True, None
        self._stream = self._stream_of(self._uid, from_the_start=self._paused, deadline=deadline)
        if self._paused:
            self._control.set_paused(paused=False)

    def _stream_of(self, uid: str, *, from_the_start: bool, deadline: Deadline) -> ConsoleStream:
        return attach(
            self._client,
            self._view,
            uid,
            from_the_start=from_the_start,
            ours=self._ours,
            deadline=deadline,
        )

    def _patch_link(self, *, up: bool) -> None:
        self._control.set_link(up=up)
        self._link_up = up
