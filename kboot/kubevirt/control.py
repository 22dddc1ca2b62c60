"""The buttons and switches of a machine on a cluster: what is asked of it, until it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kube import VIRTUAL_MACHINES, ApiError, Client
from kboot.kube.resources import VM_ACTIONS, VMI_ACTIONS
from kboot.kubevirt.view import MachineView
from kboot.log import logger

#: For what the cluster does at once, or not at all.
CONTROL_LIMIT_S = 30.0

#: How the cluster says "not now": a conflict, and "stop/start already underway", which is a 500.
_CONFLICTS = {409, 500}
_PASSING = {429, 502, 503, 504}
_UNDERWAY = "already underway"


class Control:
    """Asks for one machine. What KubeVirt answers too early or too late is understood."""

    def __init__(self, client: Client, view: MachineView) -> None:
        self._client = client
        self._view = view

    def start(self, deadline: Deadline) -> dict[str, Any]:
        """Switch on; returns the instance, which runs."""
        return self._change("start", {}, "", deadline)

    def restart(self, old: str, deadline: Deadline) -> dict[str, Any]:
        """Cut the power of the instance `old` and switch on; returns the new one, which runs."""
        return self._change("restart", {"gracePeriodSeconds": 0}, old, deadline)

    def act(self, action: str) -> None:
        """Do something to the running instance: ``reset``, ``pause``..."""
        path = VMI_ACTIONS.path(self._client.namespace, self._view.name, action)
        self._client.json("PUT", path, Deadline(CONTROL_LIMIT_S), body={})

    def set_link(self, *, up: bool) -> None:
        """Plug in or pull the cable of the first network card; it stays so in the machine."""
        change = {
            "op": "add",
            "path": "/spec/template/spec/domain/devices/interfaces/0/state",
            "value": "up" if up else "down",
        }
        name, deadline = self._view.name, Deadline(CONTROL_LIMIT_S)
        self._client.patch(VIRTUAL_MACHINES, name, [change], deadline)

    # -------------------------------------------------------------------------------- inside

    def _change(
        self, action: str, body: Mapping[str, Any], old: str, deadline: Deadline
    ) -> dict[str, Any]:
        self._ask(action, body, lambda: self._view.other_than(old), deadline)
        return self._view.wait_until_it_runs(old, deadline)

    def _ask(
        self,
        action: str,
        body: Mapping[str, Any],
        done: Callable[[], Any],
        deadline: Deadline,
    ) -> None:
        """Ask for `action`; a conflict means to look whether it is `done`, and to ask again."""
        path = VM_ACTIONS.path(self._client.namespace, self._view.name, action)
        trouble = ClusterError(f"no time was left to {action} machine {self._view.name}")
        for _ in deadline.poll(0.2):
            try:
                self._client.json("PUT", path, deadline, body=body, retry=False)
            except ApiError as error:
                if error.status not in _CONFLICTS | _PASSING:
                    raise
                logger.debug("%s of %s: %s", action, self._view.name, error.text)
                trouble = error
                patience_s = 5.0 if _UNDERWAY in error.text else 1.0
                if error.status not in _CONFLICTS:
                    continue
            except ClusterError as error:
                # The connection broke: the cluster may have heard us, or not.
                trouble, patience_s = error, 2.0
            else:
                return
            if self._view.wait_for(done, deadline.within(patience_s)) is not None:
                return
        raise trouble
