"""Which accelerator works here: asked of a guest, not of a device file.

``/dev/kvm`` can exist and open, and a guest under it still stays silent for ever, or QEMU aborts;
or one runs in the BIOS and stops in the network card's ROM, or with its first page table. So the
probe goes the way of every boot: firmware, iPXE, DHCP, and a boot file, which enters 64-bit mode as
Linux does and ends QEMU with a status of its own.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from kboot import process, state
from kboot.errors import InfraError, ProcessTimeout
from kboot.log import logger
from kboot.qemu.argv import Accelerator

#: A boot file for PXE, which runs in real mode at 0000:7c00.
_BOOT_FILE = bytes.fromhex(
    # cli; xor ax, ax; mov ds, ax; mov es, ax; cld
    "fa 31c0 8ed8 8ec0 fc"
    # Three page tables from 0x1000 on, of zeros: mov di, 0x1000; mov ecx, 0xc00; rep stosd
    "bf0010 66b9000c0000 6631c0 66f3ab"
    # They map the first 2 MiB: mov word [0x1000], 0x2003; [0x2000], 0x3003; [0x3000], 0x83
    "c70600100320 c70600200330 c70600308300"
    # lgdt [0x7c78]; mov eax, 0x1000; mov cr3, eax; mov eax, 0xa0 (PAE, PGE); mov cr4, eax
    "660f0116787c 66b800100000 0f22d8 66b8a0000000 0f22e0"
    # EFER.LME: mov ecx, 0xc0000080; rdmsr; or ax, 0x100; wrmsr
    "66b9800000c0 0f32 0d0001 0f30"
    # Paging and protection: mov eax, 0x80000011; mov cr0, eax; jmp far 8:0x7c5f
    "66b811000080 0f22c0 66ea5f7c00000800"
    # In 64-bit mode, isa-debug-exit makes of 42 the exit status 42 * 2 + 1:
    # mov al, 42; out 0xf4, al; hlt; jmp -3
    "b02a e6f4 f4 ebfd 6690"
    # The segments: none, and 64-bit code; and where they are.
    "0000000000000000 00000000009a2000 0f00687c0000"
)
_EXIT_STATUS = 85

#: Under KVM the probe takes two or three seconds, most of them for DHCP; one that takes longer is
#: no faster than emulation.
_PROBE_LIMIT_S = 10.0
#: Emulated, on a busy host.
_EMULATED_LIMIT_S = 60.0


def probe(program: str, accelerator: Accelerator) -> str | None:
    """Boot the probe: None if its guest ran, or else what went wrong, in a few words."""
    limit_s = _PROBE_LIMIT_S if accelerator == "kvm" else _EMULATED_LIMIT_S
    with state.run_directory() as folder:
        (folder / "probe").write_bytes(_BOOT_FILE)
        command = [
            program,
            "-no-user-config",
            "-nodefaults",
            *("-machine", "q35,graphics=off"),
            *("-accel", accelerator),
            *("-cpu", "host" if accelerator == "kvm" else "max"),
            *("-display", "none"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
            *("-netdev", f"user,id=net0,tftp={str(folder).replace(',', ',,')},bootfile=probe"),
            *("-device", "e1000e,netdev=net0,bootindex=1"),
        ]
        try:
            done = process.run(
                command, timeout_s=limit_s, check=False, env=state.environment(folder)
            )
        except ProcessTimeout:
            return f"a guest does not get through its firmware and iPXE in {limit_s:g} s"
    if done.exit_status == _EXIT_STATUS:
        return None
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return words[0] if words else f"QEMU ended with status {done.exit_status}"


def qemu_version(program: str) -> str:
    """The first line of ``qemu --version``."""
    done = process.run([program, "--version"], timeout_s=20)
    return done.stdout.decode(errors="replace").splitlines()[0]


def kvm_fault(program: str) -> str | None:
    """None if KVM runs guests here, or else why not. Probed once after each start of the host."""
    device = Path("/dev/kvm")
    if not device.exists():
        return "there is no /dev/kvm"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"no permission for /dev/kvm; add the user to the group kvm: adduser {_user()} kvm"
    # Another kernel, another QEMU or another host in the same home directory: another answer. A
    # virtual host may have moved to other hardware since it was started last.
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    key = " ".join([platform.node(), platform.release(), boot_id, qemu_version(program)])
    cache = state.cache_directory("accel") / "kvm.json"
    try:
        known: dict[str, str | None] = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known = {key: probe(program, "kvm")}
        new = cache.with_name(f".{cache.name}.{os.getpid()}")
        new.write_text(json.dumps(known), encoding="utf-8")
        new.replace(cache)
    return known[key]


def choose(program: str, wanted: str) -> Accelerator:
    """The accelerator for ``auto``, ``kvm`` or ``tcg``. `InfraError` if ``kvm`` is broken here."""
    if wanted == "tcg":
        return "tcg"
    fault = kvm_fault(program)
    if fault is None:
        return "kvm"
    if wanted == "kvm":
        raise InfraError(f"KVM was asked for and cannot be used: {fault}")
    logger.warning("KVM cannot be used here (%s); emulating with TCG, which is slower", fault)
    return "tcg"


def _user() -> str:
    return os.environ.get("USER", "$USER")
