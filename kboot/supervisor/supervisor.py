"""The process behind a named machine: ``python -m kboot.supervisor.supervisor DIRECTORY LOCK``.

Its main thread works at the desk, one job after another, and looks after the machine in between.
Each client has a thread of its own, which hands jobs to the desk and waits for them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from kboot import rpc
from kboot.backend import Backend, PersistentBackend
from kboot.config import Config, load
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.log import logger
from kboot.machine import Machine, Milestone, open_backend, power_on, reopen_backend, take_over
from kboot.rpc import Request
from kboot.state import evidence_directory
from kboot.supervisor import registry, verbs
from kboot.supervisor.events import Events
from kboot.supervisor.handover import Handover, HandoverWriter, read_note
from kboot.supervisor.pushes import Pushes
from kboot.supervisor.registry import MachineDirectory
from kboot.supervisor.session import MachineSession
from kboot.supervisor.shared_console import Keyboard, SharedConsole

#: How often the desk looks after the machine when nobody asks for anything.
_TICK_S = 0.2

_SERVER_START_LIMIT_S = 120.0
#: How soon a client that waits for the machine, and has disconnected, is noticed.
_CLIENT_LOOK_S = 0.5

Job = tuple[Callable[[MachineSession], Any], "Future[Any]"]


class Supervisor:
    """A machine's desk, the clients that wait at it, and the way to close it."""

    def __init__(
        self,
        place: MachineDirectory,
        config: Config,
        *,
        meets: bool = False,
        by_force: bool = False,
    ) -> None:
        """It `meets` its machine where that is there already, or else starts it.

        One that somebody else looks after is taken only `by_force`.
        """
        self.place = place
        self.config = config
        self.started = time.time()
        self.events = Events()
        self.keyboard = Keyboard()
        self.evidence = config.evidence or evidence_directory(place.name)
        # All there when the first client is answered.
        self.session: MachineSession
        self.shared_console: SharedConsole
        self.pushes: Pushes
        self.meets = meets
        self._by_force = by_force
        self._boot: Machine | None = None
        self._staying: PersistentBackend | None = None
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._stopping = threading.Event()
        self._ready_for_clients = threading.Event()

    # --------------------------------------------------------------------------- for the clients

    @property
    def stopping(self) -> bool:
        """Whether the machine is being switched off."""
        return self._stopping.is_set()

    @property
    def identifier(self) -> str:
        """Of a machine that stays, see `PersistentMachine`; else empty."""
        return self._staying.identifier if self._staying else ""

    def submit(
        self, work: Callable[[MachineSession], Any], *, preempt: bool = False
    ) -> Future[Any]:
        """Have the desk do something; with `preempt`, a boot is not followed to its end first."""
        future: Future[Any] = Future()
        if self.stopping:
            future.set_exception(InfraError(f"{self.place.name} is being switched off"))
            return future
        if preempt and self._boot:
            # Before the job is there to be begun: it must not hit that one.
            self._boot.follower.cancel()
        self._jobs.put((work, future))
        return future

    def stop(self) -> None:
        """Switch the machine off and end."""
        self._stopping.set()
        if self._boot:
            self._boot.follower.cancel()
        self._jobs.put(None)

    def leave(self) -> None:
        """End; the machine stays where it can, and is switched off where it cannot."""
        if self._staying:
            self._staying.leave()
        self.stop()

    # ---------------------------------------------------------------------------------- its life

    def answer(self, request: Request) -> Any:
        """Do what a client asks for, on its thread, as soon as there is a machine."""
        while not self._ready_for_clients.wait(_CLIENT_LOOK_S):
            request.check_client()
        return verbs.answer(self, request)

    def run(self) -> None:
        """Boot the machine, or meet it, and look after it until `stop`."""
        if self.meets:
            with reopen_backend(self.config, self.place.name, by_force=self._by_force) as backend:
                self._staying = backend
                self._meet(backend)
        else:
            with open_backend(self.config, machine=self.place.name) as backend:
                self._staying = backend if isinstance(backend, PersistentBackend) else None
                self._boot_first(backend)

    def _boot_first(self, backend: Backend) -> None:
        with backend.serve(Deadline(_SERVER_START_LIMIT_S)) as server:
            self.pushes = Pushes(server, self.config, self.place.name)
            handover = HandoverWriter(backend, self.pushes, Handover(config=self.config))
            push = self.pushes.accept(self.pushes.read(self.config))
            # Whoever comes after us knows the machine from its first moment on.
            nonce = secrets.token_hex(8)
            handover.will_boot(nonce, push)
            with power_on(
                backend,
                server,
                push.load.kernel,
                push.load.settings,
                evidence_directory=self.evidence,
                on_phase=self._see_milestone,
                nonce=nonce,
            ) as machine:
                self._look_after(machine, handover, lambda session: session.first_boot())

    def _meet(self, backend: PersistentBackend) -> None:
        note = read_note(backend.note)
        self.started = note.started
        # What it is was decided when it was started; where it is, we know better.
        self.config = replace(
            note.config, evidence=self.config.evidence, context=self.config.context
        )
        with backend.serve(Deadline(_SERVER_START_LIMIT_S)) as server:
            self.pushes = Pushes(server, self.config, self.place.name)
            self.pushes.restore(note.pushes, note.current)
            handover = HandoverWriter(backend, self.pushes, note)
            with take_over(
                backend,
                server,
                note.loads,
                evidence_directory=self.evidence,
                on_phase=self._see_milestone,
            ) as met:
                self._look_after(met.machine, handover, lambda session: session.meet(met))

    def _look_after(
        self,
        machine: Machine,
        handover: HandoverWriter,
        begin: Callable[[MachineSession], None],
    ) -> None:
        self._boot = machine
        self.session = MachineSession(machine, self.pushes, self.events, self.keyboard, handover)
        self.shared_console = SharedConsole(
            machine.console, self.evidence / "serial.log", self.keyboard
        )
        if self._staying:
            address = self._staying.address
            registry.Location(name=self.place.name, options=address).write()
        with self._open_for_clients():
            begin(self.session)
            self._work()

    def _see_milestone(self, milestone: Milestone, seconds: float) -> None:
        self.session.see_milestone(milestone, seconds)

    def _work(self) -> None:
        while not self.stopping:
            if self._staying:
                self._staying.check_holder()
            try:
                job = self._jobs.get(timeout=_TICK_S)
            except queue.Empty:
                self.session.attend()
                continue
            if job is not None:
                self._do(*job)

    def _do(self, work: Callable[[MachineSession], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work(self.session)
        except OSError as error:
            # Not of the client's connection, which is what an OSError is to who serves it.
            logger.debug("a job failed", exc_info=True)
            future.set_exception(InfraError(f"the supervisor of {self.place.name}: {error}"))
        except Exception as error:
            logger.debug("a job failed", exc_info=True)
            future.set_exception(error)
        else:
            future.set_result(result)

    @contextlib.contextmanager
    def _open_for_clients(self) -> Iterator[None]:
        """Answer clients from now on; after the ``with``, they are told that the machine is off."""
        self._ready_for_clients.set()
        try:
            yield
        finally:
            self._stopping.set()
            while not self._jobs.empty():
                job = self._jobs.get_nowait()
                if job is not None:
                    job[1].set_exception(InfraError(f"{self.place.name} was switched off"))


def main(arguments: list[str]) -> int:
    """Run a supervisor; what ends it goes to a file, where clients look for it."""
    directory, lock = Path(arguments[0]), int(arguments[1])
    # Ours as long as we live; what we start must not keep it.
    os.set_inheritable(lock, False)
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(message)s")
    place = MachineDirectory(name=directory.name, directory=directory)
    try:
        _supervise(place, json.loads(place.order.read_text(encoding="utf-8")))
    except BaseException as error:
        logger.exception("the supervisor ends")
        place.failure.write_text(json.dumps(rpc.describe(error)), encoding="utf-8")
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    return 0


def _supervise(place: MachineDirectory, order: dict[str, Any]) -> None:
    config = load(order["options"], os.environ, Path(order["directory"]))
    if config.kernel is None and not order["meets"]:
        raise ConfigError("no kernel was named; say which: kboot up --kernel=FILE")
    # A directory that somebody stands in cannot be unmounted.
    os.chdir("/")
    supervisor = Supervisor(place, config, meets=order["meets"], by_force=order["by_force"])

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        # A handler runs on the desk's thread, between two of its steps: it must not wait there.
        threading.Thread(target=supervisor.leave, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    try:
        with rpc.serving(place.directory, supervisor.answer):
            supervisor.run()
    finally:
        if config.evidence is None:
            # It stays, unless there was no machine that could have left any.
            with contextlib.suppress(OSError):
                supervisor.evidence.rmdir()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
