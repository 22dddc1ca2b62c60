"""The embedded backend: a local QEMU, and a local nginx to boot it from."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path

from kboot import arch, nginx, process, state
from kboot.backend import BootServer
from kboot.config import Network
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.log import logger, step
from kboot.machine_network import PathCondition
from kboot.machine_spec import Disk, Firmware, Link, MachineSpec
from kboot.qemu import accel, disks, network_boot, processors, saved_firmware, shares
from kboot.qemu.argv import CARD_CABLE, HUB_CABLE, SERVER_ADDRESS, Ipxe
from kboot.qemu.firmware import find_uefi
from kboot.qemu.saved_firmware import GUEST_GATEWAY
from kboot.qemu.segment import Segment, open_segment
from kboot.qemu.snapshot import SavedFirmware, identity, opaque_option
from kboot.qemu.virtual_machine import QemuVirtualMachine
from kboot.snapshots import Entry, SnapshotStore


class _Emulator:
    """What runs machines of one architecture on this host."""

    def __init__(
        self,
        architecture: str,
        *,
        program: str | None,
        accelerator: str,
        ipxe: Path | None,
        debian_mirror: str,
    ) -> None:
        self._row = arch.of(architecture)
        self._ipxe = ipxe
        self._debian_mirror = debian_mirror
        self.program = accel.program_for(self._row, program)
        self.accelerator = accel.choose(self.program, accelerator, self._row)

    def ipxe_of(self, spec: MachineSpec) -> Ipxe | None:
        """What boots such a machine from the network; None for the card's ROM, or for a disk."""
        if spec.boot_disk:
            return None
        if wanted := spec.ipxe or self._ipxe:
            return network_boot.read_ipxe(wanted, spec.firmware, self._row)
        return self.uefi_ipxe if spec.firmware == "uefi" else None

    @cached_property
    def uefi_ipxe(self) -> Ipxe | None:
        """What boots UEFI machines from the network; None for the card's ROM."""
        if self._ipxe is not None:
            return network_boot.read_ipxe(self._ipxe, "uefi", self._row)
        return network_boot.choose(self.program, self.accelerator, self._row, self._debian_mirror)


class QemuBackend:
    """Serve and boot on this host (see `kboot.backend.Backend`). Made by `open_qemu`."""

    name = "qemu"

    def __init__(
        self,
        directory: Path,
        *,
        emulator: Callable[[str], _Emulator],
        nginx: str,
        firmware_store: Callable[[], SnapshotStore],
        network: Network = "open",
        tls_authority: Path | None = None,
    ) -> None:
        self._directory = directory
        self._tls_authority = tls_authority
        self._firmware_store = firmware_store
        #: By the name of an architecture.
        self._emulator = emulator
        self._nginx = process.find_program(nginx)
        isolated = network == "isolated"
        self._forwarder = process.find_program("busybox") if isolated else None
        self._server_address = SERVER_ADDRESS if isolated else GUEST_GATEWAY
        self._segments: dict[str, Segment] = {}

    def firmware_fault(
        self, firmware: Firmware, architecture: str = arch.DEFAULT.name
    ) -> str | None:
        """None if its machines can have this firmware, or else why not."""
        if firmware == "bios":
            return None if arch.of(architecture).has_bios else f"{architecture} has no BIOS"
        try:
            find_uefi(architecture)
            _ = self._emulator(architecture).uefi_ipxe
        except InfraError as error:
            return str(error)
        return None

    def disk_fault(self, disk: Disk) -> str | None:
        """None if its machines can have such a disk, or else why not."""
        return disks.fault(disk)

    def processor_fault(self, spec: MachineSpec) -> str | None:
        """None if it has machines with these NUMA nodes and huge pages, or else why not."""
        return processors.fault(spec)

    def chain_loads(self, spec: MachineSpec) -> bool:
        """Whether the card's own iPXE has to load it; else, QEMU starts it."""
        found = self._emulator(spec.architecture).ipxe_of(spec)
        if found is None or not found.is_loaded:
            return False
        if spec.tls != "off":
            raise ConfigError(
                f"ipxe: {found.path} is loaded by another iPXE, and by HTTP; to boot by HTTPS "
                f"(tls = {spec.tls}), give ipxe.lkrn or a .rom of the same build"
            )
        return True

    def share_fault(self) -> str | None:
        """None if its machines can have directories of this host, or else why not."""
        return None

    @contextlib.contextmanager
    def serve(self, deadline: Deadline) -> Iterator[BootServer]:
        """Start a private nginx on loopback."""
        with nginx.serve(
            self._directory,
            guest_host=self._server_address,
            program=self._nginx,
            deadline=deadline,
            tls_authority=self._tls_authority,
        ) as server:
            yield server

    @contextlib.contextmanager
    def open_network(self, members: Sequence[str], deadline: Deadline) -> Iterator[Segment]:
        """An Ethernet segment for these machines."""
        with open_segment(self._directory, members, deadline) as segment:
            self._segments[segment.name] = segment
            try:
                yield segment
            finally:
                del self._segments[segment.name]

    def _plug(self, link: Link) -> socket.socket:
        segment = self._segments.get(link.network)
        if segment is None:
            raise InfraError(f"the network of {link.member} has ended")
        return segment.plug(link.member)

    def snapshot_fault(self, spec: MachineSpec) -> str | None:
        """None if such a machine can be saved, or else why not."""
        fault = (
            disks.snapshot_fault(spec.disks)
            or shares.snapshot_fault(spec.shares)
            or processors.snapshot_fault(spec)
        )
        if fault:
            return fault
        if spec.dhcp != "normal":
            return f"its DHCP (dhcp = {spec.dhcp}) is what it is started for"
        if spec.impairment:
            return "its impaired network is what it is started for"
        if spec.tls != "off":
            return f"its boot by HTTPS (tls = {spec.tls}) is what it is started for"
        if spec.ipxe and self.chain_loads(spec):
            return f"its iPXE, {spec.ipxe.name}, is loaded by another one at each start"
        option = opaque_option(spec.extra_arguments)
        return option and f"the QEMU argument {option} brings state that a snapshot does not hold"

    def snapshot_identity(self, spec: MachineSpec) -> Mapping[str, str]:
        """QEMU, its firmware, the machine and the host's processor."""
        emulator = self._emulator(spec.architecture)
        return identity(
            spec,
            program=emulator.program,
            accelerator=emulator.accelerator,
            ipxe=emulator.ipxe_of(spec),
            forwarder=self._forwarder,
        )

    @contextlib.contextmanager
    def power_on(
        self,
        spec: MachineSpec,
        deadline: Deadline,
        *,
        saved: Path | None = None,
        savable: bool = False,
    ) -> Iterator[QemuVirtualMachine]:
        """Power a machine on; its files are in a folder of its own in the run directory."""
        emulator = self._emulator(spec.architecture)
        folder = self._directory / f"{spec.name}-{secrets.token_hex(4)}"
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            firmware = None if saved else self.saved_firmware(spec, deadline)
            tftp = folder / "tftp"
            if firmware:
                tftp.mkdir()
                saved_firmware.serve_next(tftp, spec.boot_file)
            cables = stack.enter_context(self._boot_cables(spec, deadline))
            machine = QemuVirtualMachine(
                spec,
                program=emulator.program,
                accelerator=emulator.accelerator,
                directory=folder,
                saved=saved,
                savable=savable,
                firmware=firmware,
                tftp=tftp if firmware else None,
                ipxe=emulator.ipxe_of(spec),
                forwarder=self._forwarder,
                plug=self._plug,
                boot_cables=cables,
            )
            # Its disks may have been downloaded meanwhile.
            stack.enter_context(
                machine.powered_on(Deadline(deadline.seconds) if spec.disks else deadline)
            )
            yield machine

    @contextlib.contextmanager
    def _boot_cables(
        self, spec: MachineSpec, deadline: Deadline
    ) -> Iterator[Mapping[str, Callable[[], socket.socket]]]:
        """Of a boot network that differs: what plugs its cables in at a switch of their own."""
        wanted = spec.impairment
        if wanted is None and not spec.loaded_file:
            yield {}
            return
        with open_segment(self._directory, (CARD_CABLE, HUB_CABLE), deadline) as segment:
            if wanted is not None:
                condition = PathCondition(loss=wanted.loss, delay_s=wanted.delay_s)
                segment.set_paths(
                    {(CARD_CABLE, HUB_CABLE): condition, (HUB_CABLE, CARD_CABLE): condition}
                )
                segment.set_limits(mtu=wanted.mtu, dns=wanted.dns)
            if spec.loaded_file:
                segment.set_boot_file(spec.loaded_file)
            yield {name: partial(segment.plug, name) for name in (CARD_CABLE, HUB_CABLE)}

    def saved_firmware(self, spec: MachineSpec, deadline: Deadline) -> SavedFirmware | None:
        """The state that such a machine starts from, made if need be; None for a real start.

        It is there as long as the backend is open.
        """
        if spec.firmware_start == "real" or spec.boot_disk:
            return None
        if fault := self.snapshot_fault(spec):
            logger.warning("machine %s starts with its real firmware: %s", spec.name, fault)
            return None
        store = self._firmware_store()
        parts = saved_firmware.firmware_parts(self.snapshot_identity(spec))
        entry = store.find(parts)
        if entry is None:
            with store.making(parts, deadline):
                # Another process may have made it in the meantime.
                entry = store.find(parts) or self._save_firmware(store, parts, spec, deadline)
        if entry is None:
            return None
        return SavedFirmware(directory=entry.directory, key=saved_firmware.KEY)

    def _save_firmware(
        self,
        store: SnapshotStore,
        parts: Mapping[str, str],
        spec: MachineSpec,
        deadline: Deadline,
    ) -> Entry | None:
        emulator = self._emulator(spec.architecture)
        folder = self._directory / f"firmware-{secrets.token_hex(4)}"
        folder.mkdir()
        try:
            saved_firmware.serve_first(folder)
            machine = QemuVirtualMachine(
                replace(spec, boot_file=saved_firmware.FIRST_BOOT_FILE),
                program=emulator.program,
                accelerator=emulator.accelerator,
                directory=folder,
                savable=True,
                tftp=folder,
                ipxe=emulator.ipxe_of(spec),
                forwarder=self._forwarder,
            )
            with step(f"save the firmware's state ({spec.firmware})"):
                return store.add(parts, saved_firmware.saver(machine, deadline))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def open_qemu(
    *,
    program: str | None,
    accelerator: str,
    nginx: str,
    snapshot_cache_mib: int,
    ipxe: Path | None = None,
    network: Network = "open",
    debian_mirror: str = arch.DEBIAN_MIRROR,
    tls_authority: Path | None = None,
) -> Iterator[QemuBackend]:
    """The backend, for the length of a run: it owns a run directory.

    `accelerator` is ``auto``, ``kvm`` or ``tcg``; `program` and `nginx` name the two programs or
    give their paths; without a `program`, each architecture has its own. `ipxe` boots machines
    that have none of their own; None for the network card's ROM, and for the distribution's where
    UEFI does not boot with that, or one that is fetched from `debian_mirror`. States of firmware
    are kept among the saved machines, which have `snapshot_cache_mib` together. An ``isolated``
    `network` leads to the boot server only. `tls_authority` signs what it shows by HTTPS; None for
    one of the run. `ProcessError` if a program is missing.
    """
    if program is not None:
        process.find_program(program)

    @cache
    def emulator(architecture: str) -> _Emulator:
        return _Emulator(
            architecture,
            program=program,
            accelerator=accelerator,
            ipxe=ipxe,
            debian_mirror=debian_mirror,
        )

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(state.run_directory())

        @cache
        def firmware_store() -> SnapshotStore:
            place = state.cache_directory("snapshots")
            return stack.enter_context(SnapshotStore(place, limit_mib=snapshot_cache_mib))

        yield QemuBackend(
            directory,
            emulator=emulator,
            nginx=nginx,
            firmware_store=firmware_store,
            network=network,
            tls_authority=tls_authority,
        )
