"""A VirtualMachine's power, processors and network cable: what KubeVirt is asked to do to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt.api import PODS, VIRTUAL_MACHINES, ApiError, Client
from kboot.kubevirt.api.client import VM_ACTIONS, VMI_ACTIONS
from kboot.kubevirt.watches import MachineView
from kboot.log import logger

#: For what the cluster does at once, or not at all.
CONTROL_LIMIT_S = 30.0

#: How the cluster says "not now": a conflict, and "stop/start already underway", which is a 500.
_CONFLICTS = {409, 500}
_PASSING = {429, 502, 503, 504}
_UNDERWAY = "already underway"

#: An action of a VirtualMachine, and the body of its request. "At once" has two names there.
_Request = tuple[str, Mapping[str, Any]]
_START: _Request = ("start", {})
_STOP: _Request = ("stop", {"gracePeriod": 0})
_RESTART: _Request = ("restart", {"gracePeriodSeconds": 0})


class Control:
    """Asks for one machine. What KubeVirt answers too early or too late is understood."""

    def __init__(self, client: Client, view: MachineView) -> None:
        self._client = client
        self._view = view

    def start(self, old: str, deadline: Deadline) -> dict[str, Any]:
        """Switch on; returns the instance, which runs and is not `old`, the uid of one that is off.

        `old` is empty for the first start.
        """
        self._ask(lambda: _START, lambda: self._view.other_than(old), deadline)
        return self._view.wait_until_it_runs(old, deadline)

    def restart(self, old: str, deadline: Deadline, *, force: bool = False) -> dict[str, Any]:
        """Cut the power of the instance `old` and switch on; returns the new one, which runs.

        With `force`, its launcher pod is deleted instead of waited for.
        """

        def choose() -> _Request:
            # Without an instance it is "not running", which a restart does not change.
            return _RESTART if self._view.instance() else _START

        pods = self._view.pods()
        self._ask(choose, lambda: self._view.other_than(old), deadline)
        if force:
            self._delete(pods, deadline)
        return self._view.wait_until_it_runs(old, deadline)

    def stop(self, deadline: Deadline, *, force: bool = False) -> None:
        """Cut the power, and wait until nothing runs any more; `force` as in `restart`."""
        pods = self._view.pods()
        self._ask(lambda: _STOP, self._view.is_off, deadline)
        if force:
            self._delete(pods, deadline)
        if self._view.wait_for(self._view.is_off, deadline) is None:
            raise ClusterError(
                f"machine {self._view.name} did not stop in {deadline.seconds:.0f} s: it is "
                f"{self._view.phase}; stop it by force, or see: kubectl describe vmi "
                f"{self._view.name}"
            )

    def reset(self) -> None:
        """Push the reset button of the running instance."""
        self._act("reset")

    def set_paused(self, *, paused: bool) -> None:
        """Stop the processors of the running instance, or let them go on; done when it shows."""
        trouble = ClusterError(
            f"machine {self._view.name} was told to {'pause' if paused else 'go on'}, and does "
            f"not show it after {CONTROL_LIMIT_S:.0f} s"
        )
        patience_s = CONTROL_LIMIT_S
        try:
            self._act("pause" if paused else "unpause")
        except ApiError as error:
            if error.status not in _CONFLICTS:
                raise
            # Perhaps it is so already, by a request of ours whose answer was lost.
            trouble, patience_s = error, 2.0

        def shown() -> bool | None:
            return self._view.is_paused() == paused or None

        if self._view.wait_for(shown, Deadline(patience_s)) is None:
            raise trouble

    def set_link(self, *, up: bool, card: int = 0) -> None:
        """Plug in or pull the cable of a network card, by number; it stays so in the machine."""
        change = {
            "op": "add",
            "path": f"/spec/template/spec/domain/devices/interfaces/{card}/state",
            "value": "up" if up else "down",
        }
        name, deadline = self._view.name, Deadline(CONTROL_LIMIT_S)
        self._client.patch(VIRTUAL_MACHINES, name, [change], deadline)

    # -------------------------------------------------------------------------------- inside

    def _act(self, action: str) -> None:
        path = VMI_ACTIONS.path(self._client.namespace, self._view.name, action)
        self._client.json("PUT", path, Deadline(CONTROL_LIMIT_S), body={})

    def _delete(self, pods: Sequence[Mapping[str, Any]], deadline: Deadline) -> None:
        for pod in pods:
            self._client.delete(PODS, pod["metadata"]["name"], deadline)

    def _ask(
        self, choose: Callable[[], _Request], done: Callable[[], Any], deadline: Deadline
    ) -> None:
        """Ask for what `choose` says; a conflict means to look if it is `done`, or to ask again."""
        name = self._view.name
        trouble = ClusterError(f"no time was left to {choose()[0]} machine {name}")
        for _ in deadline.poll(0.2):
            before, (action, body) = self._view.uid, choose()
            path = VM_ACTIONS.path(self._client.namespace, name, action)
            try:
                self._client.json("PUT", path, deadline, body=body, retry=False)
            except ApiError as error:
                if error.status not in _CONFLICTS | _PASSING:
                    raise
                logger.debug("%s of %s: %s", action, name, error.text)
                trouble = error
                patience_s = 5.0 if _UNDERWAY in error.text else 1.0
                if error.status not in _CONFLICTS:
                    continue
            except ClusterError as error:
                # The connection broke: the cluster may have heard us, or not.
                trouble, patience_s = error, 2.0
            else:
                return
            if self._happens(done, before, deadline.within(patience_s)):
                return
        raise trouble

    def _happens(self, done: Callable[[], Any], before: str, deadline: Deadline) -> bool:
        """Wait for what is to be `done`; False once asking again may help.

        That is at the deadline, or when the instance is another one than `before`, or gone.
        """

        def moved() -> bool | None:
            return True if done() or self._view.uid != before else None

        self._view.wait_for(moved, deadline)
        return bool(done())
