"""What clients ask of a supervisor, verb by verb; each on the thread of its client."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kboot.backend import SshMachine
from kboot.errors import ConfigError, InfraError
from kboot.machines.asking import Reporter, Request
from kboot.machines.keyboard import Size
from kboot.machines.pushes import Wanted
from kboot.ssh import key_file

if TYPE_CHECKING:
    from kboot.machines.supervisor import Supervisor

_WAIT_S = 0.2


def answer(supervisor: Supervisor, request: Request) -> None:
    """Do what is asked for, and answer."""
    verb = request.text("verb")
    if verb == "attach":
        _attach(supervisor, request)
        return
    act = _VERBS.get(verb)
    if act is None:
        raise ConfigError(f"this supervisor knows no {verb}; it may be older: kboot down, kboot up")
    request.wire.send({"result": act(supervisor, request)})


def _status(supervisor: Supervisor, _request: Request) -> dict[str, Any]:
    desk, state = supervisor.desk, supervisor.journal.state
    boot, current = desk.boot, supervisor.pushes.current
    return {
        "name": supervisor.place.name,
        "pid": os.getpid(),
        "state": state.name,
        "what": state.what,
        "exit_code": state.exit_code,
        "backend": supervisor.config.backend,
        "machine": boot.machine_description,
        "release": boot.kernel.release,
        "next": None if current is None else current.as_json(),
        "phase": str(boot.milestones.current),
        "boots": desk.boots,
        "notices": list(desk.notices),
        # Of a machine that stays; empty for one that does not.
        "identifier": supervisor.identifier,
        "meets": supervisor.meets and state.name in {"starting", "booting"},
        "boot_id": boot.boot_ids[-1] if boot.boot_ids else None,
        "up_s": round(time.time() - supervisor.started, 1),
        "reports": [report.title for report in boot.console.reports],
        "console_bytes": boot.console.mark(),
        "writer": supervisor.keyboard.holder,
        "evidence": str(supervisor.evidence),
    }


def _wait(supervisor: Supervisor, request: Request) -> dict[str, Any]:
    """Tell of the present boot from its beginning, and return when it has ended."""
    seen = supervisor.journal.boot_began
    while supervisor.journal.state.name in {"starting", "booting"} and not supervisor.stopping:
        seen = _tell(supervisor, request, seen)
    _tell(supervisor, request, seen, at_most_s=0)
    return _status(supervisor, request)


def _restart(supervisor: Supervisor, request: Request) -> Any:
    how = request.text("how")
    return _follow(
        supervisor, request, supervisor.submit(lambda desk: desk.restart(how), preempt=True)
    )


def _panic(supervisor: Supervisor, request: Request) -> Any:
    return _follow(supervisor, request, supervisor.submit(lambda desk: desk.panic()))


def _push(supervisor: Supervisor, request: Request) -> Any:
    pushes, preempt = supervisor.pushes, bool(request.message.get("preempt"))
    initrds = request.message.get("initrds")
    wanted = Wanted(
        files=[Path(file) for file in request.message.get("files", [])],
        command_line=request.message.get("cmdline"),
        initrds=None if initrds is None else [Path(file) for file in initrds],
        modules=request.message.get("modules"),
    )
    with pushes.changing:
        _need_server(supervisor, preempt=preempt)
        before = pushes.sent
        push = pushes.prepare(wanted, Reporter(request).report)
        # Who was killed in the middle of it has changed nothing.
        request.check_presence()
        sent = pushes.sent - before
        job = supervisor.submit(lambda desk: desk.switch(push), preempt=preempt)
        return {**job.result(), "sent": sent}


def _need_server(supervisor: Supervisor, *, preempt: bool) -> None:
    """Have the boot server mended if it is gone."""
    try:
        supervisor.desk.boot.server.check()
    except InfraError:
        supervisor.submit(lambda desk: desk.supply.mend(), preempt=preempt).result()


def _pushes(supervisor: Supervisor, _request: Request) -> list[dict[str, Any]]:
    current = supervisor.pushes.current
    return [{**push.as_json(), "current": push is current} for push in supervisor.pushes.all]


def _rollback(supervisor: Supervisor, request: Request) -> Any:
    number = request.message.get("number")
    return supervisor.submit(
        lambda desk: desk.switch(desk.pushes.find(number)),
        preempt=bool(request.message.get("preempt")),
    ).result()


def _collect(supervisor: Supervisor, request: Request) -> Any:
    keep = request.message.get("keep")
    if not isinstance(keep, int) or keep < 0:
        raise ConfigError("the request does not say how many pushes to keep")
    with supervisor.pushes.changing:
        return supervisor.submit(lambda desk: desk.collect(keep)).result()


def _run(supervisor: Supervisor, request: Request) -> Any:
    command, timeout_s = request.text("command"), request.seconds("timeout_s")
    return supervisor.submit(lambda desk: desk.run(command, timeout_s)).result()


def _put(supervisor: Supervisor, request: Request) -> Any:
    local, remote = request.text("local"), request.text("remote")
    timeout_s = request.seconds("timeout_s")
    report = Reporter(request).report
    return supervisor.submit(lambda desk: desk.put(local, remote, timeout_s, report)).result()


def _get(supervisor: Supervisor, request: Request) -> Any:
    local, remote = request.text("local"), request.text("remote")
    timeout_s = request.seconds("timeout_s")
    return supervisor.submit(lambda desk: desk.get(remote, local, timeout_s)).result()


def _stop(supervisor: Supervisor, _request: Request) -> dict[str, Any]:
    supervisor.stop()
    return {"pid": os.getpid(), "evidence": str(supervisor.evidence)}


def _attach(supervisor: Supervisor, request: Request) -> None:
    """Hand the connection over to the console."""
    broker, connection = supervisor.broker, request.wire.socket
    offset, size = broker.position(request.message.get("since"), boot=supervisor.desk.boot_offset)
    writes = bool(request.message.get("write"))
    where = {"offset": offset, "size": size, "writes": writes}
    if not writes:
        request.wire.send({"result": where})
        broker.read(connection, offset, lambda: supervisor.stopping)
        return
    with supervisor.keyboard.held_by(request.pid, _size(request)):
        supervisor.submit(lambda desk: desk.lend_console())
        request.wire.send({"result": where})
        broker.talk(connection, offset, lambda: supervisor.stopping)


def _ssh(supervisor: Supervisor, _request: Request) -> dict[str, Any]:
    """Where the guest's ssh server is, and how to get in."""
    boot = supervisor.desk.boot
    if boot.settings.channel == "console" or not isinstance(boot.machine, SshMachine):
        raise ConfigError(
            f"{supervisor.place.name} was started without ssh; kboot down, and kboot up with "
            "--channel ssh and a root file system that has a server, or use kboot run"
        )
    host, port = boot.machine.ssh_address()
    user = boot.settings.user
    return {"host": host, "port": port, "user": user, "key": str(key_file())}


def _resize(supervisor: Supervisor, request: Request) -> None:
    size = _size(request)
    if size and supervisor.keyboard.resize(request.pid, size):
        supervisor.submit(lambda desk: desk.resize())


def _size(request: Request) -> Size | None:
    """Rows and columns of the terminal that asks, if it has told them."""
    match request.message.get("size"):
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    return None


def _follow(supervisor: Supervisor, request: Request, job: Future[Any]) -> Any:
    """Tell what happens until the job is done; its result."""
    seen = supervisor.journal.count
    while not job.done():
        seen = _tell(supervisor, request, seen)
    _tell(supervisor, request, seen, at_most_s=0)
    return job.result()


def _tell(
    supervisor: Supervisor, request: Request, seen: int, *, at_most_s: float = _WAIT_S
) -> int:
    """Send the events from number `seen` on; the number of the next one."""
    events = supervisor.journal.after(seen, at_most_s)
    for event in events:
        request.wire.send(event)
    return seen + len(events)


_VERBS: dict[str, Callable[[Supervisor, Request], Any]] = {
    "status": _status,
    "wait": _wait,
    "restart": _restart,
    "panic": _panic,
    "push": _push,
    "pushes": _pushes,
    "rollback": _rollback,
    "collect": _collect,
    "run": _run,
    "put": _put,
    "get": _get,
    "resize": _resize,
    "ssh": _ssh,
    "stop": _stop,
}
