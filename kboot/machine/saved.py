"""Booted machines that are saved, and what must be known to go on from them.

A machine that was restored is the one that was booted: the same boot_id, the same nonce on its
command line, and the same witnesses of how it came up. Only its name on the server is another one:
that is by which its next boots are told from those of its twins.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kboot import __version__, ipxe
from kboot.backend import Fetch, SnapshotVirtualMachine
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.guest.saved import guest_digest, prepare
from kboot.machine.boot import Boot
from kboot.machine.phases import Expected, Milestone, Phase, Witness
from kboot.machine.settings import MachineSettings, served
from kboot.snapshots import Entry, SnapshotStore

if TYPE_CHECKING:
    from kboot.machine.machine import Machine

#: What the guest had printed before it was saved.
CONSOLE = "console"

#: For the few commands that make a guest ready, on a slow and busy host.
WAKE_LIMIT_S = 60.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SavedMachine:
    """A machine that was booted and saved."""

    #: Its name in the store.
    key: str
    #: Where the backend finds its state.
    directory: Path
    #: Seconds since the epoch.
    saved_at: float
    expected: Expected
    boot_id: str
    #: Phase, seconds since power-on, witness.
    boot: tuple[tuple[Phase, float, Witness], ...]
    #: What it had asked the boot server for.
    fetches: tuple[Fetch, ...]
    agent: Mapping[str, Any]

    @classmethod
    def of(cls, entry: Entry) -> SavedMachine:
        """What `save` has noted."""
        note = entry.note
        return cls(
            key=entry.key,
            directory=entry.directory,
            saved_at=entry.created,
            expected=Expected(**note["expected"]),
            boot_id=note["boot_id"],
            boot=tuple((Phase(name), *rest) for name, *rest in note["milestones"]),
            fetches=tuple(Fetch(**fetch) for fetch in note["fetches"]),
            agent=note["agent"],
        )

    def past(self) -> bytes:
        """What the guest had printed before it was saved."""
        return (self.directory / CONSOLE).read_bytes()

    def first_boot(self) -> Boot:
        """How it came up, as if it had become ready just now."""
        start = time.monotonic() - max(after for _, after, _ in self.boot)
        boot = Boot(self.expected, start=start)
        for phase, after, witness in self.boot:
            boot.reached[phase] = Milestone(
                phase=phase,
                time=start + after,
                witness=witness,
            )
        for fetch in self.fetches:
            boot.see_fetch(fetch, start)
        # What it fetched is looked at now, and was fetched then.
        boot.sightings = {(phase, witness): start + after for phase, after, witness in self.boot}
        return boot


def parts(
    settings: MachineSettings, *, kernel_sha256: str, initrd_sha256s: tuple[str, ...]
) -> Mapping[str, str]:
    """All that a boot brings to what its saved machine depends on, by name.

    The backend brings the rest: see `SnapshotBackend.snapshot_identity`.
    """
    return {
        "kernel": kernel_sha256,
        "initrds": " ".join(initrd_sha256s),
        "command line": settings.command_line,
        # Whoever demands real firmware does not want a machine that has never seen any.
        "firmware start": settings.spec.firmware_start,
        # Who is logged in; the password only got him in.
        "user": settings.user,
        "architecture": settings.spec.architecture,
        # What runs in the guest's shell must be what this version talks to.
        "kboot": f"{__version__} {guest_digest(settings.spec.architecture)}",
        # What it fetched is what this version asks for.
        "boot script": _script_digest(settings),
        **_cloud_init(settings),
    }


def _cloud_init(settings: MachineSettings) -> Mapping[str, str]:
    if not settings.user_data:
        return {}
    digest = hashlib.sha256(settings.user_data.encode()).hexdigest()
    # It gave the guest that name, and may have written it anywhere.
    return {"cloud-init": f"{digest} {settings.host_name}".rstrip()}


def _script_digest(settings: MachineSettings) -> str:
    """Another one for each boot script and each state of what is served beside it."""
    if settings.boot_script is None and settings.serve is None:
        return ipxe.script_digest()
    digest = hashlib.sha256(ipxe.script_digest().encode())
    if settings.boot_script:
        digest.update(settings.boot_script.text.encode())
    if settings.serve:
        digest.update(json.dumps(served(settings).listing()).encode())
    return digest.hexdigest()[:16]


def save(machine: Machine, store: SnapshotStore, key: Mapping[str, str]) -> SavedMachine | None:
    """Save a machine that has just become ready; it then runs on.

    None if the store has not kept it. `GuestError` if the guest cannot be made ready for it,
    `InfraError` or OSError if the machine cannot be saved.
    """
    vm = machine.vm
    if not isinstance(vm, SnapshotVirtualMachine):
        raise InfraError(f"{machine.machine_description}: this machine cannot be saved")
    agent = prepare(
        machine.console_guest,
        Deadline(WAKE_LIMIT_S),
        architecture=machine.settings.spec.architecture,
    )

    def fill(directory: Path) -> Mapping[str, Any]:
        (directory / CONSOLE).write_bytes(machine.console.raw(0))
        vm.snapshot(directory)
        first = machine.boots[0]
        return {
            "about": f"Linux {machine.kernel.release}, {machine.settings.spec.firmware}, "
            f"{machine.settings.spec.memory_mib} MiB, {machine.machine_description}",
            "expected": dataclasses.asdict(first.expected),
            "boot_id": machine.boot_id,
            "milestones": [
                (milestone.phase, milestone.time - first.start, milestone.witness)
                for milestone in first.reached.values()
            ],
            "fetches": [dataclasses.asdict(fetch) for fetch in machine.fetches],
            "agent": dict(agent),
        }

    entry = store.add(key, fill)
    return None if entry is None else SavedMachine.of(entry)
