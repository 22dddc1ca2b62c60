"""Machines that start with their firmware up: saved right before iPXE asks for a boot script.

The state knows neither kernel nor server. It waits for a key and then takes its next script from
QEMU's own TFTP server, which is another one for each machine; that script names the boot file. So
one state serves all kernels, and nothing of what a boot is judged by is left out but firmware and
DHCP: boot script, kernel and initrds are fetched over HTTP as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kboot import templates
from kboot.console import Console
from kboot.crash import Scanner
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.qemu.firmware import EDK2_CLIENT
from kboot.qemu.virtual_machine import QemuVirtualMachine

#: Where a guest behind QEMU's user network finds the host, and QEMU's own TFTP server.
GUEST_GATEWAY = "10.0.2.2"

_MARKER = "kboot: the firmware is up"
#: A space: what it waits for.
KEY = b" "

_FIRST = "first.ipxe"
_NEXT = "next.ipxe"

#: The boot file of a machine whose firmware is to be saved.
FIRST_BOOT_FILE = f"tftp://{GUEST_GATEWAY}/{_FIRST}"


def firmware_parts(machine: Mapping[str, str]) -> Mapping[str, str]:
    """All that a saved firmware depends on; `machine` is the machine's identity."""
    return {"script": _script(), **machine}


def serve_first(folder: Path) -> None:
    """Put the script that waits into a machine's TFTP folder."""
    (folder / _FIRST).write_text(_script(), encoding="ascii")


def serve_next(folder: Path, boot_file: str) -> None:
    """Put the script that goes on to `boot_file` into a machine's TFTP folder."""
    (folder / _NEXT).write_text(
        f"#!ipxe\nchain --replace {boot_file} || exit 1\n", encoding="ascii"
    )


def saver(machine: QemuVirtualMachine, deadline: Deadline) -> Callable[[Path], Mapping[str, Any]]:
    """For `SnapshotStore.add`: wait until the machine's firmware is up, and save it."""

    def fill(directory: Path) -> Mapping[str, Any]:
        with (
            machine.powered_on(deadline),
            Console(machine.stream, record=None, scanner=Scanner(), check=machine.check) as console,
        ):
            if console.expect([_MARKER, EDK2_CLIENT], deadline=deadline, since=0).index == 1:
                raise InfraError(
                    "the firmware's state cannot be saved: EDK II's own client boots this machine "
                    "from the network instead of iPXE; see kboot doctor"
                )
            machine.snapshot(directory)
        spec = machine.spec
        return {"about": f"{spec.firmware} firmware, {spec.memory_mib} MiB, {machine.description}"}

    return fill


def _script() -> str:
    return templates.render("ipxe/firmware.ipxe", marker=_MARKER, key=KEY[0], gateway=GUEST_GATEWAY)
