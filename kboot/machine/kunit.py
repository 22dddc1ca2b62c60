"""KUnit on a machine: what ran when it booted, modules that run when they are loaded, debugfs."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from kboot.errors import GuestError
from kboot.machine import suites
from kboot.machine.machine import Machine
from kboot.results.cases import SuiteResults
from kboot.rootfs.modules import load_order

#: Where the kernel shows suites that it has, with CONFIG_KUNIT_DEBUGFS.
_DEBUGFS = "/sys/kernel/debug"
_SUITES = f"{_DEBUGFS}/kunit"
_MOUNT = f"[ -d {_SUITES} ] || mount -t debugfs debugfs {_DEBUGFS}"
_UNREAD = "its boot said nothing of KUnit: is CONFIG_KUNIT=y, with suites that are built in?"


class KUnit:
    """KUnit in the kernel of a machine. What it returns is in `Machine.suites`, too."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def boot(self) -> SuiteResults:
        """What the suites that are built in said during the last boot.

        `GuestError` if none did.
        """
        results = read_boot(self._machine)
        if results is None:
            raise GuestError(f"{self._machine.kernel.source}: {_UNREAD}")
        return results

    def load(self, *modules: str, timeout: float | None = None) -> SuiteResults:
        """Load modules by name, with all that they need, or by their ``.ko`` files.

        Their suites run while they are loaded. `ConfigError` for modules that the kernel does not
        have.
        """
        machine = self._machine
        commands = []
        with tempfile.TemporaryDirectory(prefix="kboot-") as directory:
            for module in load_order(machine.kernel, modules):
                file = Path(directory) / f"{module.name}.ko"
                file.write_bytes(module.content)
                target = f"/tmp/{file.name}"  # noqa: S108  in the guest
                machine.guest.put(file, target)
                is_loaded = f"grep -q '^{module.name} ' /proc/modules"
                commands.append(f"{{ {is_loaded} || insmod {shlex.quote(target)}; }}")
        source = f"KUnit modules {' '.join(map(str, modules))}"
        return suites.run(machine, " && ".join(commands), timeout, {}, source=source)

    def suites(self) -> list[str]:
        """The suites that the kernel has, loaded ones too. `GuestError` without debugfs."""
        listed = self._machine.guest.unrecorded().succeed(f"{{ {_MOUNT}; }} && ls {_SUITES}")
        return listed.split()

    def run(self, suite: str, timeout: float | None = None) -> SuiteResults:
        """Have a suite run again (Linux 6.8). `GuestError` if it is not there, or cannot."""
        file = shlex.quote(f"{_SUITES}/{suite}/run")
        command = f"{{ {_MOUNT}; }} && echo 1 >{file}"
        return suites.run(self._machine, command, timeout, {}, source=f"KUnit suite {suite}")


def read_boot(machine: Machine) -> SuiteResults | None:
    """What KUnit said in the last boot of a machine, be it up or not; None if it said nothing."""
    start = machine.report_filter.boot_start
    cases = suites.read(machine, start)
    if not cases:
        return None
    results = SuiteResults(source="KUnit at boot", cases=tuple(cases))
    machine.suites.append(results)
    return results
