"""Which accelerator works here: asked of a guest, not of a device file.

``/dev/kvm`` can exist and open, and a guest under it still stays silent for ever, or QEMU aborts.
So the probe boots one: a boot sector of a few bytes that ends QEMU with a status of its own.
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

#: ``mov al, 42; out 0xf4, al; hlt; jmp -3``: isa-debug-exit makes of it the exit status 42 * 2 + 1.
_BOOT_SECTOR = bytes.fromhex("b02a e6f4 f4 ebfd").ljust(510, b"\0") + b"\x55\xaa"
_EXIT_STATUS = 85

#: Under KVM the probe takes less than a second; more than this is a guest that does not run.
_PROBE_LIMIT_S = 8.0


def probe(program: str, accelerator: Accelerator) -> str | None:
    """Boot the probe: None if its guest ran, or else what went wrong, in a few words."""
    with state.run_directory() as folder:
        disk = folder / "boot-sector"
        # SeaBIOS does not read a disk of one sector.
        disk.write_bytes(_BOOT_SECTOR.ljust(1 << 20, b"\0"))
        command = [
            program,
            "-no-user-config",
            "-nodefaults",
            *("-machine", "q35,graphics=off"),
            *("-accel", accelerator),
            *("-cpu", "host" if accelerator == "kvm" else "max"),
            *("-display", "none"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
            *("-drive", f"file={disk},format=raw,if=ide"),
        ]
        try:
            done = process.run(
                command, timeout_s=_PROBE_LIMIT_S, check=False, env=state.environment(folder)
            )
        except ProcessTimeout:
            return f"a guest does not run: no sign of life in {_PROBE_LIMIT_S:g} s"
    if done.exit_status == _EXIT_STATUS:
        return None
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return words[0] if words else f"QEMU ended with status {done.exit_status}"


def qemu_version(program: str) -> str:
    """The first line of ``qemu --version``."""
    done = process.run([program, "--version"], timeout_s=20)
    return done.stdout.decode(errors="replace").splitlines()[0]


def kvm_fault(program: str) -> str | None:
    """None if KVM runs guests here, or else why not. Probed once for each host and QEMU version."""
    device = Path("/dev/kvm")
    if not device.exists():
        return "there is no /dev/kvm"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"no permission for /dev/kvm; add the user to the group kvm: adduser {_user()} kvm"
    # Another kernel, another QEMU or another host in the same home directory: another answer.
    key = " ".join([platform.node(), platform.release(), qemu_version(program)])
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
