"""Start a machine's supervisor, and send it requests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot import process, rpc
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError, KbootError
from kboot.state import RUN_VARIABLE, sweep
from kboot.supervisor.registry import (
    MachineDirectory,
    claim,
    directory_of,
    machine_directories,
    remove_if_dead,
)

#: A supervisor listens from its first moments on, a second after its start at most.
_CONNECT_LIMIT_S = 20.0
#: For one that has hung up: its machine is being stopped.
_END_LIMIT_S = 20.0


def ask(
    name: str, verb: str, *, on_event: rpc.OnEvent = lambda _event: None, **arguments: Any
) -> Any:
    """Have a machine's supervisor do something, and return what it answers.

    `on_event` is called with what it tells meanwhile. Raises what went wrong there, as one of the
    three families of errors; `ConfigError` if there is no such machine.
    """
    with contextlib.closing(connect(directory_of(name))) as client:
        return client.ask(verb, on_event=on_event, **arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A console to read from, and maybe to write to."""

    wire: rpc.Wire
    #: The position in the record at which it begins, and how far the record reached then.
    offset: int
    size: int
    #: Whether what is sent is typed.
    writes: bool

    def pieces(self) -> Iterator[bytes]:
        """The bytes as they come; ends when the machine is stopped."""
        rest = self.wire.take_rest()
        if rest:
            yield rest
        with contextlib.suppress(ConnectionError):
            while data := self.wire.socket.recv(1 << 16):
                yield data


@contextlib.contextmanager
def attach(name: str, **arguments: Any) -> Iterator[Attachment]:
    """The serial line of a machine, from the position ``since`` on (see `SharedConsole`).

    Detached at the end of the ``with``.
    """
    with contextlib.closing(connect(directory_of(name))) as client:
        answer = client.ask("attach", **arguments)
        yield Attachment(
            wire=client.wire, offset=answer["offset"], size=answer["size"], writes=answer["writes"]
        )


def console_of(name: str, since: str | int) -> Iterator[bytes]:
    """What a machine's console has said so far, from the position `since` on."""
    with attach(name, since=since) as line:
        left = line.size - line.offset
        for data in line.pieces() if left else ():
            yield data[:left]
            left -= len(data)
            if left <= 0:
                return


def clear_dead() -> list[str]:
    """Remove what dead supervisors have left, their processes too; the names of their machines."""
    gone = [
        machine_dir.name for machine_dir in machine_directories() if remove_if_dead(machine_dir)
    ]
    if gone:
        sweep()
    return gone


def live_machines() -> list[MachineDirectory]:
    """The machines that there are. What dead supervisors have left is removed."""
    clear_dead()
    return machine_directories()


def stop_machine(name: str) -> str:
    """Switch a machine off; the directory with what is left of it: its console and logs.

    A supervisor that does not end is killed, and with it all it has started.
    """
    answer = ask(name, "stop")
    machine_dir = directory_of(name)
    for _ in Deadline(_END_LIMIT_S).poll(0.02):
        if not machine_dir.is_alive:
            break
    else:
        os.kill(answer["pid"], signal.SIGKILL)
    clear_dead()
    evidence: str = answer["evidence"]
    return evidence


def connect(machine_dir: MachineDirectory) -> rpc.Client:
    """A client of a machine's supervisor, which may just be starting."""
    deadline = Deadline(_CONNECT_LIMIT_S)
    for _ in deadline.poll(0.02):
        if not machine_dir.is_alive:
            raise _absent(machine_dir)
        with contextlib.suppress(FileNotFoundError, ConnectionError):
            wire = rpc.connect(machine_dir.path, limit_s=deadline.remaining)
            return rpc.Client(wire, lambda: _ended(machine_dir))
    raise InfraError(f"the supervisor of {machine_dir.name} does not answer; see {machine_dir.log}")


def _absent(machine_dir: MachineDirectory) -> ConfigError | InfraError:
    failure = machine_dir.read_failure()
    if remove_if_dead(machine_dir):
        sweep()
        why = f": {failure['message']}" if failure else ", and was killed"
        return InfraError(
            f"the machine {machine_dir.name} has ended{why}; start it again: kboot up"
        )
    there = ", ".join(each.name for each in machine_directories())
    hint = f"there are: {there}; " if there else ""
    return ConfigError(
        f"there is no machine called {machine_dir.name}; {hint}"
        f"to start it: kboot up {machine_dir.name}"
    )


def _ended(machine_dir: MachineDirectory) -> KbootError:
    """Why a supervisor has hung up."""
    for _ in Deadline(_END_LIMIT_S).poll(0.05):
        if not machine_dir.is_alive:
            failure = machine_dir.read_failure()
            return rpc.to_error(failure) if failure else _absent(machine_dir)
    return InfraError(f"the supervisor of {machine_dir.name} has hung up; see {machine_dir.log}")


_START_LIMIT_S = 30.0


def launch(
    name: str,
    options: Mapping[str, object],
    *,
    takes_over: bool = False,
    by_force: bool = False,
) -> MachineDirectory:
    """Start a supervisor for a machine called `name`; it then boots, see the verb ``wait``.

    `options` are those of `kboot.config.load`, which the supervisor reads again, here and in this
    environment. `ConfigError` if there is such a machine here. With `takes_over`, it takes over a
    persistent machine that runs, and boots none; `by_force`, also one that has a supervisor.
    """
    machine_dir = directory_of(name)
    clear_dead()
    lock = claim(machine_dir)
    try:
        order = {
            "name": name,
            "options": dict(options),
            "directory": str(Path.cwd()),
            "takes_over": takes_over,
            "by_force": by_force,
        }
        machine_dir.order.write_text(json.dumps(order), encoding="utf-8")
        supervisor = process.start_detached(
            [sys.executable, "-m", "kboot.supervisor.supervisor", str(machine_dir.path), str(lock)],
            log=machine_dir.log,
            env={key: value for key, value in os.environ.items() if key != RUN_VARIABLE},
            pass_fds=(lock,),
        )
    finally:
        # Its supervisor holds the lock now; if there is none, the directory is free.
        os.close(lock)
    _wait_until_it_listens(machine_dir, supervisor)
    return machine_dir


def _wait_until_it_listens(machine_dir: MachineDirectory, supervisor: process.Process) -> None:
    for _ in Deadline(_START_LIMIT_S).poll(0.02):
        try:
            rpc.connect(machine_dir.path, limit_s=_START_LIMIT_S).socket.close()
        except OSError:
            if supervisor.exit_status() is not None:
                failure = machine_dir.read_failure()
                words = supervisor.last_words()
                clear_dead()
                raise rpc.to_error(failure) if failure else InfraError(words) from None
        else:
            return
    supervisor.kill()
    raise InfraError(f"the supervisor of {machine_dir.name} does not start; see {machine_dir.log}")
