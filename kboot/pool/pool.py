"""A pool of machines: who has which, and which are to be replaced.

One thread keeps it as it should be: it starts what is missing, and takes out what is broken or too
old. Another one asks the machines that wait whether they live, as one that does not must hold up
nothing. A machine is handed out once; when it comes back, another one takes its place.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from enum import Enum

from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError, InfraError, KbootError
from kboot.guest import CommandResult
from kboot.log import logger
from kboot.machine import Machine

#: Starts a machine that is pristine and ready, and on for the length of the ``with``.
Start = Callable[[], AbstractContextManager[Machine]]

#: How often it is looked whether all is as it should be, when nothing happens.
_TICK_S = 0.2
#: How often a machine that waits is asked whether it lives, and how long it may take to answer.
_HEARTBEAT_S = 10.0
_HEARTBEAT_LIMIT_S = 20.0
#: After a machine could not be started, until it is tried again; doubled each time up to the last.
_RETRY_S = (1.0, 60.0)


class State(Enum):
    """Where in its life a machine of the pool is."""

    READY = "ready"
    LEASED = "leased"
    ENDING = "ending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A machine that somebody has."""

    identifier: str
    #: Who: as they called themselves.
    holder: str
    #: Monotonic seconds at which it is taken back.
    expires: float
    machine: Machine


@dataclass(slots=True, kw_only=True, eq=False)
class PoolMachine:
    """One machine of the pool."""

    machine: Machine
    power: ExitStack
    #: Monotonic seconds.
    started: float
    #: Seconds that it took to start it.
    start_s: float
    #: When it answered last, and whether it is being asked.
    alive: float
    asked: bool = False
    state: State = State.READY
    lease: Lease | None = None
    #: What is wrong with it; empty if nothing is.
    fault: str = ""
    #: For whoever runs something in it.
    busy: threading.Lock = field(default_factory=threading.Lock)


class Pool:
    """`replicas` machines, those that are leased among them. Made by `open_pool`."""

    def __init__(
        self,
        start: Start,
        *,
        replicas: int,
        max_age_s: float | None = None,
        heartbeat_s: float = _HEARTBEAT_S,
        on_ending: Callable[[Machine, str], None] = lambda _machine, _why: None,
        on_ended: Callable[[Machine, str], None] = lambda _machine, _why: None,
    ) -> None:
        """`on_ending` is told of each machine before it is powered off, `on_ended` after that.

        And what was wrong with it: maybe "".
        """
        self._start = start
        self._replicas = replicas
        self._max_age_s = max_age_s
        self._heartbeat_s = heartbeat_s
        self._on_ending = on_ending
        self._on_ended = on_ended
        self._machines: list[PoolMachine] = []
        self._changed = threading.Condition()
        self._draining = False
        self._closing = False
        #: Why the last start failed; empty if it did not.
        self._trouble = ""
        self._retry_s = _RETRY_S[0]
        self._retry_at = 0.0
        self._ending = ThreadPoolExecutor(max_workers=2, thread_name_prefix="kboot-pool-end")
        self._keeper = threading.Thread(target=self._keep, name="kboot-pool", daemon=True)
        self._asker = threading.Thread(target=self._ask, name="kboot-pool-alive", daemon=True)

    # ------------------------------------------------------------------------------ for its users

    @property
    def trouble(self) -> str:
        """Why no machine could be started the last time; empty if one could."""
        return self._trouble

    @property
    def replicas(self) -> int:
        """How many machines there are to be."""
        return self._replicas

    @property
    def machines(self) -> tuple[PoolMachine, ...]:
        """Those there are at the moment."""
        with self._changed:
            return tuple(self._machines)

    def acquire(self, holder: str, *, ttl: float, timeout: float) -> Lease:
        """Have a pristine machine for `ttl` seconds; it is waited for `timeout` seconds.

        `InfraError` if there is none by then, or if the pool hands out no more.
        """
        if ttl <= 0:
            raise ConfigError(f"a lease of {ttl:g} s: it has to be longer than 0 s")
        deadline = Deadline(timeout)
        with self._changed:
            while True:
                if self._draining or self._closing:
                    raise InfraError("the pool is being drained: no machine is handed out")
                for each in self._machines:
                    if each.state is State.READY and not each.asked and not self._fault(each):
                        each.lease = Lease(
                            identifier=secrets.token_hex(8),
                            holder=holder,
                            expires=time.monotonic() + ttl,
                            machine=each.machine,
                        )
                        each.state = State.LEASED
                        logger.info("%s is leased to %s", each.machine.name, holder)
                        return each.lease
                if deadline.expired:
                    why = f": {self._trouble}" if self._trouble else ": all are in use"
                    raise InfraError(f"no machine of the pool is free after {timeout:g} s{why}")
                self._changed.notify_all()
                self._changed.wait(min(_TICK_S, deadline.remaining))

    def release(self, identifier: str) -> str:
        """Give a machine back; nobody else gets it. What is wrong with it: empty if nothing is.

        A lease that has ended is no mistake.
        """
        with self._changed:
            for each in self._machines:
                if each.lease and each.lease.identifier == identifier:
                    self._end(each)
                    return each.fault
        return ""

    def has(self, identifier: str) -> bool:
        """Whether this lease has not ended."""
        return any(
            each.lease and each.lease.identifier == identifier and each.state is State.LEASED
            for each in self.machines
        )

    def run(self, identifier: str, command: str, *, timeout: float) -> CommandResult:
        """Run a command in the guest of a leased machine. `ConfigError` if the lease has ended."""
        with self._changed:
            found = [
                each
                for each in self._machines
                if each.lease and each.lease.identifier == identifier
            ]
            if not found or found[0].state is not State.LEASED:
                raise ConfigError("this lease has ended: it was released, or its time is over")
        with found[0].busy:
            return found[0].machine.guest.run(command, timeout=timeout)

    def scale(self, replicas: int) -> None:
        """Have so many machines from now on. Leased ones that are too many are not replaced."""
        if replicas < 0:
            raise ConfigError(f"{replicas} machines: it has to be 0 or more")
        with self._changed:
            self._replicas = replicas
            self._draining = False
            self._changed.notify_all()

    def drain(self) -> None:
        """Hand out no more machines, and end those that nobody has."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    # ----------------------------------------------------------------------------------- its keeper

    def open(self) -> None:
        """Begin to start machines."""
        self._keeper.start()
        self._asker.start()

    def close(self) -> None:
        """End all machines, whoever has them, and wait for that."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._keeper.join()
        with self._changed:
            for each in self._machines:
                self._end(each)
        self._ending.shutdown()
        # What it asks is off by now.
        self._asker.join()

    def _keep(self) -> None:
        while not self._closing:
            try:
                self._look()
                started = self._start_missing()
            except Exception as error:
                logger.exception("the pool's keeper goes on")
                self._trouble, started = str(error), False
            with self._changed:
                if not started and not self._closing:
                    self._changed.wait(_TICK_S)

    def _look(self) -> None:
        """Take out what is broken, too old, too many, or leased for too long."""
        now = time.monotonic()
        with self._changed:
            for each in self._machines:
                expired = each.lease is not None and each.lease.expires <= now
                if expired and each.state is State.LEASED:
                    logger.warning("the lease of %s is over", each.machine.name)
                    self._end(each)
                elif each.state is State.READY and self._fault(each):
                    logger.warning("%s is taken out: %s", each.machine.name, each.fault)
                    self._end(each)
                elif each.state is State.READY and self._is_too_old(each, now):
                    self._end(each)
            ready = [each for each in self._machines if each.state is State.READY]
            excess = len(self._there()) - (0 if self._draining else self._replicas)
            for each in ready[: max(0, excess)]:
                self._end(each)

    def _start_missing(self) -> bool:
        """Start a machine if one is missing; whether it was."""
        with self._changed:
            enough = len(self._there()) >= self._replicas or self._draining or self._closing
            if enough or time.monotonic() < self._retry_at:
                return False
        begin = time.monotonic()
        with ExitStack() as power:
            try:
                machine = power.enter_context(self._start())
            except (GuestError, InfraError, OSError) as error:
                self._trouble = str(error)
                self._retry_at = time.monotonic() + self._retry_s
                logger.warning("no machine for the pool: %s", error)
                self._retry_s = min(2 * self._retry_s, _RETRY_S[1])
                return False
            self._trouble, self._retry_s = "", _RETRY_S[0]
            now = time.monotonic()
            with self._changed:
                self._machines.append(
                    PoolMachine(
                        machine=machine,
                        power=power.pop_all(),
                        started=now,
                        start_s=now - begin,
                        alive=now,
                    )
                )
                self._changed.notify_all()
        return True

    def _there(self) -> list[PoolMachine]:
        return [each for each in self._machines if each.state is not State.ENDING]

    def _is_too_old(self, each: PoolMachine, now: float) -> bool:
        return self._max_age_s is not None and now - each.started > self._max_age_s

    def _ask(self) -> None:
        """Ask each machine that waits, from time to time, whether it lives."""
        while True:
            with self._changed:
                if self._closing:
                    return
                due = next(filter(self._is_due, self._machines), None)
                if due is None:
                    self._changed.wait(_TICK_S)
                    continue
                due.asked = True
            fault = ""
            try:
                due.machine.guest.unrecorded().succeed(
                    "true", deadline=Deadline(_HEARTBEAT_LIMIT_S)
                )
            except KbootError as error:
                fault = f"no heartbeat: {error}"
            with self._changed:
                due.asked, due.alive = False, time.monotonic()
                # One that is being powered off meanwhile cannot answer.
                if fault and due.state is State.READY:
                    due.fault = due.fault or fault
                self._changed.notify_all()

    def _is_due(self, each: PoolMachine) -> bool:
        silent_s = time.monotonic() - each.alive
        return each.state is State.READY and silent_s >= self._heartbeat_s

    @staticmethod
    def _fault(each: PoolMachine) -> str:
        """What is wrong with it, as far as that is to be seen from outside."""
        if not each.fault:
            try:
                each.machine.check()
                if not each.machine.pristine:
                    each.fault = "its kernel has reported something"
            except KbootError as error:
                each.fault = str(error)
        return each.fault

    def _end(self, each: PoolMachine) -> None:
        """Power it off; nobody waits for that. `_changed` is held."""
        if each.state is State.ENDING:
            return
        if each.state is State.LEASED:
            self._fault(each)
        each.state = State.ENDING
        self._ending.submit(self._power_off, each)
        self._changed.notify_all()

    def _power_off(self, each: PoolMachine) -> None:
        try:
            self._on_ending(each.machine, each.fault)
            each.power.close()
        except (KbootError, OSError) as error:
            logger.warning("%s: %s", each.machine.name, error)
        finally:
            with self._changed:
                self._machines.remove(each)
                self._changed.notify_all()
            self._on_ended(each.machine, each.fault)


@contextlib.contextmanager
def open_pool(
    start: Start,
    *,
    replicas: int,
    max_age_s: float | None = None,
    heartbeat_s: float = _HEARTBEAT_S,
    on_ending: Callable[[Machine, str], None] = lambda _machine, _why: None,
    on_ended: Callable[[Machine, str], None] = lambda _machine, _why: None,
) -> Iterator[Pool]:
    """A pool for the length of the ``with``; then all its machines are off. See `Pool`."""
    pool = Pool(
        start,
        replicas=replicas,
        max_age_s=max_age_s,
        heartbeat_s=heartbeat_s,
        on_ending=on_ending,
        on_ended=on_ended,
    )
    pool.open()
    try:
        yield pool
    finally:
        pool.close()
