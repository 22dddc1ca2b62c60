"""The pool of a test run, whose machines its tests lease."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from kboot.errors import GuestError, InfraError
from kboot.log import logger
from kboot.machine import Machine, MachineSettings
from kboot.machine.saved import SavedMachine
from kboot.pool.pool import Pool, open_pool
from kboot.session import Session


class RunPool:
    """One pool at a time, in the session of a run. A context manager."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stack = contextlib.ExitStack()
        self._pool: Pool | None = None
        self._key: tuple[MachineSettings, int, float | None, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def open(
        self, settings: MachineSettings, *, replicas: int, max_age_s: float | None, check: str
    ) -> Pool:
        """The pool of such machines; one of other machines makes room for it."""
        key = (settings, replicas, max_age_s, check)
        if self._pool is None or key != self._key:
            self.close()
            # Here, as saved machines are not for several threads.
            self._session.server.check()
            starter = _Starter(self._session, settings, self._session.saved(settings))
            self._pool = self._stack.enter_context(
                open_pool(
                    starter.start,
                    replicas=replicas,
                    max_age_s=max_age_s,
                    check=check,
                    on_ending=starter.keep_evidence_of_fault,
                    on_ended=starter.tell_of_evidence,
                )
            )
            self._key = key
        return self._pool

    def close(self) -> None:
        """End its machines."""
        self._pool = None
        self._stack.close()


class _Starter:
    """Starts machines ahead of their users; what nobody had and what was fine leaves nothing."""

    def __init__(
        self, session: Session, settings: MachineSettings, saved: SavedMachine | None
    ) -> None:
        self._session = session
        self._settings = settings
        self._saved = saved

    @contextlib.contextmanager
    def start(self) -> Iterator[Machine]:
        """A machine that is pristine and ready."""
        with contextlib.ExitStack() as power:
            try:
                machine = power.enter_context(self._session.ahead(self._settings, self._saved))
                if self._saved is None:
                    machine.wait_until_ready()
            except (GuestError, InfraError) as error:
                if self._saved is not None:
                    logger.warning("a saved machine does not run, the next ones boot: %s", error)
                    self._saved = None
                raise
            yield machine

    def keep_evidence_of_fault(self, machine: Machine, fault: str) -> None:
        """Before a machine is powered off that broke while nobody had it."""
        if fault and _unused(machine):
            self._session.assign(machine, "taken-out")
            logger.warning("%s: %s; see %s", machine.name, fault, machine.evidence_directory)

    def tell_of_evidence(self, machine: Machine, _fault: str) -> None:
        """After a machine is off whose evidence is kept."""
        if not _unused(machine):
            self._session.end_assigned(machine)


def _unused(machine: Machine) -> bool:
    """Whether its evidence has the name of no user."""
    return machine.evidence_directory.name.endswith("-standby")
