"""The process behind a named machine, which `kboot.service` starts.

Its main thread runs jobs one after another, and checks the machine in between. Each client has a
thread of its own, which submits jobs and waits for them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from kboot import rpc
from kboot.backend import Backend, PersistentBackend
from kboot.config import Config, load
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.log import logger
from kboot.machine import Machine, Milestone, open_backend, power_on, reopen_backend, take_over
from kboot.rpc import Request
from kboot.service import Server, Service, serve
from kboot.state import evidence_directory
from kboot.supervisor import registry, verbs
from kboot.supervisor.events import Events
from kboot.supervisor.handover import Handover, HandoverWriter, read_note
from kboot.supervisor.pushes import Pushes
from kboot.supervisor.session import MachineSession
from kboot.supervisor.shared_console import Keyboard, SharedConsole

#: How often the machine is checked when there is no job.
_TICK_S = 0.2

_SERVER_START_LIMIT_S = 120.0
#: How soon a client that waits for the machine, and has disconnected, is noticed.
_CLIENT_LOOK_S = 0.5

Job = tuple[Callable[[MachineSession], Any], "Future[Any]"]


class Supervisor:
    """Owns one machine, runs what clients ask for, and stops it."""

    def __init__(
        self,
        place: Service,
        config: Config,
        *,
        takes_over: bool = False,
        by_force: bool = False,
    ) -> None:
        """It `takes_over` a machine that runs, or else starts one.

        One that has a supervisor is taken over only `by_force`.
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
        self.takes_over = takes_over
        self._by_force = by_force
        self._machine: Machine | None = None
        self._persistent: PersistentBackend | None = None
        self._jobs: queue.Queue[Job | None] = queue.Queue()
        self._stopping = threading.Event()
        self._ready_for_clients = threading.Event()

    # --------------------------------------------------------------------------- for the clients

    @property
    def stopping(self) -> bool:
        """Whether the machine is being stopped."""
        return self._stopping.is_set()

    @property
    def identifier(self) -> str:
        """Of a persistent machine, see `PersistentMachine`; else empty."""
        return self._persistent.identifier if self._persistent else ""

    def submit(
        self, work: Callable[[MachineSession], Any], *, preempt: bool = False
    ) -> Future[Any]:
        """Queue a job for the machine's thread; `preempt` cancels the boot that it follows."""
        future: Future[Any] = Future()
        if self.stopping:
            future.set_exception(InfraError(f"{self.place.name} is being stopped"))
            return future
        if preempt and self._machine:
            # Before the job is there to be begun: it must not hit that one.
            self._machine.follower.cancel()
        self._jobs.put((work, future))
        return future

    def stop(self) -> None:
        """Stop the machine and exit."""
        self._stopping.set()
        if self._machine:
            self._machine.follower.cancel()
        self._jobs.put(None)

    def leave(self) -> None:
        """Exit; the machine runs on if it is persistent, and is stopped if not."""
        if self._persistent:
            self._persistent.leave()
        self.stop()

    # ---------------------------------------------------------------------------------- its life

    def answer(self, request: Request) -> Any:
        """Do what a client asks for, on its thread, as soon as there is a machine."""
        while not self._ready_for_clients.wait(_CLIENT_LOOK_S):
            request.check_client()
        return verbs.answer(self, request)

    def run(self) -> None:
        """Boot the machine, or take it over, and run jobs until `stop`."""
        if self.takes_over:
            with reopen_backend(self.config, self.place.name, by_force=self._by_force) as backend:
                self._persistent = backend
                self._take_over(backend)
        else:
            with open_backend(self.config, machine=self.place.name) as backend:
                self._persistent = backend if isinstance(backend, PersistentBackend) else None
                self._start(backend)

    def _start(self, backend: Backend) -> None:
        with backend.serve(Deadline(_SERVER_START_LIMIT_S)) as server:
            self.pushes = Pushes(server, self.config, self.place.name)
            handover = HandoverWriter(backend, self.pushes, Handover(config=self.config))
            push = self.pushes.accept(self.pushes.read(self.config))
            # The next supervisor knows the machine from its first moment on.
            nonce = secrets.token_hex(8)
            handover.begin_boot(nonce, push)
            with power_on(
                backend,
                server,
                push.load.kernel,
                push.load.settings,
                evidence_directory=self.evidence,
                on_phase=self._on_milestone,
                nonce=nonce,
            ) as machine:
                self._run_session(machine, handover, lambda session: session.first_boot())

    def _take_over(self, backend: PersistentBackend) -> None:
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
                on_phase=self._on_milestone,
            ) as found:
                self._run_session(found.machine, handover, lambda session: session.take_over(found))

    def _run_session(
        self,
        machine: Machine,
        handover: HandoverWriter,
        begin: Callable[[MachineSession], None],
    ) -> None:
        self._machine = machine
        self.session = MachineSession(machine, self.pushes, self.events, self.keyboard, handover)
        self.shared_console = SharedConsole(
            machine.console, self.evidence / "serial.log", self.keyboard
        )
        if self._persistent:
            address = self._persistent.address
            registry.Location(name=self.place.name, options=address).write()
        with self._open_for_clients():
            begin(self.session)
            self._run_jobs()

    def _on_milestone(self, milestone: Milestone, seconds: float) -> None:
        self.session.see_milestone(milestone, seconds)

    def _run_jobs(self) -> None:
        while not self.stopping:
            if self._persistent:
                self._persistent.check_holder()
            try:
                job = self._jobs.get(timeout=_TICK_S)
            except queue.Empty:
                self.session.check_machine()
                continue
            if job is not None:
                self._run_job(*job)

    def _run_job(self, work: Callable[[MachineSession], Any], future: Future[Any]) -> None:
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
                    job[1].set_exception(InfraError(f"{self.place.name} was stopped"))


def supervise(server: Server) -> None:
    """Supervise a machine until it is to end."""
    order = server.order
    config = load(order["options"], os.environ, Path(order["directory"]))
    if not config.names_kernel and not order["takes_over"]:
        raise ConfigError("no kernel was named; say which: kboot up --kernel=FILE")
    supervisor = Supervisor(
        server.service, config, takes_over=order["takes_over"], by_force=order["by_force"]
    )
    server.on_stop = supervisor.leave
    try:
        if not server.stopping.is_set():
            with rpc.serving(server.service.path, supervisor.answer):
                supervisor.run()
    finally:
        if config.evidence is None:
            # It is kept, unless there was no machine that could have left any.
            with contextlib.suppress(OSError):
                supervisor.evidence.rmdir()


if __name__ == "__main__":
    sys.exit(serve(registry.KIND, sys.argv[1:], supervise))
