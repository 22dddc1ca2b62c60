"""A pool as one of its users has it: what was acquired is given back in the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from kboot import service
from kboot.errors import CommandFailed, ConfigError, GuestError, KbootError
from kboot.guest import CommandResult
from kboot.guest.guest import COMMAND_TIMEOUT_S, failure_of
from kboot.machine import Machine
from kboot.pool.pool import Pool, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a source gives for one lease."""

    name: str
    run: Callable[[str, float], CommandResult]
    #: Whether the lease holds.
    holds: Callable[[], bool]
    #: Gives it back; what is wrong with it and cannot be known otherwise, or "".
    give_back: Callable[[], str]
    machine: Machine | None


class Source(Protocol):
    """Where the machines come from."""

    def acquire(self, holder: str, *, ttl: float, timeout: float) -> Given:
        """A machine, see `Pool.acquire`."""


class LeasedMachine:
    """A machine of a pool that is ours for a time. Made by `Leases.acquire`; a context manager."""

    def __init__(self, given: Given, *, holder: str, ttl: float) -> None:
        self._given = given
        self.name = given.name
        self.holder = holder
        self.ttl = ttl
        self._end = time.monotonic() + ttl
        self.released = False
        #: Whether a command has raised what is wrong.
        self._told = False

    @property
    def remaining_s(self) -> float:
        """Seconds until it is taken back; 0 when it was."""
        return max(0.0, self._end - time.monotonic()) if self._given.holds() else 0.0

    @property
    def machine(self) -> Machine:
        """The machine. `ConfigError` if another process holds it, or the lease has ended."""
        self._require_lease()
        if self._given.machine is None:
            raise ConfigError(
                f"{self.name} is held by another process: run() and succeed() reach its guest"
            )
        return self._given.machine

    def run(
        self, command: str, *, timeout: float = COMMAND_TIMEOUT_S, check: bool = False
    ) -> CommandResult:
        """Run a command in its guest, see `Guest.run`. `ConfigError` if the lease has ended."""
        self._require_lease()
        try:
            result = self._given.run(command, timeout)
        except KbootError:
            # It was taken back meanwhile, and no fault of the machine's.
            self._require_lease()
            self._told = True
            raise
        if check and result.exit_status != 0:
            raise CommandFailed(failure_of(result), result)
        return result

    def succeed(self, command: str, *, timeout: float = COMMAND_TIMEOUT_S) -> str:
        """Run a command that has to exit with 0; its standard output."""
        return self.run(command, timeout=timeout, check=True).stdout

    def check(self) -> None:
        """Raise what is wrong: the lease was over too early, or the kernel reported something."""
        if self.released:
            return
        self._require_lease()
        if self._given.machine is not None:
            self._given.machine.check_reports()

    def release(self) -> None:
        """Give it back, and raise what is wrong with it. To give it back twice does no harm."""
        if self.released:
            return
        try:
            self.check()
        finally:
            self.give_back()

    def give_back(self) -> None:
        """As `release`, for who has called `check`."""
        if not self.released:
            self.released = True
            fault = self._given.give_back()
            if fault and not self._told:
                raise GuestError(f"{self.name}: {fault}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.release()
        else:
            with contextlib.suppress(KbootError):
                self.give_back()

    def _require_lease(self) -> None:
        if self.released:
            raise ConfigError(f"{self.name} was given back: nobody uses it any more")
        if not self.remaining_s:
            raise ConfigError(
                f"the lease of {self.name} ended after {self.ttl:g} s, before it was given back; "
                "ask for a longer one: ttl="
            )


class Leases:
    """The machines that one user has of a pool. Close it in the end."""

    def __init__(
        self,
        source: Source,
        *,
        holder: str,
        ttl: float,
        timeout: float,
        on_lease: Callable[[LeasedMachine], None] = lambda _lease: None,
    ) -> None:
        """`ttl` and `timeout` are for leases that say nothing else."""
        self._source = source
        self.holder = holder
        self._ttl = ttl
        self._timeout = timeout
        self._on_lease = on_lease
        self._leases: list[LeasedMachine] = []

    def acquire(self, *, ttl: float | None = None, timeout: float | None = None) -> LeasedMachine:
        """A pristine machine for `ttl` seconds; it is waited for `timeout` seconds.

        `InfraError` if there is none by then.
        """
        seconds = self._ttl if ttl is None else ttl
        given = self._source.acquire(
            self.holder, ttl=seconds, timeout=self._timeout if timeout is None else timeout
        )
        lease = LeasedMachine(given, holder=self.holder, ttl=seconds)
        self._leases.append(lease)
        self._on_lease(lease)
        return lease

    @property
    def held(self) -> tuple[LeasedMachine, ...]:
        """What was acquired and not given back."""
        return tuple(each for each in self._leases if not each.released)

    def close(self) -> None:
        """Give everything back; raise the first thing that is wrong and was not told yet."""
        errors = []
        for each in self.held:
            try:
                each.give_back()
            except KbootError as error:
                errors.append(error)
        if errors:
            raise errors[0]


class OwnPool:
    """A pool of this process; its machines are at hand."""

    def __init__(self, pool: Pool, on_machine: Callable[[Machine], None]) -> None:
        """`on_machine` is told of each machine that is leased."""
        self._pool = pool
        self._on_machine = on_machine

    def acquire(self, holder: str, *, ttl: float, timeout: float) -> Given:
        """`ConfigError` where it would be waited for in vain."""
        held = [
            each
            for each in self._pool.machines
            if each.state is State.LEASED and each.lease and each.lease.holder == holder
        ]
        if len(held) >= self._pool.replicas:
            raise ConfigError(
                f"{holder} has all {len(held)} machines of its pool; it needs a larger one: "
                f"replicas={len(held) + 1}"
            )
        lease = self._pool.acquire(holder, ttl=ttl, timeout=timeout)
        machine = lease.machine
        self._on_machine(machine)

        def give_back() -> str:
            # Whoever has the machine at hand has asked it.
            self._pool.release(lease.identifier)
            return ""

        return Given(
            name=machine.name,
            run=lambda command, limit_s: machine.guest.run(command, timeout=limit_s),
            holds=lambda: self._pool.has(lease.identifier),
            give_back=give_back,
            machine=machine,
        )


class PersistentPool:
    """A pool of another process (``kboot pool up``)."""

    def __init__(self, found: service.Service) -> None:
        self._service = found

    def acquire(self, holder: str, *, ttl: float, timeout: float) -> Given:
        """It is ours as long as the connection is open."""
        client = service.connect(self._service)
        try:
            lease = client.ask("acquire", holder=holder, ttl=ttl, timeout=timeout)
        except BaseException:
            client.close()
            raise
        identifier, name = lease["lease"], f"{lease['machine']} of the pool {self._service.name}"
        end = time.monotonic() + ttl

        def run(command: str, limit_s: float) -> CommandResult:
            begin = time.monotonic()
            result = service.ask(
                self._service, "exec", lease=identifier, command=command, timeout=limit_s
            )
            return _result(command, result, time.monotonic() - begin)

        def give_back() -> str:
            try:
                found = service.ask(self._service, "release", lease=identifier)
            finally:
                client.close()
            return f"{found['fault']}; see {found['evidence']}" if found["fault"] else ""

        return Given(
            name=name,
            run=run,
            holds=lambda: time.monotonic() < end,
            give_back=give_back,
            machine=None,
        )


def _result(command: str, found: dict[str, Any], seconds: float) -> CommandResult:
    return CommandResult(
        command=command,
        exit_status=found["exit_status"],
        stdout_bytes=found["stdout"].encode("latin-1"),
        stderr_bytes=found["stderr"].encode("latin-1"),
        duration_s=seconds,
    )
