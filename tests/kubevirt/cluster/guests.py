"""What runs in a launcher pod: a real QEMU, or a recorded console."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from kboot import arch, process, state
from kboot.deadline import Deadline
from kboot.machine_spec import MachineSpec
from kboot.qemu import saved_firmware, snapshot
from kboot.qemu.argv import Flash, Wiring, argv
from kboot.qemu.firmware import find_uefi
from kboot.qemu.qmp import Qmp, QmpClosed
from kboot.qemu.snapshot import GuestMemory, SavedFirmware

_LIMIT_S = 30.0


class Guest(Protocol):
    """A guest and its serial line."""

    async def read(self) -> bytes:
        """Wait for bytes from the serial line; empty when the guest is gone."""

    def write(self, data: bytes) -> None:
        """Type."""

    def command(self, name: str) -> None:
        """``reset``, ``pause``, ``unpause``, ``link-up``, ``link-down``."""

    def powered_off(self) -> bool:
        """Whether the guest has switched itself off."""

    def kill(self) -> None:
        """End it at once."""


def has_boot_disk(spec: MachineSpec) -> bool:
    """Whether the machine boots from one of its disks first."""
    return any("bootindex=1" in word for word in spec.extra_arguments)


class QemuGuest:
    """With `firmware` it goes on from there, as `firmware_start = saved` has it on this host."""

    def __init__(
        self,
        spec: MachineSpec,
        directory: Path,
        *,
        paused: bool,
        firmware: SavedFirmware | None = None,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self._stack = contextlib.ExitStack()
        memory = tftp = None
        inherited: tuple[int, ...] = ()
        if firmware:
            memory = GuestMemory.saved(firmware.directory)
            self._stack.callback(memory.close)
            inherited = (memory.descriptor,)
            tftp = directory / "tftp"
            tftp.mkdir(exist_ok=True)
            saved_firmware.serve_next(tftp, spec.boot_file)
            # Its card was saved with its address.
            spec = replace(spec, mac_address=None)
        self._serial, serial_far = socket.socketpair()
        control, control_far = socket.socketpair()
        self._serial.setblocking(False)
        wiring = Wiring.inherited(serial_fd=serial_far.fileno(), control_fd=control_far.fileno())
        command = argv(
            replace(spec, extra_arguments=()),
            program=arch.of(spec.architecture).qemu,
            accelerator="tcg",
            wiring=wiring,
            flash=_flash(spec, directory),
            memory=None if memory is None else memory.option(),
            incoming=firmware is not None,
            tftp=tftp,
        )
        if has_boot_disk(spec):
            # A disk comes first; the card has no ROM of its own.
            command = [word.replace("bootindex=1", "bootindex=2,romfile=") for word in command]
        command += spec.extra_arguments
        with serial_far, control_far:
            self.process = self._stack.enter_context(
                process.spawn(
                    [*command, "-S"],
                    log=directory / "qemu.log",
                    pass_fds=(serial_far.fileno(), control_far.fileno(), *inherited),
                    env=state.environment(directory.parent),
                    stop_grace_s=0.2,
                )
            )
        self._stack.callback(self._serial.close)
        self._stack.callback(control.close)
        self._qmp = Qmp(control, Deadline(_LIMIT_S))
        self._off = False
        if firmware:
            devices = firmware.directory / snapshot.DEVICES
            snapshot.load_devices(self._qmp, devices, Deadline(_LIMIT_S))
            self.write(firmware.key)
        if not paused:
            self.command("unpause")

    async def read(self) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self._serial, 65536)
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._serial.setblocking(True)
            self._serial.sendall(data)
            self._serial.setblocking(False)

    def command(self, name: str) -> None:
        match name:
            case "reset":
                self._execute("system_reset")
            case "pause":
                self._execute("stop")
            case "unpause":
                self._execute("cont")
            case "link-up" | "link-down":
                self._execute("set_link", name="net0", up=name == "link-up")

    def powered_off(self) -> bool:
        with contextlib.suppress(QmpClosed):
            events = self._qmp.events()
            self._off |= any(e.name == "SHUTDOWN" and e.data.get("guest") for e in events)
        return self._off

    def kill(self) -> None:
        self._stack.close()

    def _execute(self, command: str, **arguments: object) -> None:
        self._qmp.execute(command, Deadline(_LIMIT_S), **arguments)


class ReplayGuest:
    """Says what was recorded, in a given time, and then nothing; it does not listen."""

    def __init__(self, transcript: bytes, *, seconds: float) -> None:
        self._pieces = [transcript[at : at + 512] for at in range(0, len(transcript), 512)]
        self._pause = seconds / max(1, len(self._pieces))
        self._killed = asyncio.Event()
        self.typed = b""

    async def read(self) -> bytes:
        if self._pieces:
            await asyncio.sleep(self._pause)
            return self._pieces.pop(0)
        await self._killed.wait()
        return b""

    def write(self, data: bytes) -> None:
        self.typed += data

    def command(self, name: str) -> None:
        """A recording cannot be told anything."""

    def powered_off(self) -> bool:
        return False

    def kill(self) -> None:
        self._killed.set()


def _flash(spec: MachineSpec, directory: Path) -> Flash | None:
    if spec.firmware == "bios":
        return None
    found = find_uefi(spec.architecture)
    variables = directory / "variables.fd"
    shutil.copyfile(found.variables_template, variables)
    return Flash(
        code=found.code,
        variables=variables,
        template=found.variables_template,
        format=found.format,
    )
