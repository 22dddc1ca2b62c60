"""Attach to the serial line of a running instance."""

from __future__ import annotations

from collections.abc import Callable

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kube import PODS, ApiError, Client, WebSocket, open_websocket
from kboot.kube.resources import VMI_ACTIONS
from kboot.kubevirt.console import ConsoleStream
from kboot.kubevirt.control import CONTROL_LIMIT_S
from kboot.kubevirt.view import MachineView

#: How much of the cluster's record is read to fill a gap.
_RECORD_LINES = 5000
_RECORD_LIMIT_S = 5.0

_PASSING = {429, 500, 502, 503, 504}
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
                if refusal.status not in _PASSING and not early:
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
