"""Boot a kernel: bring backend, server, machine and console together, and judge what happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kboot.backend import Backend, BootServer, MachineSpec, SnapshotBackend, VirtualMachine
from kboot.deadline import Deadline
from kboot.kernel import Kernel
from kboot.machine import evidence
from kboot.machine.backends import (
    can_persist,
    open_backend,
    persistent_machines,
    remove_machine,
    reopen_backend,
)
from kboot.machine.expectations import ExpectedCrash, Wanted, wanted
from kboot.machine.follower import OnPhase
from kboot.machine.machine import Machine
from kboot.machine.phases import Milestone, Phase
from kboot.machine.power import TakenOver, attended, meet
from kboot.machine.publishing import Load, publish_script, upload
from kboot.machine.saved import SavedMachine
from kboot.machine.settings import MachineSettings, settings_for
from kboot.state import disk_faults_named

__all__ = [
    "ExpectedCrash",
    "Load",
    "Machine",
    "MachineSettings",
    "Milestone",
    "Phase",
    "TakenOver",
    "Wanted",
    "can_persist",
    "meet",
    "open_backend",
    "persistent_machines",
    "power_on",
    "remove_machine",
    "reopen_backend",
    "settings_for",
    "upload",
    "wanted",
]


@contextlib.contextmanager
def power_on(
    backend: Backend,
    server: BootServer,
    kernel: Kernel,
    settings: MachineSettings,
    *,
    evidence_directory: Path,
    on_phase: OnPhase = lambda _milestone, _seconds: None,
    saved: SavedMachine | None = None,
    savable: bool = False,
    nonce: str | None = None,
) -> Iterator[Machine]:
    """Switch a machine on that boots `kernel` from `server`; it is gone after the ``with``.

    Inside, `Machine.wait_until_ready` follows the boot. `on_phase` is called with each milestone
    and the seconds since power-on. However the block ends, `evidence_directory` then tells of it.

    With `saved`, the machine does not boot but goes on from there, and is ready. With `savable`, it
    can be saved. Both need a `SnapshotBackend`. The boot's `nonce` is a new one unless it is given.
    """
    start = time.monotonic()
    with disk_faults_named(evidence_directory):
        evidence.prepare(evidence_directory)
        expected = publish_script(
            server,
            upload(server, kernel, settings),
            evidence_directory=evidence_directory,
            nonce=saved.expected.nonce if saved else nonce,
        )
    spec = replace(settings.spec, boot_file=server.url(expected.script_path))
    with (
        disk_faults_named(evidence_directory),
        _switch_on(backend, spec, settings, saved, savable=savable) as vm,
        attended(
            vm,
            server,
            kernel=kernel,
            settings=settings,
            expected=expected,
            evidence_directory=evidence_directory,
            on_phase=on_phase,
            start=start,
            past=saved.past() if saved else b"",
        ) as machine,
    ):
        if saved:
            machine.adopt(saved)
        yield machine


def _switch_on(
    backend: Backend,
    spec: MachineSpec,
    settings: MachineSettings,
    saved: SavedMachine | None,
    *,
    savable: bool,
) -> contextlib.AbstractContextManager[VirtualMachine]:
    deadline = Deadline(settings.timeout_s)
    if saved is None and not savable:
        return backend.power_on(spec, deadline)
    if not isinstance(backend, SnapshotBackend):
        raise TypeError(f"the backend {backend.name} has no machines that can be saved")
    return backend.power_on(
        spec, deadline, saved=saved.directory if saved else None, savable=savable
    )
