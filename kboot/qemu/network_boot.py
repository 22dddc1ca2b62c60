"""What fetches a UEFI machine's boot file: the network card's ROM, or the host's own iPXE.

With some of QEMU's ROMs (Debian 12) iPXE boots. Others (Debian 13) only lend their driver to EDK
II's own client, which takes the boot file's URL for a name on a TFTP server and gives up. There,
the machine gets no ROM, and the distribution's iPXE by QEMU's ``-kernel``, which UEFI starts like
any other program: the guest sees no disk of ours, and a snapshot needs none.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kboot import arch, state
from kboot.arch import Architecture
from kboot.console import Console
from kboot.crash import Scanner
from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError, InfraError
from kboot.kernel.debian import fetch_file
from kboot.locks import lock_file
from kboot.log import step
from kboot.machine_spec import Firmware, MachineSpec
from kboot.network_cards import read_rom_firmwares, read_rom_id
from kboot.qemu.accel import qemu_version
from kboot.qemu.argv import Accelerator, Ipxe
from kboot.qemu.firmware import EDK2_CLIENT
from kboot.qemu.saved_firmware import GUEST_GATEWAY
from kboot.qemu.snapshot import firmware_stamps
from kboot.qemu.virtual_machine import QemuVirtualMachine

#: What UEFI says when nothing on the network was to be booted: there is no ROM, say.
_NOTHING = re.compile(r"EFI Internal Shell|No bootable option or device")

#: How an option ROM begins; and where a Linux kernel, which ``ipxe.lkrn`` looks like, says it.
_ROM = b"\x55\xaa"
_SETUP = 0x202

#: For a firmware that a ROM is not for.
_ROM_REMEDIES: Mapping[Firmware, str] = {
    "uefi": "UEFI; give a UEFI machine an ipxe.efi",
    "bios": "a BIOS; give a BIOS one of iPXE's bin/, or ipxe.lkrn",
}

#: Of programs that another iPXE loads by the PXE interface.
_LOADED = {".pxe", ".kpxe", ".kkpxe", ".kkkpxe"}

_MARKER = "kboot: the ROM has iPXE"
_SCRIPT = "probe.ipxe"
_PROBE = MachineSpec(
    name="probe", boot_file=f"tftp://{GUEST_GATEWAY}/{_SCRIPT}", memory_mib=256, firmware="uefi"
)
#: Emulated, on a busy host.
_PROBE_LIMIT_S = 90.0
#: A home directory may be that of many hosts.
_KEPT_ANSWERS = 20


def find_program(architecture: Architecture = arch.DEFAULT) -> Path | None:
    """The distribution's iPXE as a UEFI program; None if there is none."""
    places = architecture.ipxe_places
    return next((path for path in places if _program_fault(path, architecture) is None), None)


def require_program(architecture: Architecture = arch.DEFAULT) -> Path:
    """As `find_program`; `InfraError` with what to install if there is none."""
    found = find_program(architecture)
    if found is None:
        raise InfraError(
            "UEFI machines need iPXE as a UEFI program here, as the network card's ROM of this "
            f"QEMU does not boot with it; install it: {architecture.ipxe_remedy}, "
            "or say where it is: ipxe = PATH"
        )
    return found


def choose(
    program: str,
    accelerator: Accelerator,
    architecture: Architecture = arch.DEFAULT,
    mirror: str = arch.DEBIAN_MIRROR,
) -> Ipxe | None:
    """What boots UEFI machines without an iPXE of the user's: None for the ROM's, or the host's.

    Where distributions have none, it is Debian's, fetched from its `mirror`. `InfraError` if none
    of them can be had.
    """
    if architecture.has_card_roms and rom_has_ipxe(program, accelerator, architecture=architecture):
        return None
    if architecture.ipxe_file and find_program(architecture) is None:
        path = fetch_file(architecture.ipxe_file, architecture=architecture.debian, mirror=mirror)
    else:
        path = require_program(architecture)
    return Ipxe(path=path, is_rom=False)


def read_ipxe(path: Path, firmware: Firmware, architecture: Architecture = arch.DEFAULT) -> Ipxe:
    """The iPXE in a file, told by its content. `ConfigError` if it is none for this firmware."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise ConfigError(f"ipxe: {path} cannot be read: {error.strerror}") from error
    if head[:2] == _ROM:
        if (firmwares := read_rom_firmwares(path)) and firmware not in firmwares:
            raise ConfigError(
                f"ipxe: {path} is a ROM without an image for {_ROM_REMEDIES[firmware]}"
            )
        return Ipxe(path=path, is_rom=True, rom_id=read_rom_id(path))
    if head[_SETUP : _SETUP + 4] == b"HdrS":
        if firmware == "uefi":
            raise ConfigError(f"ipxe: {path} is for a BIOS; give a UEFI machine an ipxe.efi")
        return Ipxe(path=path, is_rom=False)
    if path.suffix in _LOADED:
        # Nothing in it says so.
        if firmware == "uefi":
            raise ConfigError(f"ipxe: {path} is for a BIOS; give a UEFI machine an ipxe.efi")
        return Ipxe(path=path, is_rom=False, is_loaded=True)
    if fault := _program_fault(path, architecture):
        raise ConfigError(f"ipxe: {path} {fault}")
    if firmware == "bios":
        raise ConfigError(f"ipxe: {path} is for UEFI; give a BIOS a .rom or ipxe.lkrn")
    return Ipxe(path=path, is_rom=False)


def rom_has_ipxe(
    program: str,
    accelerator: Accelerator,
    limit_s: float = _PROBE_LIMIT_S,
    architecture: Architecture = arch.DEFAULT,
) -> bool:
    """Whether the ROM boots UEFI machines with iPXE: asked of a guest once, and remembered.

    It is asked again where QEMU, its ROM or the UEFI firmware is another one. `InfraError` if the
    guest does not get so far.
    """
    spec = replace(_PROBE, architecture=architecture.name)
    key = f"{qemu_version(program)}, {firmware_stamps(spec, program)}"
    folder = state.cache_directory("network-boot")
    answers = folder / "rom-has-ipxe.json"
    with lock_file(folder / "lock"):
        known = _recall(answers)
        if key not in known:
            with step("see what the network card's ROM does under UEFI"):
                known[key] = _probe(spec, program, accelerator, Deadline(limit_s))
            kept = dict(list(known.items())[-_KEPT_ANSWERS:])
            new = answers.with_name(f".{answers.name}")
            new.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            new.replace(answers)
        return known[key]


def boot_fault(
    program: str, accelerator: Accelerator, architecture: Architecture, limit_s: float
) -> str | None:
    """None if a UEFI machine runs iPXE, and that a script from DHCP; or else why not."""
    try:
        ipxe = choose(program, accelerator, architecture=architecture)
        spec = replace(_PROBE, architecture=architecture.name)
        if _probe(spec, program, accelerator, Deadline(limit_s), ipxe):
            return None
    except InfraError as error:
        return str(error)
    return "the firmware found nothing to boot"


def _probe(
    spec: MachineSpec,
    program: str,
    accelerator: Accelerator,
    deadline: Deadline,
    ipxe: Ipxe | None = None,
) -> bool:
    with state.run_directory() as run:
        folder = run / "probe"
        folder.mkdir()
        (folder / _SCRIPT).write_text(f"#!ipxe\necho {_MARKER}\nsleep 60\n", encoding="ascii")
        machine = QemuVirtualMachine(
            spec,
            program=program,
            accelerator=accelerator,
            directory=folder,
            tftp=folder,
            ipxe=ipxe,
        )
        with (
            machine.powered_on(deadline),
            Console(machine.stream, record=None, scanner=Scanner(), check=machine.check) as console,
        ):
            wanted = [re.compile(_MARKER), EDK2_CLIENT, _NOTHING]
            try:
                return console.expect(wanted, deadline=deadline, since=0).index == 0
            except GuestError as error:
                # No kernel had a part in it.
                raise InfraError(
                    f"UEFI machines do not come to boot from the network here: {error}"
                ) from error


def _recall(memory: Path) -> dict[str, bool]:
    try:
        known: dict[str, bool] = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known


def _program_fault(path: Path, architecture: Architecture) -> str | None:
    """None if it is a UEFI program for this architecture, or else what is wrong with it."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    at = int.from_bytes(head[0x3C:0x40], "little")
    if head[:2] != b"MZ" or head[at : at + 4] != b"PE\0\0":
        return "is no iPXE: neither a ROM nor a UEFI program nor ipxe.lkrn"
    if int.from_bytes(head[at + 4 : at + 6], "little") != architecture.pe_machine:
        return f"is not for {architecture.name}"
    whole = _program_bytes(head, at)
    if (size := path.stat().st_size) < whole:
        return f"is cut off: it has {size:,} of {whole:,} bytes"
    return None


def _program_bytes(head: bytes, at: int) -> int:
    """How long a program is at least whose PE header is `at`, by the table of its sections."""
    (count,), (optional,) = (struct.unpack_from("<H", head, at + place) for place in (6, 20))
    table = range(at + 24 + optional, at + 24 + optional + 40 * count, 40)
    sections = [
        struct.unpack_from("<II", head, each + 16) for each in table if each + 40 <= len(head)
    ]
    return max((size + begin for size, begin in sections), default=0)
