"""What a saved machine depends on: it is started again only where all of this is the same."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from kboot import process
from kboot.backend import MachineSpec
from kboot.qemu.accel import qemu_version
from kboot.qemu.argv import Accelerator, Wiring, argv
from kboot.qemu.firmware import find_uefi

#: The firmware that QEMU brings itself, as its machine and its network card name them.
_ROMS = ("bios-256k.bin", "efi-e1000e.rom")


def identity(
    spec: MachineSpec, *, program: str, accelerator: Accelerator, ipxe: Path | None = None
) -> Mapping[str, str]:
    """Everything on this host that has a part in such a machine, by name, for people to read.

    `ipxe` is what boots it in place of the card's ROM. Not in it: the machine's name and its boot
    file, which a saved machine may change.
    """
    neutral = replace(spec, name="any", boot_file="any")
    wiring = Wiring(serial="any", control="any")
    command = argv(
        neutral, program=program, accelerator=accelerator, wiring=wiring, flash=None, ipxe=ipxe
    )
    parts = {
        "qemu": qemu_version(program),
        "qemu program": _stamp(Path(program)),
        "command": " ".join(command),
        "firmware": firmware_stamps(spec, program, ipxe),
        "processor": processor_of(_cpuinfo()),
    }
    if accelerator == "kvm":
        parts["host kernel"] = platform.release()
    return parts


def firmware_stamps(spec: MachineSpec, program: str, ipxe: Path | None = None) -> str:
    """The firmware files of such a machine, each with its length and date."""
    files = [path for folder in _data_folders(program) for path in _roms(folder)]
    if ipxe is not None:
        files.append(ipxe)
    if spec.firmware == "uefi":
        found = find_uefi(spec.architecture)
        files += [found.code, found.variables_template]
    return ", ".join(_stamp(path) for path in files)


def _roms(folder: Path) -> list[Path]:
    return [path for name in _ROMS if (path := folder / name).is_file()]


@lru_cache
def _data_folders(program: str) -> tuple[Path, ...]:
    """Where QEMU looks for firmware: ``qemu -L help``."""
    printed = process.run([program, "-L", "help"], timeout_s=20, check=False).stdout
    return tuple(Path(line) for line in printed.decode(errors="replace").splitlines() if line)


def _stamp(path: Path) -> str:
    """A file's name, length and date: quick, and another one after every upgrade."""
    found = path.stat()
    return f"{path.resolve()} {found.st_size} {found.st_mtime_ns}"


@lru_cache
def _cpuinfo() -> str:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")


def processor_of(text: str) -> str:
    """A host's processor, from its /proc/cpuinfo: its model, and a digest of its features."""
    lines = [line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line]
    facts = {key.strip(): value.strip() for key, value in lines}
    features = facts.get("flags") or facts.get("Features") or ""
    digest = hashlib.sha256(" ".join(sorted(features.split())).encode()).hexdigest()[:16]
    return f"{facts.get('model name', platform.machine())} {digest}"
