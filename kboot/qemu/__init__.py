"""The embedded backend: a local QEMU, and a local nginx to boot it from."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from kboot import nginx, process, state
from kboot.backend import BootServer, Firmware, MachineSpec
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.qemu import accel
from kboot.qemu.firmware import find_uefi
from kboot.qemu.identity import identity
from kboot.qemu.machine import QemuMachine
from kboot.qemu.snapshot import opaque_option

#: Where a guest behind QEMU's user network finds the loopback interface of its host.
GUEST_GATEWAY = "10.0.2.2"

#: The architectures kboot has a machine for.
_MACHINES = {"x86_64"}


class QemuBackend:
    """Serve and boot on this host (see `kboot.backend.Backend`). Made by `open_qemu`."""

    name = "qemu"

    def __init__(self, directory: Path, *, program: str, accelerator: str, nginx: str) -> None:
        self._directory = directory
        self._program = process.find_program(program)
        self._nginx = process.find_program(nginx)
        self._accelerator = accel.choose(self._program, accelerator)

    def firmware_fault(self, firmware: Firmware) -> str | None:
        """None if its machines can have this firmware, or else why not."""
        if firmware == "bios":
            return None
        try:
            find_uefi("x86_64")
        except InfraError as error:
            return str(error)
        return None

    @contextlib.contextmanager
    def serve(self, deadline: Deadline) -> Iterator[BootServer]:
        """Start a private nginx on loopback."""
        with nginx.serve(
            self._directory, guest_host=GUEST_GATEWAY, program=self._nginx, deadline=deadline
        ) as server:
            yield server

    def snapshot_fault(self, spec: MachineSpec) -> str | None:
        """None if such a machine can be saved, or else why not."""
        option = opaque_option(spec.extra_arguments)
        return option and f"the QEMU argument {option} brings state that a snapshot does not hold"

    def snapshot_identity(self, spec: MachineSpec) -> Mapping[str, str]:
        """QEMU, its firmware, the machine and the host's processor."""
        return identity(spec, program=self._program, accelerator=self._accelerator)

    @contextlib.contextmanager
    def power_on(
        self,
        spec: MachineSpec,
        deadline: Deadline,
        *,
        saved: Path | None = None,
        savable: bool = False,
    ) -> Iterator[QemuMachine]:
        """Switch a machine on; its files are in a folder of its own in the run directory."""
        if spec.architecture not in _MACHINES:
            raise ConfigError(
                f"the qemu backend has no machine for {spec.architecture}; "
                f"it has: {', '.join(sorted(_MACHINES))}"
            )
        folder = self._directory / f"{spec.name}-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            machine = QemuMachine(
                spec,
                program=self._program,
                accelerator=self._accelerator,
                directory=folder,
                saved=saved,
                savable=savable,
            )
            with machine.powered_on(deadline):
                yield machine
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def open_qemu(*, program: str, accelerator: str, nginx: str) -> Iterator[QemuBackend]:
    """The backend, for the length of a run: it owns a run directory.

    `accelerator` is ``auto``, ``kvm`` or ``tcg``; `program` and `nginx` name the two programs or
    give their paths. Raises `ProcessError` if one of them is missing.
    """
    with state.run_directory() as directory:
        yield QemuBackend(directory, program=program, accelerator=accelerator, nginx=nginx)
