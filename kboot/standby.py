"""The standby machine: restored while another one is in use, so that the next test need not wait.

While a machine is waited for, the processor that it will have is not in use: the one after it is
begun already. On another thread those that were used are powered off: the next one does not wait
for that. How many machines may stand by at once is limited for all processes of a run together.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from kboot.errors import GuestError, InfraError, KbootError
from kboot.locks import try_lock
from kboot.log import logger
from kboot.machine import Machine, MachineSettings

#: Restores a machine, which is on for the length of the ``with``.
Restore = Callable[[], AbstractContextManager[Machine]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A machine that is on, and how to power it off."""

    machine: Machine
    power: ExitStack


class Slots:
    """How many machines may stand by, among all processes that name the same directory."""

    def __init__(self, directory: Path | None) -> None:
        """Without a directory, nobody else is asked."""
        self._directory = directory

    def take(self, count: int) -> ExitStack | None:
        """One of `count` slots, held until the stack is closed; None if there is none to be had."""
        slot = ExitStack()
        if self._directory is None:
            return slot if count > 0 else None
        for number in range(count):
            path = self._directory / f"standby-{number}.lock"
            try:
                path.touch()
                lock = try_lock(path)
            except OSError as error:
                # The directory goes when the run ends.
                logger.debug("no machine stands by: %s", error)
                return None
            if lock is not None:
                slot.callback(os.close, lock)
                return slot
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """A machine that stands by, or is being restored."""

    settings: MachineSettings
    restored: Future[Restored]
    slot: ExitStack


class Standby:
    """Restores one machine ahead, and powers machines off behind. Close it in the end."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        # The one that stands by, and the one before it that somebody waits for.
        self._restoring = ThreadPoolExecutor(max_workers=2, thread_name_prefix="kboot-standby")
        self._ending = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kboot-ending")
        self._waiting: _Waiting | None = None

    def prepare(self, settings: MachineSettings, restore: Restore, *, limit: int) -> None:
        """Have such a machine restored, unless `limit` of them stand by, here and elsewhere."""
        if self._waiting and self._waiting.settings != settings:
            self.discard()
        if self._waiting:
            return
        slot = self._slots.take(limit)
        if slot is not None:
            self._waiting = _Waiting(
                settings=settings, restored=self._restoring.submit(_enter, restore), slot=slot
            )

    def take(
        self, settings: MachineSettings, *, meanwhile: Callable[[], None] = lambda: None
    ) -> Restored | None:
        """The machine that stands by, if it is such a one and nothing is wrong with it.

        One that is just being restored is waited for; `meanwhile` may prepare the next one.
        """
        waiting = self._waiting
        if waiting is None or waiting.settings != settings:
            return None
        self._waiting = None
        waiting.slot.close()
        with ExitStack() as unused:
            unused.callback(self._ending.submit, _leave, waiting)
            meanwhile()
            try:
                restored = waiting.restored.result()
            except (KbootError, OSError):
                # Told when it is left; whoever restores it once more is told as well, or is not.
                return None
            if not _is_well(restored.machine):
                return None
            unused.pop_all()
        return restored

    def power_off(self, power: ExitStack) -> Future[None]:
        """Close `power` on a thread; the future tells how that went."""
        return self._ending.submit(power.close)

    def discard(self) -> None:
        """Power the machine that stands by off, if there is one; nobody waits for that."""
        if self._waiting:
            waiting, self._waiting = self._waiting, None
            waiting.restored.cancel()
            self._ending.submit(_leave, waiting)

    def close(self) -> None:
        """End all of it, and wait for that."""
        self.discard()
        self._restoring.shutdown()
        self._ending.shutdown()


def _enter(restore: Restore) -> Restored:
    with ExitStack() as power:
        machine = power.enter_context(restore())
        return Restored(machine=machine, power=power.pop_all())


def _leave(waiting: _Waiting) -> None:
    """Power off what nobody has taken, as soon as it is there."""
    with waiting.slot:
        try:
            waiting.restored.result().power.close()
        except CancelledError:
            pass
        except (KbootError, OSError) as error:
            logger.info("a machine that stood by: %s", error)


def _is_well(machine: Machine) -> bool:
    with contextlib.suppress(GuestError, InfraError):
        machine.check()
        return machine.pristine
    return False
