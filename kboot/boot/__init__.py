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
from kboot.boot.expectations import ExpectedCrash, Wanted, wanted
from kboot.boot.follower import OnPhase
from kboot.boot.phases import Milestone, Phase
from kboot.boot.publish import Load, publish_script, upload
from kboot.boot.saved import SavedBoot
from kboot.boot.settings import BootSettings, settings_for
from kboot.config import Config
from kboot.console import Console
from kboot.crash import Scanner
from kboot.deadline import Deadline
from kboot.errors import KernelCrash

__all__ = [
    "Boot",
    "BootSettings",
    "ExpectedCrash",
    "Load",
    "Milestone",
    "Phase",
    "Wanted",
    "boot",
    "open_backend",
    "power_on",
    "settings_for",
    "upload",
    "wanted",
]


@contextlib.contextmanager
def open_backend(config: Config, *, run: str = "") -> Iterator[Backend]:
    """The backend that the configuration names: the only place that knows their names.

    With `run`, its machines belong to the run of another process, see `SharedRunBackend`.
    """
    match config.backend:
        case "qemu":
            from kboot.qemu import open_qemu  # noqa: PLC0415  only the one that is used

            with open_qemu(
                program=config.qemu,
                accelerator=config.accel,
                nginx=config.nginx,
                saved_firmware_mib=(
                    config.snapshot_cache_mib if config.firmware_start == "saved" else None
                ),
            ) as backend:
                yield backend
        case "kubevirt":
            from kboot.kubevirt import join_kubevirt, open_kubevirt, settings_from  # noqa: PLC0415

            settings = settings_from(config)
            with join_kubevirt(settings, run) if run else open_kubevirt(settings) as cluster:
                yield cluster
        case unknown:
            raise AssertionError(f"config let the backend {unknown!r} pass")


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
) -> Iterator[Boot]:
    """Switch a machine on that boots `kernel` from `server`; it is gone after the ``with``.

    Inside, `Boot.wait_until_ready` follows the boot. `on_phase` is called with each milestone and
    the seconds since power-on. However the block ends, `evidence_directory` then tells about it.

    With `saved`, the machine does not boot but goes on from there, and is ready. With `savable`, it
    can be saved. Both need a `SnapshotBackend`.
    """
    evidence.prepare(evidence_directory)
    start = time.monotonic()
    expected = publish_script(
        server,
        upload(server, kernel, settings),
        evidence_directory=evidence_directory,
        nonce=saved.expected.nonce if saved else None,
    )
    boot_file = server.url(expected.script_path)
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(
            _switch_on(backend, machine_spec(settings, boot_file), settings, saved, savable=savable)
        )
        console = stack.enter_context(
            Console(
                machine.stream,
                record=evidence_directory,
                scanner=Scanner(),
                check=lambda: attempt.check_host(),
                past=saved.past() if saved else b"",
            )
        )
        attempt = Boot(
            kernel=kernel,
            settings=settings,
            expected=expected,
            machine=machine,
            server=server,
            console=console,
            evidence_directory=evidence_directory,
            start=start,
            on_phase=on_phase,
        )
        stack.callback(attempt.channels.hang_up)
        try:
            if saved:
                attempt.adopt(saved)
            yield attempt
        except BaseException as error:
            evidence.write(evidence_directory, attempt, error, duration_s=time.monotonic() - start)
            raise
        # Nobody may have looked at the machine after it died.
        fatal = console.fatal
        crash = KernelCrash(fatal.title, fatal) if fatal else None
        evidence.write(evidence_directory, attempt, crash, duration_s=time.monotonic() - start)


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


def machine_spec(settings: BootSettings, boot_file: str = "") -> MachineSpec:
    """The machine that these settings ask for."""
    return MachineSpec(
        name=settings.machine_name,
        boot_file=boot_file,
        memory_mib=settings.memory_mib,
        cpus=settings.cpus,
        firmware=settings.firmware,
        architecture=settings.architecture,
        ssh=settings.channel != "console",
        extra_arguments=settings.extra_arguments,
    )
