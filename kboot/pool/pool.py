"""A pool of machines: who has which, and which are to be replaced.

One thread keeps it as it should be: it starts what is missing, and takes out what is broken or too
old. Another one asks the machines that wait whether they live, as one that does not must hold up
nothing. A machine is handed out once; when it comes back, another one takes its place.
"""

from __future__ import annotations

import contextlib
import math
import random
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
from kboot.pool.retries import Retries

#: Starts a machine that is pristine and ready, and on for the length of the ``with``.
Start = Callable[[], AbstractContextManager[Machine]]

#: How often it is looked whether all is as it should be, when nothing happens.
_TICK_S = 0.2
#: How often a machine that waits is asked whether it lives, and how long it may take to answer.
_HEARTBEAT_S = 10.0
_HEARTBEAT_LIMIT_S = 20.0
#: So many are waited for at a time where the backend boots them.
_STARTS_AT_ONCE = 16
#: What a machine that waits is asked, unless its user has a better question.
ALIVE = "true"
#: Machines that were started together are not replaced together: each is too old a bit sooner.
_AGES = (0.9, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """What a pool asks of a backend that keeps the machines that wait; see `kboot.pool.replicas`.

    Machines that are leased are not among its replicas then: others are there already.
    """

    #: Takes a machine out before it is handed out; `InfraError` if it cannot be had.
    take: Callable[[Machine, str], None]
    #: Has so many from now on.
    scale: Callable[[int], None]
    #: Gives up the machines that are being started: nobody waits for their boots.
    end: Callable[[], None]


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
    #: Seconds after which it is too old.
    max_age_s: float
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
        check: str = ALIVE,
        on_ending: Callable[[Machine, str], None] = lambda _machine, _why: None,
        on_ended: Callable[[Machine, str], None] = lambda _machine, _why: None,
        supply: Supply | None = None,
    ) -> None:
        """`on_ending` is told of each machine before it is powered off, `on_ended` after that.

        And what was wrong with it: maybe "". `check` is a command that succeeds in the guest of a
        machine that is good: before it is handed out, and as long as it waits. With `supply`, the
        backend keeps those that wait.
        """
        self._check = check
        self._start = start
        self._replicas = replicas
        self._max_age_s = math.inf if max_age_s is None else max_age_s
        self._heartbeat_s = heartbeat_s
        self._on_ending = on_ending
        self._on_ended = on_ended
        self._supply = supply
        self._machines: list[PoolMachine] = []
        self._changed = threading.Condition()
        #: Whether it hands out nothing until it is scaled.
        self.draining = False
        self._closing = False
        #: Why no machine could be started the last time; empty if one could.
        self.trouble = ""
        self._retries = Retries()
        #: Machines that are being started, by threads of their own where the backend boots them.
        self._starting = 0
        self._starters = (
            ThreadPoolExecutor(max_workers=_STARTS_AT_ONCE, thread_name_prefix="kboot-pool-start")
            if supply
            else None
        )
        self._ending = ThreadPoolExecutor(max_workers=2, thread_name_prefix="kboot-pool-end")
        self._keeper = threading.Thread(target=self._keep, name="kboot-pool", daemon=True)
        self._asker = threading.Thread(target=self._ask, name="kboot-pool-alive", daemon=True)

    # ------------------------------------------------------------------------------ for its users

    @property
    def replicas(self) -> int:
        """How many machines there are to be."""
        return self._replicas

    @property
    def machines(self) -> tuple[PoolMachine, ...]:
        """Those there are at the moment."""
        with self._changed:
            return tuple(self._machines)

    def acquire(
        self,
        holder: str,
        *,
        ttl: float,
        timeout: float,
        still_wanted: Callable[[], None] = lambda: None,
    ) -> Lease:
        """Have a pristine machine for `ttl` seconds; it is waited for `timeout` seconds.

        `InfraError` if there is none by then, or if the pool hands out no more. `still_wanted`
        raises if nobody waits any more: no machine is wasted on them.
        """
        if ttl <= 0:
            raise ConfigError(f"a lease of {ttl:g} s: it has to be longer than 0 s")
        deadline = Deadline(timeout)
        with self._changed:
            while True:
                still_wanted()
                if self._closing:
                    raise InfraError("the pool is being stopped")
                if self.draining:
                    raise InfraError("the pool is being drained: it hands out nothing until scaled")
                for each in self._machines:
                    free = each.state is State.READY and not each.asked
                    if free and self._can_be_had(each, holder):
                        each.lease = Lease(
                            identifier=secrets.token_hex(8),
                            holder=holder,
                            expires=time.monotonic() + ttl,
                            machine=each.machine,
                        )
                        each.state = State.LEASED
                        self._retries.prove()
                        logger.info("%s is leased to %s", each.machine.name, holder)
                        return each.lease
                if deadline.expired:
                    why = self.trouble or self._why_none_is_free()
                    raise InfraError(f"no machine of the pool is free after {timeout:g} s: {why}")
                self._changed.notify_all()
                self._changed.wait(min(_TICK_S, deadline.remaining))

    def _why_none_is_free(self) -> str:
        leased = sum(each.state is State.LEASED for each in self._machines)
        if self._replicas == 0:
            return "it was scaled to 0"
        return "all are in use" if leased >= self._replicas else "they are being started"

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
        return self._holding(identifier) is not None

    def run(self, identifier: str, command: str, *, timeout: float) -> CommandResult:
        """Run a command in the guest of a leased machine. `ConfigError` if the lease has ended."""
        found = self._leased(identifier)
        try:
            with found.busy:
                return found.machine.guest.run(command, timeout=timeout)
        except KbootError:
            # What was taken back is powered off at once, and that is no fault of its own.
            self._leased(identifier)
            raise

    def _leased(self, identifier: str) -> PoolMachine:
        if self._closing:
            raise InfraError("the pool was stopped")
        if (found := self._holding(identifier)) is None:
            raise ConfigError("this lease has ended: it was released, or its time is over")
        return found

    def _holding(self, identifier: str) -> PoolMachine | None:
        for each in self.machines:
            if each.state is State.LEASED and each.lease and each.lease.identifier == identifier:
                return each
        return None

    def scale(self, replicas: int) -> None:
        """Have so many machines from now on. Leased ones that are too many are not replaced."""
        if replicas < 0:
            raise ConfigError(f"{replicas} machines: it has to be 0 or more")
        with self._changed:
            self._replicas = replicas
            self.draining = False
            self._changed.notify_all()
        if self._supply:
            self._supply.scale(replicas)

    def drain(self) -> None:
        """Hand out no more machines, and end those that nobody has."""
        with self._changed:
            self.draining = True
            self._changed.notify_all()
        if self._supply:
            self._supply.scale(0)

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
        if self._supply and self._starters:
            self._supply.end()
            self._starters.shutdown(cancel_futures=True)
        with self._changed:
            for each in self._machines:
                self._end(each)
        self._ending.shutdown()
        self._asker.join()  # What it asks is off by now.

    def _keep(self) -> None:
        while not self._closing:
            try:
                self._look()
                started = self._start_missing()
            except Exception as error:
                logger.exception("the pool's keeper goes on")
                self.trouble, started = str(error), False
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
                    is_early = each.alive == each.started
                    if is_early and self._retries.break_early(self._replicas):
                        self.trouble = f"machines break before they are used: {each.fault}"
                    self._end(each)
                elif each.state is State.READY and self._is_too_old(each, now):
                    self._end(each)
            ready = [each for each in self._machines if each.state is State.READY]
            excess = len(self._there()) - (0 if self.draining else self._replicas)
            for each in ready[: max(0, excess)]:
                self._end(each)

    def _start_missing(self) -> bool:
        """Start a machine if one is missing; whether it was."""
        with self._changed:
            coming = len(self._there()) + self._starting
            enough = coming >= self._replicas or self.draining or self._closing
            if enough or not self._retries.is_due:
                return False
            self._starting += 1
        if self._starters is None:
            return self._start_one()
        # They boot anyway: who waits for one after another would not see what breaks meanwhile.
        self._starters.submit(self._start_one)
        return True

    def _start_one(self) -> bool:
        """Start a machine; whether it was."""
        try:
            return self._try_to_start()
        except Exception as error:
            logger.exception("a machine of the pool could not be started")
            self.trouble = str(error)
            return False
        finally:
            with self._changed:
                self._starting -= 1

    def _try_to_start(self) -> bool:
        begin = time.monotonic()
        with ExitStack() as power:
            try:
                machine = power.enter_context(self._start())
                if self._check != ALIVE:
                    _ask(machine, self._check)
            except (GuestError, InfraError, OSError) as error:
                logger.warning("no machine for the pool: %s", error)
                with self._changed:
                    self.trouble = str(error)
                    self._retries.fail()
                return False
            self.trouble = ""
            now = time.monotonic()
            with self._changed:
                self._machines.append(
                    PoolMachine(
                        machine=machine,
                        power=power.pop_all(),
                        started=now,
                        start_s=now - begin,
                        max_age_s=self._max_age_s * random.uniform(*_AGES),  # noqa: S311  no secret
                        alive=now,
                    )
                )
                self._changed.notify_all()
        return True

    def _there(self) -> list[PoolMachine]:
        """Those that count as replicas."""
        gone = {State.ENDING} | ({State.LEASED} if self._supply else set())
        return [each for each in self._machines if each.state not in gone]

    def _can_be_had(self, each: PoolMachine, holder: str) -> bool:
        """Whether it is good, and nobody else's; it is taken out where the backend keeps it."""
        if self._fault(each):
            return False
        if self._supply:
            try:
                self._supply.take(each.machine, f"leased to {holder}")
            except InfraError as error:
                each.fault = str(error)
                return False
        return True

    def _is_too_old(self, each: PoolMachine, now: float) -> bool:
        return now - each.started > each.max_age_s

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
                _ask(due.machine, self._check)
            except KbootError as error:
                what = "no heartbeat" if self._check == ALIVE else "its check"
                fault = f"{what}: {error}"
            with self._changed:
                due.asked = False
                if not fault:
                    due.alive = time.monotonic()
                    self._retries.prove()
                # One that is being powered off meanwhile cannot answer.
                if fault and due.state is State.READY:
                    due.fault = due.fault or fault
                self._changed.notify_all()

    def _is_due(self, each: PoolMachine) -> bool:
        silent_s = time.monotonic() - each.alive
        waits = each.state is State.READY and not each.fault
        return waits and silent_s >= self._heartbeat_s

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


def _ask(machine: Machine, command: str) -> None:
    machine.guest.unrecorded().succeed(command, deadline=Deadline(_HEARTBEAT_LIMIT_S))


@contextlib.contextmanager
def open_pool(
    start: Start,
    *,
    replicas: int,
    max_age_s: float | None = None,
    heartbeat_s: float = _HEARTBEAT_S,
    check: str = ALIVE,
    on_ending: Callable[[Machine, str], None] = lambda _machine, _why: None,
    on_ended: Callable[[Machine, str], None] = lambda _machine, _why: None,
    supply: Supply | None = None,
) -> Iterator[Pool]:
    """A pool for the length of the ``with``; then all its machines are off. See `Pool`."""
    pool = Pool(
        start,
        replicas=replicas,
        max_age_s=max_age_s,
        heartbeat_s=heartbeat_s,
        check=check,
        on_ending=on_ending,
        on_ended=on_ended,
        supply=supply,
    )
    pool.open()
    try:
        yield pool
    finally:
        pool.close()
