"""Is everything on this host that the qemu backend needs? Checks as in `kboot.checks`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from kboot import arch, network_cards, nginx, process, state
from kboot.arch import Architecture
from kboot.checks import Check, Finding, Level
from kboot.config import Config
from kboot.errors import KbootError
from kboot.network_cards import CARDS
from kboot.qemu import accel, firmware, network_boot
from kboot.rootfs import foreign_fault, tiny_initramfs

_TIMEOUT_S = 30.0
#: A kernel, its modules and the machine's files; below, a run fails in its midst.
_DISK_ERROR_MIB = 300
_DISK_WARNING_MIB = 1500
#: What QEMU needs beside the guest's own memory, under emulation too.
_QEMU_OVERHEAD_MIB = 200


def _setpriv(_: Config) -> Finding:
    # busybox has a setpriv too, without this option; everything we start would outlive us.
    process.run(["setpriv", "--pdeathsig", "KILL", "true"], timeout_s=_TIMEOUT_S)
    return Finding(level="ok", subject="setpriv", text=process.find_program("setpriv"))


def _qemu(config: Config) -> Finding:
    row = arch.host()
    program = _program(config, row)
    machines = _output(program, "-machine", "help")
    devices = _output(program, "-device", "help")
    for what, listing, wanted in (
        ("machine", machines, row.machine.partition(",")[0]),
        ("device", devices, f'"{CARDS[network_cards.DEFAULT].device}"'),
    ):
        if wanted not in listing:
            return Finding(
                level="error",
                subject="qemu",
                text=f"{program} has no {what} {wanted}",
                remedy=f"use a full QEMU for {row.name}: apt-get install {row.qemu_package}",
            )
    return Finding(level="ok", subject="qemu", text=accel.qemu_version(program))


def _ipxe(config: Config) -> Finding:
    # For every network card, QEMU names one image with a part for BIOS and one for UEFI.
    if not arch.host().has_card_roms:
        return Finding(level="ok", subject="ipxe", text="not the network card's: see uefi")
    image = CARDS[network_cards.DEFAULT].rom
    program = _program(config, arch.host())
    folders = [Path(line) for line in _output(program, "-L", "help").splitlines()]
    for folder in folders:
        if (folder / image).is_file():
            return Finding(level="ok", subject="ipxe", text=str((folder / image).resolve()))
    return Finding(
        level="error",
        subject="ipxe",
        text=f"{image} is in none of {', '.join(map(str, folders))}",
        remedy="install QEMU's iPXE images: apt-get install ipxe-qemu",
    )


def _uefi(config: Config) -> Finding:
    row = arch.host()
    try:
        found = firmware.find_uefi(row.name)
        ipxe = _uefi_ipxe(config, row)
    except KbootError as error:
        wanted = row.firmware(config.firmware) == "uefi"
        text = str(error) if wanted else f"{error} (for firmware = uefi only)"
        return Finding(level="error" if wanted else "warning", subject="uefi", text=text)
    return Finding(level="ok", subject="uefi", text=f"{found.code}, {ipxe}")


def _uefi_ipxe(config: Config, row: Architecture) -> str:
    program = _program(config, row)
    accelerator: Literal["kvm", "tcg"] = "kvm"
    if config.accel == "tcg" or accel.kvm_fault(program, row) is not None:
        accelerator = "tcg"
    # What the user has named is for this host's.
    if config.ipxe is not None and row is arch.host() and config.firmware == "uefi":
        return f"booted by {network_boot.read_ipxe(config.ipxe, 'uefi', row).path}"
    ipxe = network_boot.choose(program, accelerator, row, config.debian_mirror)
    return "booted by the network card's iPXE" if ipxe is None else f"booted by {ipxe.path}"


def _other_architecture(row: Architecture) -> Check:
    """Whether kernels for another architecture than this host's can be booted here."""

    def look(config: Config) -> Finding:
        try:
            program = _program(config, row)
            found = firmware.find_uefi(row.name)
            ipxe = _uefi_ipxe(config, row)
        except KbootError as error:
            return Finding(
                level="warning",
                subject=row.name,
                text=f"{error} (for kernels of {row.name} only)",
                remedy=f"apt-get install {row.qemu_package} {row.uefi_package}",
            )
        text = f"{accel.qemu_version(program)}, {found.code}, {ipxe}"
        return Finding(level="ok", subject=row.name, text=text)

    return Check(subject=row.name, look=look)


def _program(config: Config, row: Architecture) -> str:
    # What the user has named is for this host's.
    return accel.program_for(row, config.qemu if row is arch.host() else None)


def _nginx(config: Config) -> Finding:
    version = process.run([config.nginx, "-v"], timeout_s=_TIMEOUT_S).stderr.decode().strip()
    # Its own test of our configuration, as whoever we are: no root, no port below 1024.
    with state.run_directory() as folder:
        (folder / "tmp").mkdir()
        path = folder / "nginx.conf"
        path.write_text(nginx.configuration(port=8080, token="doctor"), encoding="utf-8")  # noqa: S106
        argv = [config.nginx, "-t", "-q", "-e", "stderr", "-p", str(folder), "-c", str(path)]
        process.run(argv, timeout_s=_TIMEOUT_S)
    return Finding(level="ok", subject="nginx", text=version.removeprefix("nginx version: "))


def _busybox(_: Config) -> Finding:
    return Finding(level="ok", subject="busybox", text=f"initramfs at {tiny_initramfs()}")


def _debian(_: Config) -> Finding:
    subject = "debian"
    try:
        process.find_program("mmdebstrap")
    except KbootError as error:
        text = f"{error} (for rootfs = debian only)"
        return Finding(level="warning", subject=subject, text=text)
    faults = {row.name: foreign_fault(row.name) for row in arch.ARCHITECTURES}
    text = f"for {', '.join(name for name, fault in faults.items() if fault is None) or 'none'}"
    for fault in dict.fromkeys(filter(None, faults.values())):
        others = ", ".join(name for name, each in faults.items() if each == fault)
        text += f"; not for {others}: {fault}"
    return Finding(level="ok", subject=subject, text=text)


def _acceleration(config: Config) -> Finding:
    if config.accel == "tcg":
        return Finding(level="ok", subject="kvm", text="not asked for: accel = tcg")
    row = arch.host()
    fault = accel.kvm_fault(_program(config, row), row)
    if fault is None:
        return Finding(level="ok", subject="kvm", text="runs a guest")
    if config.accel == "kvm":
        return Finding(
            level="error", subject="kvm", text=fault, remedy="mend KVM, or use accel = auto or tcg"
        )
    return Finding(
        level="warning",
        subject="kvm",
        text=f"{fault}; guests are emulated (TCG), some ten times slower",
        remedy="accel = tcg takes it as it is",
    )


def _memory(config: Config) -> Finding:
    needed = config.memory_mib + _QEMU_OVERHEAD_MIB
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    (available,) = (int(line.split()[1]) // 1024 for line in lines if "MemAvailable" in line)
    text = f"{available} MiB available, a machine takes up to {needed}"
    if available >= needed:
        return Finding(level="ok", subject="memory", text=text)
    return Finding(
        level="warning", subject="memory", text=text, remedy="end other programs, or lower memory"
    )


def _passage(_: Config) -> Finding:
    runs = state.runs_directory()
    if os.geteuid() == 0:
        for folder in (runs, *runs.parents):
            if not folder.stat().st_mode & 1:
                return Finding(
                    level="error",
                    subject="passage",
                    text=f"{folder} is closed to the ordinary user that nginx runs as",
                    remedy=f"chmod o+x {folder}, or set TMPDIR to another place",
                )
    return Finding(level="ok", subject="passage", text=f"nginx can read below {runs}")


def _space(subject: str, directory: Callable[[], Path], variable: str) -> Check:
    def look(_: Config) -> Finding:
        folder = directory()
        free_mib = shutil.disk_usage(folder).free >> 20
        # Written to, as a file system can be full, read-only or over quota in many ways.
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(1 << 16))
        except OSError as error:
            return Finding(
                level="error",
                subject=subject,
                text=f"{folder} cannot be written to: {error.strerror}",
                remedy=f"mend it, or set {variable} to another place",
            )
        text = f"{free_mib} MiB free in {folder}"
        if free_mib >= _DISK_WARNING_MIB:
            return Finding(level="ok", subject=subject, text=text)
        level: Level = "error" if free_mib < _DISK_ERROR_MIB else "warning"
        remedy = f"free some, or set {variable} to another place"
        return Finding(level=level, subject=subject, text=text, remedy=remedy)

    return Check(subject=subject, look=look)


def _leftovers(_: Config) -> Finding:
    stale = state.stale_runs()
    if not stale:
        return Finding(level="ok", subject="leftovers", text="no killed run has left anything")
    where = ", ".join(str(run.directory) for run in stale)
    return Finding(
        level="warning",
        subject="leftovers",
        text=f"of killed runs: {where}",
        remedy="kboot gc --yes (the next run does it as well)",
    )


def _output(program: str, *arguments: str) -> str:
    done = process.run([program, *arguments], timeout_s=_TIMEOUT_S)
    return done.stdout.decode(errors="replace")


#: For machines on this host. Leftovers come first: the later checks clean them up.
LOCAL_CHECKS: tuple[Check, ...] = (
    Check(subject="leftovers", look=_leftovers),
    Check(subject="setpriv", look=_setpriv),
    Check(subject="qemu", look=_qemu),
    Check(subject="ipxe", look=_ipxe),
    Check(subject="uefi", look=_uefi),
    Check(subject="kvm", look=_acceleration),
    *(_other_architecture(row) for row in arch.ARCHITECTURES if row is not arch.host()),
    Check(subject="nginx", look=_nginx),
    Check(subject="passage", look=_passage),
    Check(subject="busybox", look=_busybox),
    Check(subject="debian", look=_debian),
    Check(subject="memory", look=_memory),
    _space("run space", state.runs_directory, "TMPDIR"),
    _space("cache space", lambda: state.cache_directory("doctor").parent, "XDG_CACHE_HOME"),
    _space("state space", state.state_directory, "XDG_STATE_HOME"),
)
