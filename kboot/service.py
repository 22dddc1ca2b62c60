"""Processes of ours that stay and answer requests, each found again by its kind and its name.

Each has a directory below the user's state directory, on which it holds a lock for as long as it
lives. What a dead one has left is removed by whoever looks next.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kboot import process, rpc
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError, KbootError
from kboot.locks import is_locked, lock_directory, try_lock
from kboot.log import logger
from kboot.state import RUN_VARIABLE, state_directory, sweep

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,18}[a-z0-9])?")

#: It listens from its first moments on, a second after its start at most.
_START_LIMIT_S = 20.0
#: Until it has ended everything that it runs.
_STOP_LIMIT_S = 60.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Where the files of one such process are, whether it runs or not."""

    #: ``fleet``, ``pool``.
    kind: str
    name: str

    @property
    def path(self) -> Path:
        """Its directory."""
        return _directory(self.kind) / self.name

    @property
    def log(self) -> Path:
        """What it has logged."""
        return self.path / "log"

    @property
    def failure(self) -> Path:
        """Why it ended, as JSON; not there as long as it is fine."""
        return self.path / "failure.json"

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        # Looking takes the lock for a moment, which who claims the name must not see.
        with contextlib.suppress(FileNotFoundError), lock_directory(self.path.parent, shared=True):
            return is_locked(self.path)
        return False


def find(kind: str, name: str) -> Service:
    """The service of this name, whether it runs or not. `ConfigError` for what cannot be a name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a {kind}'s name: at most 20 small letters, digits, and hyphens "
            "between them"
        )
    return Service(kind=kind, name=name)


def running(kind: str) -> list[Service]:
    """Those that run. What dead ones have left is removed, their processes too."""
    found = [
        Service(kind=kind, name=path.name)
        for path in sorted(_directory(kind).iterdir())
        if _NAME.fullmatch(path.name)
    ]
    dead = [service for service in found if _remove_if_dead(service)]
    if dead:
        sweep()
    return [service for service in found if service not in dead]


def launch(service: Service, module: str, order: Mapping[str, Any]) -> None:
    """Start it: `module` calls `serve`, which is given the `order`. Returns when it listens.

    `ConfigError` if there is one of this name already.
    """
    running(service.kind)
    lock = _claim(service)
    try:
        (service.path / "order.json").write_text(json.dumps(order), encoding="utf-8")
        started = process.start_detached(
            [sys.executable, "-m", module, service.kind, service.name, str(lock)],
            log=service.log,
            env={key: value for key, value in os.environ.items() if key != RUN_VARIABLE},
            pass_fds=(lock,),
        )
    finally:
        # It holds the lock now; if it does not run, the directory is free.
        os.close(lock)
    for _ in Deadline(_START_LIMIT_S).poll(_POLL_S):
        try:
            rpc.connect(service.path, limit_s=_START_LIMIT_S).socket.close()
        except OSError:
            if started.exit_status() is not None:
                words, failure = started.last_words(), _read_failure(service)
                running(service.kind)
                raise failure or InfraError(words) from None
        else:
            return
    started.kill()
    raise InfraError(f"the {service.kind} {service.name} does not start; see {service.log}")


def connect(service: Service, *, limit_s: float | None = None) -> rpc.Client:
    """A connection to it. `ConfigError` if it does not run, and why it has ended if it could tell.

    Each answer may take `limit_s` seconds.
    """
    try:
        wire = rpc.connect(service.path)
    except OSError:
        raise _gone(service) from None
    return rpc.Client(wire, lambda: _gone(service), answer_limit_s=limit_s)


def ask(
    service: Service, verb: str, *, on_event: rpc.OnEvent = lambda _event: None, **arguments: Any
) -> Any:
    """What it answers; raises as `connect` and `rpc.Client.ask`."""
    with contextlib.closing(connect(service)) as client:
        return client.ask(verb, on_event=on_event, **arguments)


def stop(service: Service) -> Any:
    """Have it end all that it runs; what it says to that. One that does not end is killed."""
    said = ask(service, "down")
    for _ in Deadline(_STOP_LIMIT_S).poll(_POLL_S):
        if not service.is_alive:
            break
    else:
        raise InfraError(f"the {service.kind} {service.name} does not end; see {service.log}")
    _remove_if_dead(service)
    return said


class Server:
    """For the process itself, while it runs."""

    def __init__(self, service: Service, order: Mapping[str, Any]) -> None:
        self.service = service
        self.order = order
        #: Set when it is to end.
        self.stopping = threading.Event()


def serve(arguments: list[str], run: Callable[[Server], None]) -> int:
    """The main program of such a process: `run` it until it returns; its exit status.

    SIGTERM and its like set `Server.stopping`. What `run` raises goes to a file, where others look.
    """
    kind, name, lock = arguments[0], arguments[1], int(arguments[2])
    # Ours as long as we live; what we start must not keep it.
    os.set_inheritable(lock, False)
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(message)s")
    service = Service(kind=kind, name=name)
    order = json.loads((service.path / "order.json").read_text(encoding="utf-8"))
    server = Server(service, order)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        server.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    try:
        # A directory that somebody stands in cannot be unmounted.
        os.chdir("/")
        run(server)
    except BaseException as error:
        logger.exception("the %s ends", kind)
        service.failure.write_text(json.dumps(rpc.describe(error)), encoding="utf-8")
        return 1
    shutil.rmtree(service.path, ignore_errors=True)
    return 0


def _claim(service: Service) -> int:
    with lock_directory(service.path.parent):
        try:
            service.path.mkdir(mode=0o700)
        except FileExistsError:
            raise ConfigError(
                f"there is a {service.kind} called {service.name} already: "
                f"kboot {service.kind} down {service.name}"
            ) from None
        except OSError as error:
            raise InfraError(f"cannot make {service.path}: {error.strerror}") from error
        lock = try_lock(service.path)
    if lock is None:
        raise InfraError(f"{service.path} was taken by another program as soon as it was made")
    return lock


def _remove_if_dead(service: Service) -> bool:
    with lock_directory(service.path.parent):
        try:
            lock = try_lock(service.path)
        except FileNotFoundError:
            return True
        if lock is None:
            return False
        shutil.rmtree(service.path, ignore_errors=True)
        os.close(lock)
        return True


def _gone(service: Service) -> KbootError:
    """What to tell about one that does not answer."""
    if failure := _read_failure(service):
        return failure
    if service.is_alive:
        return InfraError(f"the {service.kind} {service.name} hung up; see {service.log}")
    return ConfigError(
        f"there is no {service.kind} called {service.name}; see kboot {service.kind} list"
    )


def _read_failure(service: Service) -> KbootError | None:
    try:
        return rpc.to_error(json.loads(service.failure.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _directory(kind: str) -> Path:
    directory = state_directory() / f"{kind}s"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory
