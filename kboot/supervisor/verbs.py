"""The requests that a supervisor answers, verb by verb; each on the thread of its client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kboot.backend import Progress, SshVirtualMachine
from kboot.errors import ConfigError, InfraError
from kboot.guest.ssh import key_file
from kboot.rpc import Request
from kboot.supervisor.pushes import Wanted
from kboot.supervisor.shared_console import Size

if TYPE_CHECKING:
    from kboot.supervisor.supervisor import Supervisor


#: Between two reports of a file's progress.
_PROGRESS_S = 0.1


class Reporter:
    """Tells a client how far its files are, as often as a person can read it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        #: When the next report of a file and step is due.
        self._next: dict[tuple[Path, str], float] = {}

    def report(self, progress: Progress) -> None:
        """A `kboot.backend.OnProgress`. `InfraError` if the client has left."""
        now = time.monotonic()
        file = (progress.file, progress.step)
        if now < self._next.get(file, now) and progress.done < progress.size:
            return
        self._next[file] = now + _PROGRESS_S
        self._request.send_event(
            {
                "event": "progress",
                "file": str(progress.file),
                "step": progress.step,
                "done": progress.done,
                "size": progress.size,
            }
        )


_WAIT_S = 0.2


def answer(supervisor: Supervisor, request: Request) -> Any:
    """Do what is asked for; the result."""
    act = _VERBS.get(request.verb)
    if act is None:
        raise ConfigError(
            f"this supervisor knows no {request.verb}; it may be older: kboot down, kboot up"
        )
    return act(supervisor, request)


def _status(supervisor: Supervisor, _request: Request) -> dict[str, Any]:
    session, state = supervisor.session, supervisor.events.state
    progress = session.progress
    machine, current = session.machine, supervisor.pushes.current
    return {
        "name": supervisor.place.name,
        "pid": os.getpid(),
        "state": state.name,
        "what": state.what,
        "exit_code": state.exit_code,
        "backend": supervisor.config.backend,
        "machine": machine.machine_description,
        "release": progress.release,
        "next": None if current is None else current.as_json(),
        "phase": progress.phase,
        "boots": progress.boots,
        "notices": list(session.notices),
        # Of a persistent machine; else empty.
        "identifier": supervisor.identifier,
        "taking_over": supervisor.takes_over and state.name in {"starting", "booting"},
        "boot_id": progress.boot_id,
        "up_s": round(time.time() - supervisor.started, 1),
        "reports": [report.title for report in machine.console.reports],
        "console_bytes": machine.console.mark(),
        "writer": supervisor.keyboard.holder,
        "evidence": str(supervisor.evidence),
    }


def _wait(supervisor: Supervisor, request: Request) -> dict[str, Any]:
    """Tell of the present boot from its beginning, and return when it has ended."""
    seen = supervisor.events.boot_began
    while supervisor.events.state.name in {"starting", "booting"} and not supervisor.stopping:
        seen = _tell(supervisor, request, seen)
    _tell(supervisor, request, seen, at_most_s=0)
    return _status(supervisor, request)


def _restart(supervisor: Supervisor, request: Request) -> Any:
    how = request.text("how")
    return _follow(
        supervisor, request, supervisor.submit(lambda session: session.restart(how), preempt=True)
    )


def _panic(supervisor: Supervisor, request: Request) -> Any:
    return _follow(supervisor, request, supervisor.submit(lambda session: session.panic()))


def _push(supervisor: Supervisor, request: Request) -> Any:
    pushes, preempt = supervisor.pushes, bool(request.arguments.get("preempt"))
    initrds = request.arguments.get("initrds")
    wanted = Wanted(
        files=[Path(file) for file in request.arguments.get("files", [])],
        command_line=request.arguments.get("cmdline"),
        initrds=None if initrds is None else [Path(file) for file in initrds],
        modules=request.arguments.get("modules"),
    )
    with pushes.changing:
        _ensure_server(supervisor, preempt=preempt)
        before = pushes.sent
        push = pushes.prepare(wanted, Reporter(request).report)
        # Who was killed in the middle of it has changed nothing.
        request.check_client()
        sent = pushes.sent - before
        job = supervisor.submit(lambda session: session.switch(push), preempt=preempt)
        return {**job.result(), "sent": sent}


def _ensure_server(supervisor: Supervisor, *, preempt: bool) -> None:
    """Have the boot server mended if it is gone."""
    try:
        supervisor.session.machine.server.check()
    except InfraError:
        supervisor.submit(
            lambda session: session.next_boot.recreate_server(), preempt=preempt
        ).result()


def _pushes(supervisor: Supervisor, _request: Request) -> list[dict[str, Any]]:
    current = supervisor.pushes.current
    return [{**push.as_json(), "current": push is current} for push in supervisor.pushes.all]


def _rollback(supervisor: Supervisor, request: Request) -> Any:
    number = request.arguments.get("number")
    return supervisor.submit(
        lambda session: session.switch(session.pushes.find(number)),
        preempt=bool(request.arguments.get("preempt")),
    ).result()


def _gc_pushes(supervisor: Supervisor, request: Request) -> Any:
    keep = request.arguments.get("keep")
    if not isinstance(keep, int) or keep < 0:
        raise ConfigError("the request does not say how many pushes to keep")
    with supervisor.pushes.changing:
        return supervisor.submit(lambda session: session.gc_pushes(keep)).result()


def _exec(supervisor: Supervisor, request: Request) -> Any:
    command, timeout_s = request.text("command"), request.seconds("timeout_s")
    return supervisor.submit(lambda session: session.exec(command, timeout_s)).result()


def _put(supervisor: Supervisor, request: Request) -> Any:
    local, remote = request.text("local"), request.text("remote")
    timeout_s = request.seconds("timeout_s")
    report = Reporter(request).report
    return supervisor.submit(lambda session: session.put(local, remote, timeout_s, report)).result()


def _get(supervisor: Supervisor, request: Request) -> Any:
    local, remote = request.text("local"), request.text("remote")
    timeout_s = request.seconds("timeout_s")
    return supervisor.submit(lambda session: session.get(remote, local, timeout_s)).result()


def _stop(supervisor: Supervisor, _request: Request) -> dict[str, Any]:
    supervisor.stop()
    return {"pid": os.getpid(), "evidence": str(supervisor.evidence)}


def _attach(supervisor: Supervisor, request: Request) -> None:
    """Hand the connection over to the console."""
    shared_console = supervisor.shared_console
    offset, size = shared_console.position(
        request.arguments.get("since"), machine=supervisor.session.boot_offset
    )
    writes = bool(request.arguments.get("write"))
    where = {"offset": offset, "size": size, "writes": writes}
    if not writes:
        connection = request.take_connection(where)
        shared_console.read(connection, offset, lambda: supervisor.stopping)
        return
    with supervisor.keyboard.held_by(request.client_pid, _size(request)):
        supervisor.submit(lambda session: session.lend_console())
        connection = request.take_connection(where)
        shared_console.talk(connection, offset, lambda: supervisor.stopping)


def _ssh(supervisor: Supervisor, _request: Request) -> dict[str, Any]:
    """Where the guest's ssh server is, and how to get in."""
    machine = supervisor.session.machine
    if machine.settings.channel == "console" or not isinstance(machine.vm, SshVirtualMachine):
        raise ConfigError(
            f"{supervisor.place.name} was started without ssh; kboot down, and kboot up with "
            "--channel ssh and a root file system that has a server, or use kboot exec"
        )
    host, port = machine.vm.ssh_address()
    user = machine.settings.user
    return {"host": host, "port": port, "user": user, "key": str(key_file())}


def _resize(supervisor: Supervisor, request: Request) -> None:
    size = _size(request)
    if size and supervisor.keyboard.resize(request.client_pid, size):
        supervisor.submit(lambda session: session.resize())


def _size(request: Request) -> Size | None:
    """Rows and columns of the terminal that asks, if it has told them."""
    match request.arguments.get("size"):
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    return None


def _follow(supervisor: Supervisor, request: Request, job: Future[Any]) -> Any:
    """Tell what happens until the job is done; its result."""
    seen = supervisor.events.count
    while not job.done():
        seen = _tell(supervisor, request, seen)
    _tell(supervisor, request, seen, at_most_s=0)
    return job.result()


def _tell(
    supervisor: Supervisor, request: Request, seen: int, *, at_most_s: float = _WAIT_S
) -> int:
    """Send the events from number `seen` on; the number of the next one."""
    events, following = supervisor.events.after(seen, at_most_s)
    for event in events:
        request.send_event(event)
    return following


_VERBS: dict[str, Callable[[Supervisor, Request], Any]] = {
    "attach": _attach,
    "status": _status,
    "wait": _wait,
    "restart": _restart,
    "panic": _panic,
    "push": _push,
    "pushes": _pushes,
    "rollback": _rollback,
    "collect": _gc_pushes,
    "run": _exec,
    "put": _put,
    "get": _get,
    "resize": _resize,
    "ssh": _ssh,
    "stop": _stop,
}
