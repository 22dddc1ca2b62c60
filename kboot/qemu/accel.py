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

from kboot import arch, network_cards, process, state
from kboot.arch import Architecture
from kboot.errors import ConfigError, InfraError, ProcessTimeout
from kboot.log import logger
from kboot.network_cards import CARDS
from kboot.qemu.argv import Accelerator

#: Under KVM the probe takes two or three seconds, most of them for DHCP; one that takes longer is
#: no faster than emulation.
_PROBE_LIMIT_S = 10.0
#: Emulated, on a busy host.
_EMULATED_LIMIT_S = 60.0


def probe(
    program: str, accelerator: Accelerator, architecture: Architecture = arch.DEFAULT
) -> str | None:
    """Boot the probe: None if its guest ran, or else what went wrong, in a few words."""
    limit_s = _PROBE_LIMIT_S if accelerator == "kvm" else _EMULATED_LIMIT_S
    guest = architecture.kvm_probe
    if guest is None:
        # It asks for versions and machines here.
        from kboot.qemu import network_boot  # noqa: PLC0415

        return network_boot.boot_fault(program, accelerator, architecture, limit_s)
    with state.run_directory() as folder:
        (folder / "probe").write_bytes(guest.boot_file)
        command = [
            program,
            "-no-user-config",
            "-nodefaults",
            *("-machine", architecture.machine),
            *("-accel", accelerator),
            *("-cpu", "host" if accelerator == "kvm" else architecture.emulated_cpu),
            *("-display", "none"),
            *guest.arguments,
            *("-netdev", f"user,id=net0,tftp={str(folder).replace(',', ',,')},bootfile=probe"),
            *("-device", f"{CARDS[network_cards.DEFAULT].device},netdev=net0,bootindex=1"),
        ]
        try:
            done = process.run(
                command, timeout_s=limit_s, check=False, env=state.environment(folder)
            )
        except ProcessTimeout:
            return f"a guest does not get through its firmware and iPXE in {limit_s:g} s"
    if done.exit_status == guest.exit_status:
        return None
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return words[0] if words else f"QEMU ended with status {done.exit_status}"


def qemu_version(program: str) -> str:
    """The first line of ``qemu --version``."""
    done = process.run([program, "--version"], timeout_s=20)
    return done.stdout.decode(errors="replace").splitlines()[0]


def program_for(architecture: Architecture, wanted: str | None = None) -> str:
    """The path of QEMU for an architecture: the `wanted` one, or the one that is installed.

    `ConfigError` if the wanted one is for another, `ProcessError` if there is none.
    """
    if wanted is not None:
        for other in arch.ARCHITECTURES:
            if other is not architecture and Path(wanted).name == other.qemu:
                raise ConfigError(
                    f"qemu = {wanted} has machines for {other.name}, and the kernel is for "
                    f"{architecture.name}; leave it out, or name another one"
                )
    return process.find_program(wanted or architecture.qemu)


def kvm_fault(program: str, architecture: Architecture = arch.DEFAULT) -> str | None:
    """None if KVM runs guests here, or else why not. Probed once after each start of the host."""
    if not architecture.is_hosts:
        return f"this host's processor is {platform.machine()}, the machine's {architecture.name}"
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
        known = {key: probe(program, "kvm", architecture)}
        new = cache.with_name(f".{cache.name}.{os.getpid()}")
        new.write_text(json.dumps(known), encoding="utf-8")
        new.replace(cache)
    return known[key]


def choose(program: str, wanted: str, architecture: Architecture = arch.DEFAULT) -> Accelerator:
    """The accelerator for ``auto``, ``kvm`` or ``tcg``. `InfraError` if ``kvm`` is broken here."""
    if wanted == "tcg":
        return "tcg"
    fault = kvm_fault(program, architecture)
    if fault is None:
        return "kvm"
    if wanted == "auto" and not architecture.is_hosts:
        # Nobody has to be told, as nothing can be done about it.
        return "tcg"
    if wanted == "kvm":
        raise InfraError(f"KVM was asked for and cannot be used: {fault}")
    logger.warning("KVM cannot be used here (%s); emulating with TCG, which is slower", fault)
    return "tcg"


def _user() -> str:
    return os.environ.get("USER", "$USER")
