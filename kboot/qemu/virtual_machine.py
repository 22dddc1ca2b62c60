"""One QEMU process: a virtual machine that is powered on, and its serial line."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kboot import process, state
from kboot.backend import Stream
from kboot.capacity import host_cpus
from kboot.deadline import Deadline
from kboot.disks import in_use_fault
from kboot.errors import ConfigError, GuestError, InfraError
from kboot.log import logger, step
from kboot.machine_spec import Link, MachineSpec
from kboot.qemu import firmware, snapshot, traffic
from kboot.qemu.argv import UPLINK, Accelerator, Flash, Ipxe, Wiring, argv, as_text
from kboot.qemu.disks import MachineDisks
from kboot.qemu.late_dhcp import answering_late
from kboot.qemu.qmp import Qmp, QmpClosed
from kboot.qemu.snapshot import GuestMemory, SavedFirmware
from kboot.snapshots import sparse

#: Gives the far end of a cable to a link's network, for each start of QEMU.
Plug = Callable[[Link], socket.socket]


class SocketStream:
    """A connected socket as a `kboot.backend.Stream`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.sendall = connection.sendall

    def recv(self, size: int, /) -> bytes:
        """Wait for bytes; empty at the end of the stream."""
        try:
            return self._socket.recv(size)
        except ConnectionError:
            return b""

    def close(self) -> None:
        """Give the stream up; a `recv` that waits in another thread returns."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


#: What UEFI trusts, in its own format.
_AUTHORITIES = "uefi-authorities.bin"

#: Notes what a machine sends whose DHCP is to answer late.
_NOTES = "asked"

#: QEMU takes its commands in milliseconds; this is for a host that is swapping.
_CONTROL_LIMIT_S = 20.0

#: From the end of its control socket to that of its process.
_END_LIMIT_S = 2.0

#: 32 on 2 busy ones did not come to init in 90 s (Linux 6.1, QEMU 7.2).
_EMULATED_PER_CPU = 4

#: A line of ``info usernet``: protocol, descriptor, source address and port.
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\] +\d+ +([\d.]+) +(\d+) ")


class QemuVirtualMachine:
    """A machine on this host (see `kboot.backend.VirtualMachine`). Made by `power_on`."""

    def __init__(
        self,
        spec: MachineSpec,
        *,
        program: str,
        accelerator: Accelerator,
        directory: Path,
        saved: Path | None = None,
        savable: bool = False,
        firmware: SavedFirmware | None = None,
        tftp: Path | None = None,
        ipxe: Ipxe | None = None,
        forwarder: str | None = None,
        plug: Plug | None = None,
        boot_cables: Mapping[str, Callable[[], socket.socket]] | None = None,
    ) -> None:
        """`saved` is where `snapshot` has put the state to start from; `savable` lets it be saved.

        A machine that is `savable` costs a copy of that state. With `firmware`, every start from
        empty memory goes on from there. `tftp` is a folder that the guest's firmware can read.
        `ipxe` boots from the network in place of the card's ROM. A
        `forwarder` isolates the guest, see `argv`. `plug` connects it to the networks of its links;
        without it, their cards are there and not connected. `boot_cables` give the far ends of
        those of an impaired boot network, by name.
        """
        self.spec = spec
        self._saved = saved
        self._firmware = firmware
        self._tftp = tftp
        self._ipxe = ipxe
        self._forwarder = forwarder
        self._plug = plug
        self._boot_cables = boot_cables or {}
        self._savable = savable
        self._program = program
        self._accelerator: Accelerator = accelerator
        self._directory = directory
        self._log = directory / "qemu.log"
        self._flash = self._prepare_flash()
        self._authorities = self._prepare_authorities()
        self._disks = MachineDisks(
            spec.disks, directory, machine=spec.name, boot_disk=spec.boot_disk
        )
        self._power = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._process: process.Process
        self._qmp: Qmp
        self._stream: Stream
        self._memory: GuestMemory
        self._powered_off = False
        #: Why QEMU has stopped the guest, which it tells once.
        self._stopped = ""
        #: Whether the cables of its links are plugged in, also while it is off.
        self._segment_up = True
        #: On the monotonic clock; None while its cable is pulled.
        self._plugged_at: float | None = 0.0

    # ------------------------------------------------------------------ what the protocol promises

    @property
    def stream(self) -> Stream:
        """Its serial line; a new one after `restart`."""
        return self._stream

    @property
    def description(self) -> str:
        """Such as ``QEMU 7.2.22, tcg``."""
        shortcut = ", saved firmware" if self._firmware else ""
        return f"QEMU {self._qmp.version}, {self._accelerator}{shortcut}"

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def reset(self) -> None:
        """Push the reset button."""
        with self._lock, step("reset"):
            self._command("system_reset")
            if self._powered_off or self._stopped:
                self._command("cont")
                self._powered_off, self._stopped = False, ""

    def restart(self) -> None:
        """Cut the power and power on again: a new QEMU process with empty memory."""
        with self._lock, step("power cycle"):
            self._power.close()
            self._power_on(Deadline(_CONTROL_LIMIT_S), saved=None)

    def snapshot(self, directory: Path) -> None:
        """Write memory and devices to `directory`, an empty one; the guest then runs on.

        `InfraError` if the machine was not made `savable`, or has a device that cannot be saved.
        """
        with self._lock, step("snapshot"):
            if not self._savable:
                raise InfraError(f"the machine {self.spec.name} was not started to be saved")
            deadline = Deadline(_CONTROL_LIMIT_S)
            try:
                snapshot.save_devices(self._qmp, directory / snapshot.DEVICES, deadline)
                self._memory.save(directory)
                self._disks.save(directory)
            except OSError as error:
                raise InfraError(f"the machine cannot be saved: {error}") from error
            finally:
                with contextlib.suppress(QmpClosed):
                    self._command("cont")

    def ssh_address(self) -> tuple[str, int]:
        """Host and port here that lead to the guest's port 22. `InfraError` if there are none."""
        with self._lock:
            text = self._qmp.execute(
                "human-monitor-command",
                Deadline(_CONTROL_LIMIT_S),
                **{"command-line": "info usernet"},
            )
        match = _FORWARD.search(text)
        if match is None:
            raise InfraError(f"QEMU forwards no port to the guest; it says: {text.strip()!r}")
        return match[1], int(match[2])

    def speed_fault(self) -> str | None:
        """None if it is fast enough to tell a slow guest from a hung one, or else why not."""
        cpus, ours = self.spec.cpus, host_cpus()
        if self._accelerator == "tcg" and cpus > _EMULATED_PER_CPU * ours:
            return (
                f"its {cpus} processors are emulated by {ours} of this host, which may be too "
                f"slow: choose cpus = {_EMULATED_PER_CPU * ours} or less"
            )
        return None

    def starved_s(self) -> float:
        """For how many seconds, since it was started, it had work to do and no processor for it."""
        return self._process.busiest_thread()[1]

    def silence_s(self) -> float | None:
        """For how many seconds it has received nothing, with its cable plugged in.

        None if it has no connection, or if this host does not tell.
        """
        if self._plugged_at is None:
            return None
        silent_s = traffic.silence_s(self.pid)
        return None if silent_s is None else min(silent_s, time.monotonic() - self._plugged_at)

    def overload_fault(self) -> str | None:
        """None if it has had a processor for most of its work, or else why it had none."""
        ran_s, waited_s = self._process.busiest_thread()
        if waited_s <= ran_s:
            return None
        return (
            f"this host is overloaded: QEMU ran for {ran_s:.0f} s and waited {waited_s:.0f} s for "
            "a processor; run fewer machines at once"
        )

    def set_link(self, *, up: bool) -> None:
        """Plug in or pull the network cable."""
        with self._lock:
            self._command("set_link", name="net0", up=up)
            self._plugged_at = time.monotonic() if up else None

    def set_segment_link(self, *, up: bool) -> None:
        """Plug in or pull the cables to the networks that it is on with others.

        They stay so when it is powered on again. One that has ended has them pulled anyway.
        """
        with self._lock, contextlib.suppress(QmpClosed):
            self._segment_up = up
            self._set_segment_link()

    def _set_segment_link(self) -> None:
        for number in range(1, len(self.spec.links) + 1):
            self._command("set_link", name=f"net{number}", up=self._segment_up)

    def check(self) -> None:
        """Raise `InfraError` if QEMU is gone or gave up, `GuestError` if the guest powered off."""
        with self._lock:
            if self._process.exit_status() is not None:
                raise InfraError(self._end())
            try:
                self._read_events()
            except QmpClosed:
                # It is just ending; its exit status says more, and is there in a moment.
                return
            if self._stopped:
                raise InfraError(self._stopped)
            if self._powered_off:
                raise GuestError("the guest switched the machine off")

    def evidence(self, directory: Path) -> None:
        """Write qemu.argv, to be run by hand with the serial port on the terminal, and qemu.log."""
        flash = self._flash and replace(self._flash, variables=self._flash.template)
        commands, disks = self._disks.by_hand()
        command = self._argv(
            Wiring.by_hand(), flash, disks, authorities=self._keep_authorities(directory)
        )
        if flash is not None:
            # The machine's own variables are gone by then; their template must stay as it is.
            command.append("-snapshot")
        text = "".join(f"{each}\n" for each in commands) + as_text(command)
        (directory / "qemu.argv").write_text(text, encoding="utf-8")
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(self._log, directory / "qemu.log")

    # ------------------------------------------------------------------------------------- running

    @contextlib.contextmanager
    def powered_on(self, deadline: Deadline) -> Iterator[None]:
        """Run QEMU for the length of the ``with``."""
        try:
            with step(f"QEMU {self.spec.name}"):
                self._power_on(deadline, saved=self._saved)
            yield
        finally:
            self._power.close()

    def _power_on(self, deadline: Deadline, *, saved: Path | None) -> None:
        if saved is None and self._firmware:
            self._start(deadline, self._firmware.directory)
            self._stream.sendall(self._firmware.key)
        else:
            self._start(deadline, saved)

    def _start(self, deadline: Deadline, saved: Path | None) -> None:
        disks = self._disks.begin(saved, savable=self._savable)
        with contextlib.ExitStack() as stack:
            memory = self._open_memory(saved)
            inherited: tuple[int, ...] = ()
            if memory is not None:
                stack.callback(memory.close)
                self._memory = memory
                inherited = (memory.descriptor,)
            serial, serial_far = socket.socketpair()
            control, control_far = socket.socketpair()
            self._stream = SocketStream(serial)
            stack.callback(self._stream.close)
            stack.callback(control.close)
            # Ours until QEMU has them; when it ends, all lines end as well.
            with serial_far, control_far, contextlib.ExitStack() as cables_far:
                plug = self._plug
                cables = {
                    link.network: cables_far.enter_context(plug(link)).fileno()
                    for link in self.spec.links
                    if plug is not None
                }
                for name, cable in self._boot_cables.items():
                    cables[name] = cables_far.enter_context(cable()).fileno()
                wiring = Wiring.inherited(
                    serial_fd=serial_far.fileno(), control_fd=control_far.fileno()
                )
                self._process = stack.enter_context(
                    process.spawn(
                        self._argv(
                            *(wiring, self._flash, disks, memory),
                            incoming=saved is not None,
                            cables=cables,
                        ),
                        log=self._log,
                        pass_fds=(
                            *(serial_far.fileno(), control_far.fileno()),
                            *inherited,
                            *cables.values(),
                        ),
                        env=state.environment(self._directory.parent),
                        # What it has not written yet, nobody will read but on a disk that is kept.
                        stop_grace_s=0.5 if any(disk.keep for disk in self.spec.disks) else 0,
                    )
                )
            try:
                self._qmp = Qmp(control, deadline.within(_CONTROL_LIMIT_S))
                if saved is not None:
                    snapshot.load_devices(self._qmp, saved / snapshot.DEVICES, deadline)
            except QmpClosed:
                self._process.wait(_END_LIMIT_S)
                words = self._process.last_words()
                if fault := in_use_fault(words):
                    raise ConfigError(fault) from None
                raise InfraError(f"QEMU did not start: {words}") from None
            self._powered_off, self._stopped = False, ""
            self._set_uplink(stack)
            if not self._segment_up:
                self._set_segment_link()
            self._power = stack.pop_all()
        logger.debug("QEMU %s runs as pid %d", self._qmp.version, self._process.pid)

    def _set_uplink(self, stack: contextlib.ExitStack) -> None:
        """Cut the network behind the machine's hub, if its DHCP is not to answer, or not soon."""
        if self.spec.dhcp not in {"silent", "late"}:
            return
        self._command("set_link", name=UPLINK, up=False)
        if self.spec.dhcp == "late":
            packets = self._directory / "asked.pcap"
            notes = {"qom-type": "filter-dump", "id": _NOTES, "netdev": "net0"}
            self._command("object-add", **notes, file=str(packets))
            stack.enter_context(answering_late(packets, self._lock, self._connect_uplink))

    def _connect_uplink(self) -> None:
        # The machine may be just ending.
        with contextlib.suppress(QmpClosed):
            self._command("set_link", name=UPLINK, up=True)
            self._command("object-del", id=_NOTES)

    def _open_memory(self, saved: Path | None) -> GuestMemory | None:
        """The file behind the guest's memory; None if it is QEMU's own."""
        if saved is None:
            return GuestMemory.empty(self.spec.memory_mib) if self._savable else None
        try:
            if self._savable:
                return GuestMemory.copied(saved, self.spec.memory_mib)
            return GuestMemory.saved(saved)
        except OSError as error:
            raise InfraError(f"the saved memory cannot be used: {error}") from error

    def _argv(
        self,
        wiring: Wiring,
        flash: Flash | None,
        disks: Sequence[str],
        memory: GuestMemory | None = None,
        *,
        incoming: bool = False,
        cables: Mapping[str, int] | None = None,
        authorities: Path | None = None,
    ) -> list[str]:
        return argv(
            self.spec,
            program=self._program,
            accelerator=self._accelerator,
            wiring=wiring,
            flash=flash,
            memory=None if memory is None else memory.option(),
            incoming=incoming,
            tftp=self._tftp,
            ipxe=self._ipxe,
            forwarder=self._forwarder,
            disks=disks,
            cables={name: str(number) for name, number in (cables or {}).items()},
            authorities=authorities or self._authorities,
        )

    def _prepare_flash(self) -> Flash | None:
        if self.spec.firmware == "bios":
            return None
        found = firmware.find_uefi(self.spec.architecture)
        variables = self._directory / "uefi-variables.fd"
        with found.variables_template.open("rb") as source, variables.open("wb") as target:
            # Some are 64 MiB of zeros, and each machine has its own.
            sparse.copy(source.fileno(), target.fileno())
        return Flash(
            code=found.code,
            variables=variables,
            template=found.variables_template,
            format=found.format,
        )

    def _prepare_authorities(self) -> Path | None:
        """The file with the authorities that UEFI is to trust; a BIOS knows of none."""
        if not self.spec.authority or self.spec.firmware == "bios":
            return None
        from kboot.certificates import signature_list  # noqa: PLC0415  0.1 s, and rarely needed

        path = self._directory / _AUTHORITIES
        path.write_bytes(signature_list(self.spec.authority))
        return path

    def _keep_authorities(self, directory: Path) -> Path | None:
        """The same file among the evidence; the machine's own is gone by then."""
        if self._authorities is None:
            return None
        return Path(shutil.copyfile(self._authorities, (directory / _AUTHORITIES).absolute()))

    def _command(self, command: str, **arguments: object) -> None:
        try:
            self._qmp.execute(command, Deadline(_CONTROL_LIMIT_S), **arguments)
        except QmpClosed as error:
            self._process.wait(_END_LIMIT_S)
            raise QmpClosed(self._end()) from error

    def _end(self) -> str:
        """How QEMU has ended."""
        status = self._process.exit_status()
        if status is None:
            return "QEMU closed its control socket"
        how = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
        words = self._process.last_words()
        return f"QEMU {how}{': ' + words if words else ''}"

    def _read_events(self) -> None:
        for event in self._qmp.events():
            logger.debug("QEMU event %s %s", event.name, event.data)
            if event.name == "SHUTDOWN" and event.data.get("guest"):
                self._powered_off = True
            if self._stopped:
                continue
            if event.name == "BLOCK_IO_ERROR" and event.data.get("nospace"):
                self._stopped = self._disks.full_fault(str(event.data.get("node-name")))
            elif event.name == "STOP" and not self._powered_off:
                status = self._qmp.execute("query-status", Deadline(_CONTROL_LIMIT_S))["status"]
                if status in {"internal-error", "io-error"}:
                    remedy = "; try accel = tcg" if self._accelerator == "kvm" else ""
                    self._stopped = (
                        f"QEMU stopped the guest: {status}{remedy}; see {self._log.name}: "
                        f"{self._process.last_words()}"
                    )
