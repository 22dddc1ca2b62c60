"""A pristine machine for every test, or every module, or for all: who may share one, and where
pristine machines come from.

Where the backend can save machines, one that has just booted is saved, and every further one goes
on from there. That takes a fraction of a second; elsewhere it takes a boot.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kboot.backend import Backend, SnapshotBackend
from kboot.cache import FileStamp
from kboot.config import Isolation
from kboot.crash import CrashReport, Scanner
from kboot.deadline import Deadline
from kboot.errors import KbootError
from kboot.kernel import Kernel, sha256_of
from kboot.log import logger
from kboot.machine import Machine, MachineSettings
from kboot.machine.expectations import FAMILIES
from kboot.machine.saved import SavedMachine, parts, save
from kboot.snapshots import SnapshotStore

#: How long a guest may take to say whether it was touched.
_LOOK_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who asks for a machine."""

    test: str = ""
    module: str = ""


def resolve(isolation: Isolation, *, restores: bool) -> Isolation:
    """What ``auto`` means: a pristine machine for every test where that is quick."""
    if isolation != "auto":
        return isolation
    return "test" if restores else "session"


def may_share(isolation: Isolation, last: User, following: User) -> bool:
    """Whether `following` may have the machine that `last` had, if that is as it was."""
    match isolation:
        case "test":
            return last == following
        case "module":
            return last.module == following.module
        case _:
            return True


def condition(machine: Machine) -> str:
    """What must stay as it is for others to have the machine as well: its kernel's taint.

    For a machine that is not well it is another text each time.
    """
    if machine.pristine:
        try:
            machine.check()
            return machine.guest.unrecorded().succeed(
                "cat /proc/sys/kernel/tainted", deadline=Deadline(_LOOK_LIMIT_S)
            )
        except KbootError as error:
            logger.info("%s cannot be used any more: %s", machine.name, error)
    return secrets.token_hex()


def lockup(said: bytes) -> CrashReport | None:
    """The first report on a console that something took too long; None if there is none.

    A busy host is enough for it. Every test run that goes on from a machine which was saved with
    it would have it again, also where the report was still being printed.
    """
    scanner = Scanner()
    for event in (*scanner.feed(said), *scanner.close()):
        if isinstance(event, CrashReport) and event.kind in FAMILIES["lockup"]:
            return event
    return None


class Snapshots:
    """The saved machines of one backend and one kernel."""

    def __init__(self, backend: Backend, kernel: Kernel, store: SnapshotStore) -> None:
        self._backend = backend
        self._kernel = kernel
        self._store = store
        self._digests: dict[FileStamp, str] = {}
        #: Settings whose machines could not be saved, in spite of what the backend says.
        self._failed: list[MachineSettings] = []

    def can_have(self, settings: MachineSettings) -> bool:
        """Whether such machines can be saved."""
        saves = isinstance(self._backend, SnapshotBackend)
        return saves and settings not in self._failed and self.fault(settings) is None

    def fault(self, settings: MachineSettings) -> str | None:
        """Why this backend, which saves machines, cannot save such ones; None for no reason."""
        if isinstance(self._backend, SnapshotBackend):
            return self._backend.snapshot_fault(settings.spec)
        return None

    def find(self, settings: MachineSettings) -> SavedMachine | None:
        """The saved machine for these settings, or None."""
        entry = self._store.find(self._key(settings))
        return None if entry is None else SavedMachine.of(entry)

    def making(
        self, settings: MachineSettings, deadline: Deadline
    ) -> contextlib.AbstractContextManager[None]:
        """Within this ``with``, others that want to save the same machine wait for us."""
        return self._store.making(self._key(settings), deadline)

    def save(self, machine: Machine, settings: MachineSettings) -> bool:
        """Save a machine that has just become ready; whether it was.

        If that fails, it is said, and such machines are from now on ones that cannot be saved. One
        whose kernel reported a lockup is not worth it: the next one may be.
        """
        if late := lockup(machine.console.raw(0)):
            logger.warning("this boot is not saved, the next one may be: %s", late.title)
            return False
        try:
            save(machine, self._store, self._key(settings))
        except (KbootError, OSError) as error:
            machine.check()
            self._failed.append(settings)
            logger.warning("the machine cannot be saved, so none is restored: %s", error)
            return False
        return True

    def refuse(self, saved: SavedMachine) -> None:
        """Remove a saved machine that does not work."""
        self._store.discard(saved.key)

    def _key(self, settings: MachineSettings) -> Mapping[str, str]:
        if not isinstance(self._backend, SnapshotBackend):
            raise TypeError(f"the backend {self._backend.name} saves no machines")
        return {
            **parts(
                settings,
                kernel_sha256=self._kernel.sha256,
                initrd_sha256s=tuple(self._digest(path) for path in settings.initrds),
            ),
            **self._backend.snapshot_identity(settings.spec),
        }

    def _digest(self, path: Path) -> str:
        stamp = FileStamp.of(path)
        if stamp not in self._digests:
            self._digests[stamp] = sha256_of(path)
        return self._digests[stamp]
