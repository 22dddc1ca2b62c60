"""Save a running machine to two files, and give them to a new QEMU.

``memory`` is the guest's memory, byte for byte, a sparse file: QEMU has it mapped from a file of
ours while the machine runs, so that it can be copied by us and, in a new machine, be mapped
privately: a page is read when the guest touches it, and copied when the guest writes to it. That
makes a restore independent of the memory's size, and machines share what they have not changed.

``devices`` is all the rest: QEMU's migration stream with the capability ``x-ignore-shared`` (since
QEMU 4.0), which leaves out memory that is mapped from a shared file.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.qemu.argv import Memory
from kboot.qmp import Qmp
from kboot.snapshots import sparse

MEMORY = "memory"
DEVICES = "devices"

#: QEMU knows the channel that is handed over to it by this name.
_CHANNEL = "kboot-state"

_POLL_S = 0.002

#: Options that bring state of their own, outside of memory, or have a say in the memory's layout.
_OPAQUE = (
    *("-drive", "-blockdev", "-hd", "-cdrom", "-fd", "-sd", "-mtdblock", "-pflash", "-virtfs"),
    *("-fsdev", "-incoming", "-loadvm", "-m", "-machine", "-M", "-numa", "-mem-path"),
    *("-snapshot", "-S", "-readconfig"),
)


def opaque_option(arguments: tuple[str, ...]) -> str | None:
    """The first of a user's arguments that forbids to save the machine, or None."""
    for word in arguments:
        option = word.replace("--", "-", 1) if word.startswith("--") else word
        exact = option in _OPAQUE
        family = any(option.startswith(f) for f in ("-hd", "-fd", "-sd")) and len(option) == 4
        if exact or family:
            return word
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFirmware:
    """A state in which the firmware is up and waits; see `kboot.qemu.firmware_state`."""

    directory: Path
    #: What it waits for on the serial line.
    key: bytes


class GuestMemory:
    """A machine's memory as a file that QEMU inherits. Use it as a context manager."""

    def __init__(self, descriptor: int, *, shared: bool) -> None:
        self.descriptor = descriptor
        self._shared = shared

    @classmethod
    def empty(cls, size_mib: int) -> GuestMemory:
        """Memory of a machine that will be saved."""
        descriptor = os.memfd_create("kboot-memory")
        os.ftruncate(descriptor, size_mib << 20)
        return cls(descriptor, shared=True)

    @classmethod
    def saved(cls, directory: Path) -> GuestMemory:
        """What was saved; the guest's writes stay with the machine."""
        return cls(os.open(directory / MEMORY, os.O_RDWR), shared=False)

    @classmethod
    def copied(cls, directory: Path, size_mib: int) -> GuestMemory:
        """A copy of what was saved, for a machine that will be saved again."""
        memory = cls.empty(size_mib)
        with (directory / MEMORY).open("rb") as source:
            sparse.copy(source.fileno(), memory.descriptor)
        return memory

    def save(self, directory: Path) -> None:
        """Write it to `directory`; the guest must stand still."""
        with (directory / MEMORY).open("xb") as file:
            sparse.copy(self.descriptor, file.fileno())

    def option(self) -> Memory:
        """For QEMU's command line."""
        return Memory(path=f"/proc/self/fd/{self.descriptor}", shared=self._shared)

    def close(self) -> None:
        """Give our side up; QEMU has its own."""
        os.close(self.descriptor)


def save_devices(qmp: Qmp, target: Path, deadline: Deadline) -> None:
    """Have QEMU write all but the memory to `target`; the guest then stands still."""
    _leave_memory_out(qmp, deadline)
    ours, theirs = socket.socketpair()
    with ours, target.open("xb") as file:
        with theirs:
            qmp.hand_over(_CHANNEL, theirs.fileno(), deadline)
        qmp.execute("migrate", deadline, uri=f"fd:{_CHANNEL}")
        ours.settimeout(deadline.remaining)
        while data := ours.recv(1 << 20):
            file.write(data)
    for _ in deadline.poll(_POLL_S):
        found = qmp.execute("query-migrate", deadline)
        if found.get("status") == "completed":
            return
        if found.get("status") in {"failed", "cancelled"}:
            raise InfraError(f"QEMU cannot save the machine: {found.get('error-desc', found)}")
    raise InfraError("QEMU does not come to an end with saving the machine")


def load_devices(qmp: Qmp, source: Path, deadline: Deadline) -> None:
    """Give a QEMU that waits for it (``-incoming defer``) what was saved; the guest then runs."""
    _leave_memory_out(qmp, deadline)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            qmp.hand_over(_CHANNEL, theirs.fileno(), deadline)
        qmp.execute("migrate-incoming", deadline, uri=f"fd:{_CHANNEL}")
        ours.settimeout(max(deadline.remaining, 0.001))
        try:
            ours.sendall(source.read_bytes())
        except OSError as error:
            raise InfraError(f"QEMU does not take the saved state: {error}") from error
    for _ in deadline.poll(_POLL_S):
        if qmp.execute("query-status", deadline)["status"] != "inmigrate":
            return
    raise InfraError("QEMU does not come to an end with the saved state")


def _leave_memory_out(qmp: Qmp, deadline: Deadline) -> None:
    capability = {"capability": "x-ignore-shared", "state": True}
    qmp.execute("migrate-set-capabilities", deadline, capabilities=[capability])
