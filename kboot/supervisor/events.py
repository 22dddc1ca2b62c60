"""What happens to a machine, told to all who wait: its state, and the milestones of its boots."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from kboot.errors import KbootError, KernelCrash
from kboot.machine.boot import Boot
from kboot.machine.follower import BootCancelled

Name = Literal["starting", "booting", "ready", "crashed", "failed", "off"]

_KEPT_EVENTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a machine is doing."""

    name: Name
    #: The crash's title, or why it failed; empty while all is well.
    what: str = ""
    #: What a command that waited for it exits with: whose fault it is, as in `kboot.errors`.
    exit_code: int = 0


def state_after(error: KbootError | None) -> State:
    """What a machine is doing whose boot has ended so."""
    match error:
        case None:
            return State(name="ready")
        case BootCancelled():
            return State(name="booting", what=str(error))
        case KernelCrash():
            return State(name="crashed", what=error.report.title, exit_code=error.exit_code)
        case _:
            return State(name="failed", what=str(error), exit_code=error.exit_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootProgress:
    """How far a machine has come, as it was when its own thread has looked."""

    #: Boots so far, the present one among them.
    boots: int
    #: The phase that the present boot is in.
    phase: str
    release: str
    #: Of the last boot that was proved; None if none was yet.
    boot_id: str | None

    @classmethod
    def of(cls, boot: Boot, *, boots: int, release: str, boot_ids: Sequence[str]) -> Self:
        """For the thread that the boot belongs to."""
        return cls(
            boots=boots,
            phase=str(boot.current),
            release=release,
            boot_id=boot_ids[-1] if boot_ids else None,
        )


class Events:
    """Events with numbers, the newest of which are kept; for any number of threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[dict[str, Any]] = deque(maxlen=_KEPT_EVENTS)
        self._count = 0
        self._state = State(name="starting")
        self._boot_began = 0

    @property
    def state(self) -> State:
        """What the machine is doing now."""
        with self._changed:
            return self._state

    @property
    def boot_began(self) -> int:
        """The number of the first event of the present boot."""
        with self._changed:
            return self._boot_began

    @property
    def count(self) -> int:
        """Events so far: the number of the next one."""
        with self._changed:
            return self._count

    def enter(self, state: State) -> None:
        """The machine's state is another one."""
        with self._changed:
            self._state = state
            if state.name == "booting":
                self._boot_began = self._count
            self._add({"event": "state", "state": state.name, "what": state.what})

    def add(self, event: dict[str, Any]) -> None:
        """Something happened."""
        with self._changed:
            self._add(event)

    def after(self, number: int, at_most_s: float) -> tuple[list[dict[str, Any]], int]:
        """The events from `number` on, and the number of the next one to come.

        Waits for one if there is none yet. Where older ones are kept no more, a notice says so.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._count > number, at_most_s)
            oldest = self._count - len(self._events)
            events = list(self._events)[max(0, number - oldest) :]
            if (lost := oldest - number) > 0:
                text = f"{lost} events are not shown: they came faster than they were read"
                events.insert(0, {"event": "notice", "text": text})
            return events, max(number, self._count)

    def _add(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        self._count += 1
        self._changed.notify_all()
