"""The seam between kboot and the places it boots in: small protocols, and the values they share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import unquote

from kboot import arch
from kboot.deadline import Deadline
from kboot.machine_spec import Disk, Firmware, MachineSpec
from kboot.server_faults import Fault, FaultHandle, FaultKind
from kboot.server_tls import Certificate, TlsServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """One request in the boot server's access log."""

    #: Seconds since the epoch, when the last byte of the answer was sent.
    time: float
    #: The path below the run's token, without the query: ``artifacts/<sha256>``.
    path: str
    #: The query, ``m=<machine>&b=<boot>``: who asked, and in which boot.
    query: str
    status: int
    #: Bytes of the body that were sent.
    size: int
    #: Whether the answer was sent to its end.
    complete: bool
    user_agent: str
    #: The fault that it met, see `kboot.server_faults`; empty for none.
    fault: str = ""


def file_path(path: str) -> str:
    """A URL's path as nginx finds a file by it: ``menus//a%20b.ipxe`` is ``menus/a b.ipxe``."""
    return re.sub("/+", "/", unquote(path))


class Stream(Protocol):
    """A connected byte stream: the serial line as a backend hands it to the console."""

    def recv(self, size: int, /) -> bytes:
        """Wait for bytes and return at most `size`; empty at the end of the stream."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of `data`. OSError when the other side is gone."""

    def close(self) -> None:
        """Give the stream up; a `recv` that waits in another thread returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a file is on its way to a boot server, or to a guest."""

    file: Path
    #: ``read``: its checksum is made; ``send``: it goes to the server; ``copy``: to the guest.
    step: Literal["read", "send", "copy"]
    #: Bytes.
    done: int
    size: int


#: Called for every piece of a file, a megabyte or so; on the thread of who puts it.
OnProgress = Callable[[Progress], None]


def ignore_progress(_progress: Progress) -> None:
    """For those who do not look."""


class BootServer(Protocol):
    """nginx, wherever it runs."""

    def put(self, artifact: Path, on_progress: OnProgress = ignore_progress) -> str:
        """Publish a file under its sha256 and return its URL as the guest sees it. Idempotent.

        Several threads may do so at once. What `on_progress` raises ends it, and nothing is
        published.
        """

    def remove(self, url: str) -> int:
        """Drop what `put` has published there; the bytes that it took, 0 if there was nothing."""

    def write(self, name: str, text: str) -> str:
        """Publish or replace a small text atomically and return its URL as the guest sees it."""

    def publish_tree(self, folder: str, files: Mapping[str, Path]) -> Sequence[str]:
        """Have these files, and no others, below `folder`, beside what `write` has put there.

        Names may have folders of their own. Returns those that were new, changed or gone.
        """

    def url(self, path: str) -> str:
        """The URL of `path` as the guest sees it, whether anything is there or not."""

    def fetches(self) -> Sequence[Fetch]:
        """The newest requests, in order, as far back as they are kept; some may be late."""

    def fetches_since(self, position: int) -> tuple[Sequence[Fetch], int]:
        """Those of `fetches` from the running number `position` on, and that of the next one.

        The first request ever has the number 0.
        """

    def catch_up(self, deadline: Deadline) -> bool:
        """Have in `fetches` all that the server has logged by now. `InfraError` if it cannot.

        Whether it logs what it has answered at once: then nothing is missing.
        """

    def faults_fault(self) -> str | None:
        """None if it can do wrong on purpose, or else why not."""

    def set_fault(self, fault: Fault) -> int:
        """Set a fault; its number. Users call `fault`."""

    def clear_faults(self, number: int | None = None) -> None:
        """Take a fault away, or all."""

    def fault_hits(self, number: int) -> int:
        """How often a fault has happened."""

    def fault(
        self,
        path: str,
        kind: FaultKind | None = None,
        *,
        times: int | None = None,
        machine: str = "",
        **how: Any,
    ) -> FaultHandle:
        """See `kboot.server_faults.Faulty`."""

    def tls_fault(self) -> str | None:
        """None if it can serve by HTTPS as well, or else why not."""

    def serve_tls(self, certificate: Certificate) -> TlsServer:
        """Serve by HTTPS as well, if it does not yet. Users call `https`."""

    def https(self, url: str, certificate: Certificate = "on") -> str:
        """See `kboot.server_tls.WithTls`."""

    def check(self) -> None:
        """Return if the server is fine; raise `InfraError` if it is not."""

    def evidence(self, directory: Path) -> None:
        """Write what is needed to look into it later: its configuration and its access log."""


class VirtualMachine(Protocol):
    """One virtual machine, powered on."""

    @property
    def stream(self) -> Stream:
        """Its serial line, connected before the first byte of firmware runs.

        A new one after `restart`; the same one after `reset`.
        """

    @property
    def description(self) -> str:
        """One line for people: accelerator, version, place."""

    def reset(self) -> None:
        """Push the reset button: same machine, memory lost, the serial line stays."""

    def restart(self) -> None:
        """Cut the power and power on again."""

    def set_link(self, *, up: bool) -> None:
        """Plug in or pull the network cable."""

    def check(self) -> None:
        """Return if the host does its part; raise `InfraError` if it does not."""

    def evidence(self, directory: Path) -> None:
        """Write what is needed to start the same machine by hand, and its log."""


class Backend(Protocol):
    """A place to serve from and to boot in."""

    @property
    def name(self) -> str:
        """The name users choose it by."""

    def firmware_fault(
        self, firmware: Firmware, architecture: str = arch.DEFAULT.name
    ) -> str | None:
        """None if its machines of an architecture can have this firmware, or else why not."""

    def disk_fault(self, disk: Disk) -> str | None:
        """None if its machines can have such a disk, or else why not, with the remedy."""

    def processor_fault(self, spec: MachineSpec) -> str | None:
        """None if it has machines with these NUMA nodes, huge pages and cards, or else why not."""

    def chain_loads(self, spec: MachineSpec) -> bool:
        """Whether the machine's own iPXE has to be loaded by the one that is there, from a server.

        `ConfigError` if it cannot be had at all.
        """

    def share_fault(self) -> str | None:
        """None if its machines can have directories of this host, or else why not."""

    def serve(self, deadline: Deadline) -> AbstractContextManager[BootServer]:
        """Start a boot server."""

    def power_on(
        self, spec: MachineSpec, deadline: Deadline
    ) -> AbstractContextManager[VirtualMachine]:
        """Power a machine on; it is gone at the end of the ``with``."""


@runtime_checkable
class SshVirtualMachine(VirtualMachine, Protocol):
    """A machine whose guest can be reached by ssh."""

    def ssh_address(self) -> tuple[str, int]:
        """Host and port here that lead to the guest's port 22. `InfraError` if there are none."""


@runtime_checkable
class LocalVirtualMachine(VirtualMachine, Protocol):
    """A machine that runs on this host's processors, beside all else that does."""

    def speed_fault(self) -> str | None:
        """None if it is fast enough to tell a slow guest from a hung one, or else why not."""

    def starved_s(self) -> float:
        """For how many seconds, since it was started, it had work to do and no processor for it."""

    def silence_s(self) -> float | None:
        """For how many seconds it has received nothing, with its cable plugged in.

        None if it has no connection, or if that is not known.
        """

    def overload_fault(self) -> str | None:
        """None if it has had a processor for most of its work, or else why it had none."""


@runtime_checkable
class RecreatableServer(BootServer, Protocol):
    """A boot server that is made once more where it has gone, with nothing on it."""

    def recreate(self, deadline: Deadline) -> None:
        """Make it once more; what was published is lost."""

    def has(self, url: str) -> bool:
        """Whether what `put` has published there is there still."""


@runtime_checkable
class ExistingVirtualMachine(VirtualMachine, Protocol):
    """A machine that was there before we came."""

    def past(self) -> bytes:
        """What it said before, as far as that is known; `stream` goes on from there. Call once."""


@runtime_checkable
class ReattachableMachine(VirtualMachine, Protocol):
    """A machine whose serial line others may take from us while it runs on."""

    @property
    def console_fault(self) -> str:
        """Why its line cannot be had; empty if it can. `check` raises it as well."""

    def reattach(self) -> bool:
        """Try to have the line again; True if `stream` can be read on, with what was missed."""


@runtime_checkable
class ReplicaVirtualMachine(VirtualMachine, Protocol):
    """A machine of a set that its backend keeps: see `ReplicaBackend`."""

    def take_out(self, why: str) -> None:
        """Have it alone; another takes its place in the set. `InfraError` if it is another's."""

    def delete(self) -> None:
        """Remove it; whoever waits for its boot is told so."""


class Replicas(Protocol):
    """Machines that a backend keeps running by itself, all alike."""

    def machine(self, deadline: Deadline) -> AbstractContextManager[ReplicaVirtualMachine]:
        """One that runs and that nobody else has got from here; it is gone after the ``with``."""

    def scale(self, replicas: int) -> None:
        """Have so many from now on; those that are too many go when their ``with`` ends."""

    def close(self) -> None:
        """Give no more machines; `InfraError` for who waits for one."""


@runtime_checkable
class ReplicaBackend(Protocol):
    """A backend that keeps sets of machines. Ask for it with ``isinstance``."""

    def open_replicas(
        self, spec: MachineSpec, replicas: int, deadline: Deadline
    ) -> AbstractContextManager[Replicas]:
        """So many machines, for the length of the ``with``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistentMachine:
    """A persistent machine that outlives its supervisor, as it is found by its name."""

    #: Told from all others, also from those of the same name.
    identifier: str
    name: str
    #: Who calls it by that name, and whether that is who asks.
    owner: str
    ours: bool
    #: Who started it: ``user@host``.
    user: str
    #: Seconds since it was started.
    age_s: float
    #: Seconds since somebody looked after it.
    silent_s: float
    #: After how much silence it may be removed.
    ttl_s: float
    #: In the backend's own words: ``Running``.
    condition: str
    #: Its supervisor: ``user@host, process 123``; empty if it has none.
    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDisk:
    """A disk that is kept, of a machine or a golden one."""

    name: str
    #: None for a golden one, which others are cloned from.
    machine: str | None
    size_bytes: int
    #: The room that it takes; None where that is not known.
    stored_bytes: int | None
    #: What it began with; empty for nothing.
    source: str
    #: Its file, or its claim.
    place: str
    #: Whether a machine that is on has it.
    in_use: bool
    #: What is not done yet, or wrong; empty for nothing.
    condition: str = ""

    @property
    def label(self) -> str:
        """As users name it: ``MACHINE/NAME``, or ``NAME`` of a golden one."""
        return f"{self.machine}/{self.name}" if self.machine else self.name


class DiskStore(Protocol):
    """Where a backend's kept disks are."""

    @property
    def place(self) -> str:
        """In words: ``on this host``."""

    def disks(self) -> Sequence[StoredDisk]:
        """All of them: those of machines, then golden ones."""

    def remove(self, disk: StoredDisk) -> None:
        """Remove one that nobody uses, with all that was written to it."""

    def clone(self, disk: StoredDisk, name: str) -> None:
        """Make a golden disk of one that nobody uses. `ConfigError` if there is one of the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """A run as it is found where machines run, of any user."""

    #: One line for people: its name, whether it lives, and how that is known.
    summary: str
    #: What belongs to it, one line for each.
    details: tuple[str, ...] = ()
    #: The same for programs.
    values: Mapping[str, object]


@runtime_checkable
class PersistentBackend(Backend, Protocol):
    """A backend for one named machine, which outlives its supervisor."""

    @property
    def identifier(self) -> str:
        """Of the machine, see `PersistentMachine`."""

    @property
    def address(self) -> Mapping[str, str]:
        """The settings that lead to the machine again, from anywhere."""

    @property
    def note(self) -> str:
        """What was given to `keep` last; empty if there is no machine yet.

        If there is one, `serve` and `power_on` lead to what is there.
        """

    def keep(self, note: str) -> None:
        """Put a note beside the machine for who comes next; from now on, it stays."""

    def leave(self) -> None:
        """Let all stay as it is at the end of the ``with``."""

    def check_holder(self) -> None:
        """Raise `InfraError` if somebody else has taken the machine."""


@runtime_checkable
class SnapshotVirtualMachine(VirtualMachine, Protocol):
    """A machine whose state can be saved, and that can go on from a saved one."""

    def snapshot(self, directory: Path) -> None:
        """Write memory and devices to `directory`, an empty one; the guest then runs on."""


@runtime_checkable
class SharedRunBackend(Backend, Protocol):
    """A backend whose machines belong to a run that other processes can join.

    Ask for it with ``isinstance``.
    """

    @property
    def run_name(self) -> str:
        """What others join it by."""


@runtime_checkable
class SnapshotBackend(Backend, Protocol):
    """A backend whose machines can be saved. Ask for it with ``isinstance``."""

    def snapshot_fault(self, spec: MachineSpec) -> str | None:
        """None if such a machine can be saved, or else why not."""

    def snapshot_identity(self, spec: MachineSpec) -> Mapping[str, str]:
        """All that must be the same where such a machine is started again, by name."""

    def power_on(
        self,
        spec: MachineSpec,
        deadline: Deadline,
        *,
        saved: Path | None = None,
        savable: bool = False,
    ) -> AbstractContextManager[SnapshotVirtualMachine]:
        """As `Backend.power_on`; from the state in `saved`, and so that it can be saved."""
