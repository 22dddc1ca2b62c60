"""Background processes of kboot that answer requests, each found by its kind and its name.

Each has a directory below the user's state directory, on which it holds a lock for as long as it
lives. What a dead one has left is removed by the next command that looks for it.
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

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")

_START_LIMIT_S = 30.0
#: It listens from its first moments on, a second after its start at most.
_CONNECT_LIMIT_S = 20.0
#: Until one that was told to end has ended all that it runs, and written its evidence.
_STOP_LIMIT_S = 60.0
#: The same for one that has hung up.
_END_LIMIT_S = 20.0
_POLL_S = 0.02

#: How often a process looks whether its directory is still there.
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What such processes control: machines, fleets or pools."""

    #: ``fleet``.
    name: str
    #: What the commands about one begin with: ``kboot fleet``.
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Where the files of one such process are, whether it runs or not."""

    kind: Kind
    name: str
    #: Its directory.
    path: Path

    @property
    def title(self) -> str:
        """What it is called in messages: ``fleet lab``."""
        return f"{self.kind.name} {self.name}"

    @property
    def order(self) -> Path:
        """What it was started with, as JSON."""
        return self.path / "order.json"

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

    def read_failure(self) -> dict[str, Any] | None:
        """Why it ended, if it could tell; see `kboot.rpc.describe`."""
        try:
            failure: dict[str, Any] = json.loads(self.failure.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return failure


def find(kind: Kind, name: str) -> Service:
    """The service of this name, whether there is one or not. `ConfigError` for what is no name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a {kind.name}'s name: at most 40 small letters, digits, and "
            "hyphens between them"
        )
    return Service(kind=kind, name=name, path=_directory(kind) / name)


def known(kind: Kind) -> list[Service]:
    """All there are, those whose process has died among them."""
    return [
        Service(kind=kind, name=path.name, path=path)
        for path in sorted(_directory(kind).iterdir())
        if _NAME.fullmatch(path.name)
    ]


def clear_dead(kind: Kind) -> None:
    """Remove what dead ones have left, their processes too."""
    if [each for each in known(kind) if remove_if_dead(each)]:
        sweep()


def running(kind: Kind) -> list[Service]:
    """Those that run. What dead ones have left is removed."""
    clear_dead(kind)
    return known(kind)


def claim(service: Service) -> int:
    """Make its directory, afresh, and lock it; the descriptor that holds the lock.

    What a dead one has left is removed. `ConfigError` if one of this name runs.
    """
    with lock_directory(service.path.parent):
        _remove_if_dead(service.path)
        try:
            service.path.mkdir(mode=0o700)
        except FileExistsError as error:
            raise ConfigError(
                f"there is a {service.kind.name} called {service.name} already; "
                f"to stop it: {service.kind.command} down {service.name}"
            ) from error
        except OSError as error:
            raise InfraError(f"cannot make {service.path}: {error.strerror}") from error
        lock = try_lock(service.path)
    if lock is None:
        raise InfraError(f"{service.path} was taken by another program as soon as it was made")
    return lock


def remove_if_dead(service: Service) -> bool:
    """Remove what a dead one has left; whether there was something."""
    with lock_directory(service.path.parent):
        return _remove_if_dead(service.path)


def launch(service: Service, module: str, order: Mapping[str, Any]) -> None:
    """Start it: `module` calls `serve`, which is given the `order`. Returns when it listens.

    `ConfigError` if there is one of this name already.
    """
    clear_dead(service.kind)
    lock = claim(service)
    try:
        service.order.write_text(json.dumps(order), encoding="utf-8")
        started = process.start_detached(
            [sys.executable, "-m", module, str(service.path), str(lock)],
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
                failure, words = service.read_failure(), started.last_words()
                clear_dead(service.kind)
                raise rpc.to_error(failure) if failure else InfraError(words) from None
        else:
            return
    started.kill()
    raise InfraError(f"the {service.title} does not start; see {service.log}")


def connect(service: Service) -> rpc.Client:
    """A client of it; it may just be starting.

    `ConfigError` if there is none, and `InfraError` if it has ended, with the reason if it could
    tell.
    """
    deadline = Deadline(_CONNECT_LIMIT_S)
    for _ in deadline.poll(_POLL_S):
        if not service.is_alive:
            raise _absent(service)
        with contextlib.suppress(FileNotFoundError, ConnectionError):
            wire = rpc.connect(service.path, limit_s=deadline.remaining)
            return rpc.Client(wire, lambda: _ended(service))
    raise InfraError(f"the {service.title} does not answer; see {service.log}")


def ask(
    service: Service, verb: str, *, on_event: rpc.OnEvent = lambda _event: None, **arguments: Any
) -> Any:
    """Have it do something, and return what it answers.

    `on_event` is called with what it tells meanwhile. Raises what went wrong there, as one of the
    three families of errors, and what `connect` raises.
    """
    with contextlib.closing(connect(service)) as client:
        return client.ask(verb, on_event=on_event, **arguments)


def stop(service: Service) -> Any:
    """Have it end with all that it runs; what it says to that. One that does not end is killed."""
    with contextlib.closing(connect(service)) as client:
        pid = client.server_pid
        said = client.ask("stop")
    if not _ends(service, _STOP_LIMIT_S):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _ends(service, _END_LIMIT_S)
    clear_dead(service.kind)
    return said


# ---------------------------------------------------------------------------- the process itself


class Server:
    """For the process itself, while it runs."""

    def __init__(self, service: Service, order: Mapping[str, Any], lock: int) -> None:
        self.service = service
        self.order = order
        #: Set when it is to end.
        self.stopping = threading.Event()
        #: Called then, on a thread of its own.
        self.on_stop: Callable[[], None] = lambda: None
        self._held = os.fstat(lock)

    @property
    def has_directory(self) -> bool:
        """Whether the directory is still there, and is ours."""
        try:
            there = self.service.path.stat()
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (self._held.st_dev, self._held.st_ino)

    def end(self) -> None:
        """Have it end."""
        if not self.stopping.is_set():
            self.stopping.set()
            # A signal's handler runs between two steps of the main thread: it must not wait there.
            threading.Thread(target=self.on_stop, daemon=True).start()

    def watch_directory(self) -> None:
        """End as soon as nobody can find this process any more."""
        while not self.stopping.wait(_LOOK_S):
            if not self.has_directory:
                logger.error("%s is gone: nobody can reach this process", self.service.path)
                self.end()


def serve(kind: Kind, arguments: list[str], run: Callable[[Server], None]) -> int:
    """The main program of such a process: `run` it until it returns; its exit status.

    SIGTERM and its like have it end, and so does who removes its directory. What `run` raises goes
    to a file, where others look.
    """
    path, lock = Path(arguments[0]), int(arguments[1])
    # Ours as long as we live; what we start must not keep it.
    os.set_inheritable(lock, False)
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(message)s")
    service = Service(kind=kind, name=path.name, path=path)
    server = Server(service, json.loads(service.order.read_text(encoding="utf-8")), lock)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        server.end()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    threading.Thread(target=server.watch_directory, name="kboot-directory", daemon=True).start()
    try:
        # A directory that somebody stands in cannot be unmounted.
        os.chdir("/")
        run(server)
    except BaseException as error:
        logger.exception("the %s ends", service.title)
        if server.has_directory:
            service.failure.write_text(json.dumps(rpc.describe(error)), encoding="utf-8")
        return 1
    if server.has_directory:
        shutil.rmtree(path, ignore_errors=True)
    return 0


def _remove_if_dead(path: Path) -> bool:
    try:
        lock = try_lock(path)
    except FileNotFoundError:
        return False
    if lock is None:
        return False
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
    return True


def _absent(service: Service) -> ConfigError | InfraError:
    """Why it does not run."""
    failure = service.read_failure()
    start = f"{service.kind.command} up"
    if remove_if_dead(service):
        sweep()
        why = f": {failure['message']}" if failure else ", and was killed"
        return InfraError(f"the {service.title} has ended{why}; start it again: {start}")
    there = ", ".join(each.name for each in known(service.kind))
    hint = f"there are: {there}; " if there else ""
    return ConfigError(
        f"there is no {service.kind.name} called {service.name}; {hint}"
        f"to start it: {start} {service.name}"
    )


def _ends(service: Service, limit_s: float) -> bool:
    """Whether it ends within so many seconds."""
    return any(not service.is_alive for _ in Deadline(limit_s).poll(_POLL_S))


def _ended(service: Service) -> KbootError:
    """Why it has hung up."""
    if _ends(service, _END_LIMIT_S):
        failure = service.read_failure()
        return rpc.to_error(failure) if failure else _absent(service)
    return InfraError(f"the {service.title} has hung up; see {service.log}")


def _directory(kind: Kind) -> Path:
    directory = state_directory() / f"{kind.name}s"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory
