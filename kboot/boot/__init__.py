"""Boot a kernel: bring backend, server, machine and console together, and judge what happens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from kboot.artifacts import Kernel
from kboot.backend import Backend, BootServer, Machine, MachineSpec, SnapshotBackend
from kboot.boot import evidence
from kboot.boot.attempt import Boot
from kboot.boot.attending import attended
from kboot.boot.backends import (
    can_stay,
    open_backend,
    remove_machine,
    reopen_backend,
    staying_machines,
)
from kboot.boot.expectations import ExpectedCrash, Wanted, wanted
from kboot.boot.follower import OnPhase
from kboot.boot.meeting import Met, meet
from kboot.boot.phases import Milestone, Phase
from kboot.boot.publish import Load, publish_script, upload
from kboot.boot.saved import SavedBoot
from kboot.boot.settings import BootSettings, machine_spec, settings_for
from kboot.deadline import Deadline
from kboot.state import disk_faults_named

__all__ = [
    "Boot",
    "BootSettings",
    "ExpectedCrash",
    "Load",
    "Met",
    "Milestone",
    "Phase",
    "Wanted",
    "boot",
    "can_stay",
    "machine_spec",
    "meet",
    "open_backend",
    "power_on",
    "remove_machine",
    "reopen_backend",
    "settings_for",
    "staying_machines",
    "upload",
    "wanted",
]


@contextlib.contextmanager
def power_on(
    backend: Backend,
    server: BootServer,
    kernel: Kernel,
    settings: BootSettings,
    *,
    evidence_directory: Path,
    on_phase: OnPhase = lambda _milestone, _seconds: None,
    saved: SavedBoot | None = None,
    savable: bool = False,
    nonce: str | None = None,
) -> Iterator[Boot]:
    """Switch a machine on that boots `kernel` from `server`; it is gone after the ``with``.

    Inside, `Boot.wait_until_ready` follows the boot. `on_phase` is called with each milestone and
    the seconds since power-on. However the block ends, `evidence_directory` then tells about it.

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
    spec = machine_spec(settings, server.url(expected.script_path))
    with (
        disk_faults_named(evidence_directory),
        _switch_on(backend, spec, settings, saved, savable=savable) as machine,
        attended(
            machine,
            server,
            kernel=kernel,
            settings=settings,
            expected=expected,
            evidence_directory=evidence_directory,
            on_phase=on_phase,
            start=start,
            past=saved.past() if saved else b"",
        ) as attempt,
    ):
        if saved:
            attempt.adopt(saved)
        yield attempt


@contextlib.contextmanager
def boot(
    backend: Backend,
    server: BootServer,
    kernel: Kernel,
    settings: BootSettings,
    *,
    evidence_directory: Path,
    on_phase: OnPhase = lambda _milestone, _seconds: None,
) -> Iterator[Boot]:
    """`power_on`, and wait until the guest is ready. A crash in the block is raised at its end."""
    with power_on(
        backend,
        server,
        kernel,
        settings,
        evidence_directory=evidence_directory,
        on_phase=on_phase,
    ) as attempt:
        attempt.wait_until_ready()
        yield attempt
        attempt.check()


def _switch_on(
    backend: Backend,
    spec: MachineSpec,
    settings: BootSettings,
    saved: SavedBoot | None,
    *,
    savable: bool,
) -> contextlib.AbstractContextManager[Machine]:
    deadline = Deadline(settings.timeout_s)
    if saved is None and not savable:
        return backend.power_on(spec, deadline)
    if not isinstance(backend, SnapshotBackend):
        raise TypeError(f"the backend {backend.name} has no machines that can be saved")
    return backend.power_on(
        spec, deadline, saved=saved.directory if saved else None, savable=savable
    )
