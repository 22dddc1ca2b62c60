"""Save a running machine to two files, give them to a new QEMU, and know where that works."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from kboot import arch, process
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.machine_spec import MachineSpec
from kboot.network_cards import CARDS
from kboot.qemu import disks
from kboot.qemu.accel import qemu_version
from kboot.qemu.argv import Accelerator, Ipxe, Memory, Wiring, argv
from kboot.qemu.firmware import find_uefi
from kboot.qemu.qmp import Qmp
from kboot.snapshots import sparse


def identity(
    spec: MachineSpec,
    *,
    program: str,
    accelerator: Accelerator,
    ipxe: Ipxe | None = None,
    forwarder: str | None = None,
) -> Mapping[str, str]:
    """Everything on this host that has a part in such a machine, by name, for people to read.

    `ipxe` is what boots it in place of the card's ROM. Not in it: the machine's name, its boot file
    and who it is on a network with others, which a saved machine may change.
    """
    links = tuple(replace(each, network="any", member="any") for each in spec.links)
    neutral = replace(spec, name="any", boot_file="any", links=links)
    wiring = Wiring(serial="any", control="any")
    command = argv(
        neutral,
        program=program,
        accelerator=accelerator,
        wiring=wiring,
        flash=None,
        ipxe=ipxe,
        forwarder=forwarder,
        disks=disks.device_words(spec.disks, spec.boot_disk),
        cables={"any": "any"},
    )
    parts = {
        "qemu": qemu_version(program),
        "qemu program": _stamp(Path(program)),
        "command": " ".join(command),
        "firmware": firmware_stamps(spec, program, ipxe),
        "processor": processor_of(_cpuinfo()),
        **disks.identity(spec.disks),
    }
    if accelerator == "kvm":
        parts["host kernel"] = platform.release()
    return parts


def firmware_stamps(spec: MachineSpec, program: str, ipxe: Ipxe | None = None) -> str:
    """The firmware files of such a machine, each with its length and date."""
    files = [path for folder in _data_folders(program) for path in _roms(folder, spec)]
    if ipxe is not None:
        files.append(ipxe.path)
    if spec.firmware == "uefi":
        found = find_uefi(spec.architecture)
        files += [found.code, found.variables_template]
    return ", ".join(_stamp(path) for path in files)


def _roms(folder: Path, spec: MachineSpec) -> list[Path]:
    row = arch.of(spec.architecture)
    names = (*row.roms, *([CARDS[spec.nic_model].rom] if row.has_card_roms else ()))
    return [path for name in names if (path := folder / name).is_file()]


@lru_cache
def _data_folders(program: str) -> tuple[Path, ...]:
    """Where QEMU looks for firmware: ``qemu -L help``."""
    printed = process.run([program, "-L", "help"], timeout_s=20, check=False).stdout
    return tuple(Path(line) for line in printed.decode(errors="replace").splitlines() if line)


def _stamp(path: Path) -> str:
    """A file's name, length and date: quick, and another one after every upgrade."""
    found = path.stat()
    return f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"


@lru_cache
def _cpuinfo() -> str:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")


def processor_of(text: str) -> str:
    """A host's processor, from its /proc/cpuinfo: its model, and a digest of its features."""
    lines = [line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line]
    facts = {key.strip(): value.strip() for key, value in lines}
    features = facts.get("flags") or facts.get("Features") or ""
    digest = hashlib.sha256(" ".join(sorted(features.split())).encode()).hexdigest()[:16]
    return f"{facts.get('model name', platform.machine())} {digest}"


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
    """A state in which the firmware is up and waits; see `kboot.qemu.saved_firmware`."""

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
        try:
            while data := _receive(ours, deadline):
                file.write(data)
        except TimeoutError as error:
            raise InfraError("QEMU does not come to an end with saving the machine") from error
    for _ in deadline.poll(_POLL_S):
        found = qmp.execute("query-migrate", deadline)
        if found.get("status") == "completed":
            return
        if found.get("status") in {"failed", "cancelled"}:
            raise InfraError(f"QEMU cannot save the machine: {found.get('error-desc', found)}")
    raise InfraError("QEMU does not come to an end with saving the machine")


def _receive(source: socket.socket, deadline: Deadline) -> bytes:
    # A time-out of 0 would be another mode of the socket.
    source.settimeout(max(deadline.remaining, 0.001))
    return source.recv(1 << 20)


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
