"""What one run shares between its tests: a backend, a boot server, and the machine that is on."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kboot import capacity
from kboot.backend import Backend, BootServer
from kboot.config import Config, Isolation
from kboot.deadline import Deadline
from kboot.errors import GuestError, InfraError
from kboot.isolation import Snapshots, User, condition, may_share, resolve
from kboot.kernel import Kernel
from kboot.log import logger
from kboot.machine import Machine, MachineSettings, kernel_of, open_backend, power_on, settings_for
from kboot.machine.follower import BootCancelled
from kboot.machine.ipxe_machine import IpxeMachine, power_on_ipxe
from kboot.machine.saved import SavedMachine
from kboot.machine.settings import spec_for
from kboot.run_evidence import RunEvidence
from kboot.shared_server import SharedServer, use_shared_server
from kboot.snapshots import SnapshotStore
from kboot.standby import Restored, Slots, Standby
from kboot.state import cache_directory

_SERVER_START_LIMIT_S = 120.0
#: Between two calls of `Follower.cancel`, which ends a wait that has begun.
_LEAVE_POLL_S = 0.1


@dataclass(slots=True, kw_only=True)
class _Running:
    """A machine that is on, and how to power it off."""

    settings: MachineSettings
    machine: Machine
    power: contextlib.ExitStack
    user: User
    #: As it was when it was handed out, see `isolation.condition`; None if nobody will ask.
    condition: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What somebody asks for; see `Session.machine`."""

    settings: MachineSettings
    name: str
    user: User
    #: Not ``auto``.
    isolation: Isolation
    on_machine: Callable[[Machine], None]
    timeout_s: float | None


class Session:
    """Starts what is asked for when it is asked for first; `open_session` ends it all.

    One machine is on at a time. It is handed out again when the settings are the same, and
    `kboot.isolation` allows it; otherwise it is powered off. Another one then goes on from where
    one like it was saved, or boots. `prepare` has it restored before it is asked for.
    """

    def __init__(
        self,
        config: Config,
        *,
        evidence: Path,
        prefix: str,
        shared_server: Path | None,
        backend: Backend | None,
        workers: int,
    ) -> None:
        self.config = config
        self._workers = workers
        self._shared_server = shared_server
        self._given_backend = backend
        #: Told of each machine that was powered off by `tell_of_evidence`.
        self.evidence = RunEvidence(evidence)
        self._prefix = prefix
        self._stack = contextlib.ExitStack()
        self._running: _Running | None = None
        #: Who waits for a machine that stands by.
        self._waiting: _Request | None = None
        #: Machines that are being powered off meanwhile.
        self._ending: list[Future[None]] = []
        #: All that are on, or being started.
        self._on_now: list[Machine] = []
        #: Whether nobody waits for a boot any more.
        self._left = False
        #: Saved machines whose first reports were sorted already.
        self._sorted: set[str] = set()

    @cached_property
    def kernel(self) -> Kernel:
        """The kernel under test. `ConfigError` if none was named or it is not one."""
        return kernel_of(self.config)

    @cached_property
    def backend(self) -> Backend:
        """The place to serve from and boot in."""
        if self._given_backend:
            return self._given_backend
        run = self._shared.run if self._shared else ""
        return self._stack.enter_context(open_backend(self.config, run=run))

    @cached_property
    def server(self) -> BootServer:
        """The boot server."""
        if self._shared:
            return self._shared.server
        return self._stack.enter_context(self.backend.serve(Deadline(_SERVER_START_LIMIT_S)))

    @cached_property
    def _shared(self) -> SharedServer | None:
        return (
            self._stack.enter_context(use_shared_server(self._shared_server))
            if self._shared_server
            else None
        )

    @cached_property
    def snapshots(self) -> Snapshots:
        """The saved machines that this run's may go on from."""
        return Snapshots(self.backend, self.kernel, self._store)

    @cached_property
    def _store(self) -> SnapshotStore:
        place, limit_mib = cache_directory("snapshots"), self.config.snapshot_cache_mib
        return self._stack.enter_context(SnapshotStore(place, limit_mib=limit_mib))

    @cached_property
    def _standby(self) -> Standby:
        """Closed by `close`, before the rest."""
        return Standby(Slots(self._shared_server))

    def settings(self, config: Config, *, host_name: str = "") -> MachineSettings:
        """The settings of a machine under `config`; see `settings_for`."""
        return settings_for(self.kernel, config, host_name=host_name)

    def isolation(self, settings: MachineSettings, wanted: Isolation | None = None) -> Isolation:
        """Who shares machines with these settings: what is `wanted`, and not ``auto``."""
        return resolve(wanted or self.config.isolation, restores=self.snapshots.can_have(settings))

    def machine(
        self,
        settings: MachineSettings,
        *,
        name: str,
        fresh: bool = False,
        user: User | None = None,
        isolation: Isolation | None = None,
        on_machine: Callable[[Machine], None] = lambda _machine: None,
        meanwhile: Callable[[], None] = lambda: None,
        timeout: float | None = None,
    ) -> Machine:
        """A machine with these settings that is ready: the one that is on, or another one.

        `fresh` demands one that was booted for this call. `name` names its evidence, and `user` who
        asks for it; `isolation` is for this user instead of the run's. `on_machine` is told the
        machine before it is waited for. `meanwhile` is called where one that stands by is waited
        for: it may `prepare` the next. A boot may take `timeout` seconds; unless given, as long as
        the settings say.
        """
        request = _Request(
            settings=settings,
            name=name,
            user=user or User(test=name),
            isolation=self.isolation(settings, isolation),
            on_machine=on_machine,
            timeout_s=timeout,
        )
        self.tell_of_evidence()
        running = self._running
        if running and not fresh and self._can_reuse(running, request):
            running.user = request.user
            on_machine(running.machine)
            return running.machine
        restores = self._restores(request.isolation, settings)
        if restores and not fresh and (restored := self._take(request, meanwhile)):
            self._power_off_meanwhile()
            return self._hand_out(request, restored)
        self.power_off()
        return self._restore_or_boot(request, fresh=fresh) if restores else self._power_on(request)

    def _take(self, request: _Request, meanwhile: Callable[[], None]) -> Restored | None:
        """The machine that stands by for this request, if one does."""
        self._waiting = request
        try:
            return self._standby.take(request.settings, meanwhile=meanwhile)
        finally:
            self._waiting = None

    def _restores(self, policy: Isolation, settings: MachineSettings) -> bool:
        return policy in {"test", "module"} and self.snapshots.can_have(settings)

    def saved(self, settings: MachineSettings) -> SavedMachine | None:
        """The saved machine for these settings: booted and saved now, if there is none.

        None where such machines cannot be saved.
        """
        if not self.snapshots.can_have(settings):
            return None
        if (found := self.snapshots.find(settings)) is not None:
            return found
        with self.snapshots.making(settings, Deadline(settings.timeout_s)):
            if (found := self.snapshots.find(settings)) is not None:
                return found
            with self.powered_on(settings, name="to-be-saved", savable=True) as machine:
                machine.wait_until_ready()
                self.snapshots.save(machine, settings)
        return self.snapshots.find(settings) if self.snapshots.can_have(settings) else None

    @contextlib.contextmanager
    def powered_on(
        self,
        settings: MachineSettings,
        *,
        name: str,
        label: str = "",
        saved: SavedMachine | None = None,
        savable: bool = False,
    ) -> Iterator[Machine]:
        """A machine besides the one that is on, for the length of the ``with``.

        It goes on from a `saved` one, or is to be waited for. A `label` ends its name. Several
        threads may call this, once `server` and `kernel` have been used.
        """
        number, directory = self.evidence.place(name)
        try:
            with self._on(
                settings, f"{number}{label}", directory, saved=saved, savable=savable
            ) as machine:
                yield machine
        finally:
            self.evidence.complete(directory)

    def prepare(
        self, settings: MachineSettings, *, user: User, isolation: Isolation | None = None
    ) -> None:
        """While a machine is used or waited for, restore the one that `user` will ask for next.

        It is done where `machine` would restore one then, if the setting ``standby`` wants it.
        Whether it is done or not, `machine` gives the same, sooner or later.
        """
        if self.config.standby == "off":
            return
        policy = self.isolation(settings, isolation)
        if not self._restores(policy, settings):
            return
        last = self._waiting or self._running
        if last and last.settings == settings and may_share(policy, last.user, user):
            return
        if (saved := self.snapshots.find(settings)) is not None:
            self._standby.prepare(
                settings, lambda: self.ahead(settings, saved), limit=self._standby_limit(settings)
            )

    def _standby_limit(self, settings: MachineSettings) -> int:
        """How many such machines may stand by on this host, for all workers."""
        if self.config.standby == "on":
            return self._workers
        return capacity.standbys(
            cpus=capacity.host_cpus(),
            available_mib=capacity.host_available_mib(),
            workers=self._workers,
            machine_cpus=settings.spec.cpus,
            machine_mib=settings.spec.memory_mib,
        )

    @contextlib.contextmanager
    def ahead(self, settings: MachineSettings, saved: SavedMachine | None) -> Iterator[Machine]:
        """A machine that has no user yet, see `powered_on`. Another thread may call this.

        Its evidence goes with it, unless `assign` was called for it.
        """
        number, directory = self.evidence.place("standby")
        # Not there any more if it has had a user: then it has that one's name.
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            yield stack.enter_context(self._on(settings, number, directory, saved=saved))

    def assign(self, machine: Machine, name: str) -> None:
        """A machine that stood by has a user from now on: its evidence has that one's name."""
        machine.evidence_directory = self.evidence.rename(machine.evidence_directory, name)

    def end_assigned(self, machine: Machine) -> None:
        """Such a machine is off, and its evidence is complete. Any thread may call this."""
        self.evidence.complete(machine.evidence_directory)

    def forgive_boot(self, machine: Machine) -> None:
        """What the kernel said when it booted counts once, as on a machine that is shared."""
        if machine.restored_from in self._sorted:
            machine.report_filter.sort(machine.console.reports)
        elif machine.restored_from is not None:
            self._sorted.add(machine.restored_from)

    def _hand_out(self, request: _Request, restored: Restored) -> Machine:
        """The machine that stood by, with its evidence under the name of who asks for it."""
        machine = restored.machine
        logger.debug("%s stood by", machine.name)
        self.assign(machine, request.name)
        with contextlib.ExitStack() as power:
            power.callback(self.end_assigned, machine)
            power.callback(restored.power.close)
            self._begin_use(request, machine, power)
        return machine

    def _can_reuse(self, running: _Running, request: _Request) -> bool:
        """Whether the machine that is on can be handed out again."""
        policy = request.isolation
        if running.settings != request.settings or not may_share(
            policy, running.user, request.user
        ):
            return False
        if policy == "none":
            return running.machine.boot.ready and running.machine.console.fatal is None
        return condition(running.machine) == running.condition

    def _restore_or_boot(self, request: _Request, *, fresh: bool) -> Machine:
        """A machine that goes on from a saved one, or else one that boots, and is saved."""
        if not fresh and (machine := self._restore(request)):
            return machine
        with self.snapshots.making(request.settings, Deadline(request.settings.timeout_s)):
            # Another worker may have made it in the meantime.
            if not fresh and (machine := self._restore(request)):
                return machine
            machine = self._power_on(request, savable=True)
            if self.snapshots.find(request.settings) is None:
                self.snapshots.save(machine, request.settings)
            if self._running and not self.snapshots.can_have(request.settings):
                # It may have to be shared after all.
                self._running.condition = condition(machine)
            return machine

    def _restore(self, request: _Request) -> Machine | None:
        """A machine that goes on from a saved one; None if there is none that works."""
        saved = self.snapshots.find(request.settings)
        if saved is None:
            return None
        try:
            return self._power_on(request, saved=saved)
        except (GuestError, InfraError) as error:
            self.server.check()
            logger.warning("the saved machine %s does not run and is removed: %s", saved.key, error)
            self.snapshots.refuse(saved)
            return None

    def _power_on(
        self, request: _Request, *, saved: SavedMachine | None = None, savable: bool = False
    ) -> Machine:
        try:
            with contextlib.ExitStack() as power:
                machine = power.enter_context(
                    self.powered_on(
                        request.settings, name=request.name, saved=saved, savable=savable
                    )
                )
                self._begin_use(request, machine, power)
        finally:
            self.tell_of_evidence()
        return machine

    @contextlib.contextmanager
    def ipxe(self, config: Config, *, name: str) -> Iterator[IpxeMachine]:
        """A pristine machine at iPXE's prompt, under `config`; no other one is on meanwhile."""
        self.power_off()
        number, directory = self.evidence.place(name)
        try:
            with power_on_ipxe(
                self.backend,
                self.server,
                spec_for(config, f"{self._prefix}{number}"),
                evidence_directory=directory,
                store=self._store,
            ) as machine:
                yield machine
        finally:
            self.evidence.complete(directory)

    def clear_faults(self) -> None:
        """Have the boot server do right again, if there is one."""
        if "server" in vars(self):
            self.server.clear_faults()

    def leave_boots(self) -> None:
        """Have all boots end in `BootCancelled`, now and later; return when no machine is on.

        Another thread calls this, so that `close` need not wait for them.
        """
        self._left = True
        while self._on_now:
            for machine in tuple(self._on_now):
                machine.follower.cancel()
            time.sleep(_LEAVE_POLL_S)

    @contextlib.contextmanager
    def _on(
        self,
        settings: MachineSettings,
        number: int | str,
        directory: Path,
        *,
        saved: SavedMachine | None,
        savable: bool = False,
    ) -> Iterator[Machine]:
        """A machine that is on for the length of the ``with``."""
        if self._left:
            raise BootCancelled("no more machines are started")
        with power_on(
            self.backend,
            self.server,
            self.kernel,
            settings.named(f"{self._prefix}{number}"),
            evidence_directory=directory,
            saved=saved,
            savable=savable,
        ) as machine:
            self._on_now.append(machine)
            try:
                yield machine
            finally:
                self._on_now.remove(machine)

    def _begin_use(self, request: _Request, machine: Machine, power: contextlib.ExitStack) -> None:
        """Hand a machine out: once it is ready, it is the one that is on, and has `power`."""
        self.forgive_boot(machine)
        request.on_machine(machine)
        if machine.restored_from is None:
            machine.wait_until_ready(request.timeout_s)
        shared = request.isolation in {"module", "session"}
        self._running = _Running(
            settings=request.settings,
            machine=machine,
            user=request.user,
            condition=condition(machine) if shared else None,
            power=power.pop_all(),
        )

    def power_off(self) -> None:
        """Power off the machine that is on, if one is, and write its evidence."""
        if running := self._end_use():
            running.power.close()
        self.tell_of_evidence()

    def _power_off_meanwhile(self) -> None:
        """As `power_off`, without waiting for it."""
        if running := self._end_use():
            self._ending.append(self._standby.power_off(running.power))

    def _end_use(self) -> _Running | None:
        """The machine that was on, and is not any more for us."""
        running, self._running = self._running, None
        if running:
            for report in running.machine.report_filter.sort(running.machine.console.reports):
                logger.warning(
                    "the kernel reported, when no test was running: %s; see %s",
                    report.title,
                    running.machine.evidence_directory,
                )
        return running

    def tell_of_evidence(self) -> None:
        """Tell of machines that are off by now; raise what went wrong with that."""
        self.evidence.tell()
        ended = [each for each in self._ending if each.done()]
        self._ending = [each for each in self._ending if each not in ended]
        for each in ended:
            each.result()

    def close(self) -> None:
        """Power everything off."""
        with self._stack:
            try:
                self.power_off()
            finally:
                self._standby.close()
                self.tell_of_evidence()


@contextlib.contextmanager
def open_session(
    config: Config,
    *,
    evidence: Path,
    prefix: str = "m",
    shared_server: Path | None = None,
    backend: Backend | None = None,
    workers: int = 1,
) -> Iterator[Session]:
    """A session for the length of the ``with``; its boots leave their evidence below `evidence`.

    `prefix` begins the names of its machines: a DNS label's beginning, unique in a parallel run.
    With `shared_server`, it has the boot server of another process, see `kboot.shared_server`. With
    `backend`, it boots there, and not where the configuration says: see `kboot.testing`. `workers`
    processes share the host, each with a session of its own.
    """
    session = Session(
        config,
        evidence=evidence,
        prefix=prefix,
        shared_server=shared_server,
        backend=backend,
        workers=workers,
    )
    try:
        yield session
    finally:
        session.close()
