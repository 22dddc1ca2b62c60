"""How far a boot is, from two witnesses: what the server was asked for, and what the guest printed.

Pure: lines and fetches go in with their times, milestones and faults come out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from kboot.backend import Fetch
from kboot.errors import (
    GuestError,
    GuestTimeout,
    InfraError,
    KbootError,
    NoReboot,
    WrongKernel,
)


class Phase(StrEnum):
    """The milestones of a boot, in their order. A phase ends when its milestone is reached."""

    SCHEDULED = "scheduled"
    FIRMWARE = "firmware"
    DHCP = "dhcp"
    SCRIPT = "script"
    KERNEL = "kernel"
    INITRD = "initrd"
    HANDOFF = "handoff"
    LINUX = "linux"
    INIT = "init"
    READY = "ready"


ORDER = tuple(Phase)

#: Seconds that each phase may take, on a slow and busy host under emulation.
BUDGETS_S: Mapping[Phase, float] = {
    Phase.SCHEDULED: 30,
    Phase.FIRMWARE: 30,
    Phase.DHCP: 45,
    Phase.SCRIPT: 30,
    Phase.KERNEL: 60,
    Phase.INITRD: 120,
    Phase.HANDOFF: 20,
    Phase.LINUX: 30,
    Phase.INIT: 90,
    Phase.READY: 90,
}

Witness = Literal["backend", "server", "console"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone:
    """A phase that was completed: when, and who saw it."""

    phase: Phase
    #: On the monotonic clock.
    time: float
    witness: Witness


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What this boot of this machine will ask for and print, if it is the right one."""

    #: Printed by the boot script, and first in the kernel's command line.
    nonce: str
    #: The query of every request of this boot.
    query: str
    #: Paths below the server's token, as in `Fetch.path`.
    script_path: str
    kernel_path: str
    #: With the names of the files that are behind them, for messages.
    initrd_paths: Mapping[str, str]
    release: str
    command_line: str


#: The first lines after a reset: SeaBIOS, EDK II, iPXE, or our own script.
_RESET = re.compile(r"SeaBIOS|BdsDxe|UEFI|iPXE|kboot: script")
#: The kernel's promise after a panic with panic=N.
_REBOOTING = re.compile(r"Rebooting in (\d+) seconds")
_DHCP = re.compile(r"\bnet\d+: \d+\.\d+\.\d+\.\d+/|^Filename: ")
_SCRIPT = re.compile(r"kboot: script (\w+)")
_HANDOFF = re.compile(r"kboot: handoff (\w+)")
_STOPPED = re.compile(r"kboot: stopped (\w+) (0x[0-9a-f]+)")
_GAVE_UP = re.compile(
    r"No more network devices|No bootable device|PXE-E\d\d: .*|NBP filesize is 0 "
)
_LINUX = re.compile(r"\bLinux version (\S+) ")
_COMMAND_LINE = re.compile(r"(?:Kernel c|\bC)ommand line: (.*)")
_INIT = re.compile(r"Run (?:/\S+) as init process|\bsystemd\[1\]: |^kboot: init$")
#: A loading that iPXE cannot make anything of: "Exec format error", in BIOS and UEFI builds.
_NOT_EXECUTABLE = re.compile(r"0x2e[0-9a-f]{6}")


_LATE: Mapping[Phase, str] = {
    Phase.SCHEDULED: "the machine did not start",
    Phase.FIRMWARE: "the firmware printed nothing",
    Phase.DHCP: "iPXE got no DHCP lease",
    Phase.SCRIPT: "the guest never asked for its boot script",
    Phase.KERNEL: "iPXE did not finish loading the kernel",
    Phase.INITRD: "iPXE did not finish loading the initrd",
    Phase.HANDOFF: "iPXE did not start the kernel",
    Phase.INIT: "the kernel hung before it ran init",
    Phase.READY: "no login prompt",
}


class Milestones:
    """What one boot has reached. A machine that reboots gets a new one."""

    def __init__(self, expected: Expected, *, start: float, again: bool = False) -> None:
        """`again` is for a machine that runs: what it prints counts from its next reset on."""
        self.expected = expected
        self.start = start
        self.again = again
        #: Nothing of this boot was seen yet: the machine is still in its last one.
        self.waits_for_reset = again
        self._reset_delay_s = 0
        self.reached: dict[Phase, Milestone] = {}
        self._fetched: set[str] = set()

    # --------------------------------------------------------------------------- what comes in

    def reach(self, phase: Phase, time: float, witness: Witness) -> None:
        """A milestone is there; the first to see it counts."""
        if phase not in self.reached:
            self.reached[phase] = Milestone(phase=phase, time=time, witness=witness)

    def see_line(self, line: str, time: float) -> None:
        """One whole line from the console. Raises what the line proves to be wrong."""
        if self.waits_for_reset:
            if match := _REBOOTING.search(line):
                self._reset_delay_s = int(match[1])
            if not _RESET.search(line):
                return
            self.waits_for_reset = False
        if line.strip():
            self.reach(Phase.FIRMWARE, time, "console")
        if _DHCP.search(line):
            self.reach(Phase.DHCP, time, "console")
        if match := _SCRIPT.search(line):
            self._require_nonce(match[1])
        if match := _HANDOFF.search(line):
            self._require_nonce(match[1])
            self.reach(Phase.HANDOFF, time, "console")
        if match := _STOPPED.search(line):
            raise self._script_failure(match[1], match[2])
        if Phase.HANDOFF not in self.reached and (match := _GAVE_UP.search(line)):
            raise InfraError(
                f"the firmware found nothing to boot: {match[0].strip()}{_remedy(match[0])}"
            )
        if match := _LINUX.search(line):
            self._see_banner(match[1], time)
        if match := _COMMAND_LINE.search(line):
            self._see_command_line(match[1])
        if Phase.LINUX in self.reached and _INIT.search(line):
            self.reach(Phase.INIT, time, "console")

    def see_prompt(self, time: float) -> None:
        """The login prompt, or a shell's, is there."""
        if not self.waits_for_reset:
            self.reach(Phase.READY, time, "console")

    def see_fetch(self, fetch: Fetch, time: float) -> None:
        """One request to the server, of any machine. Raises what it proves to be wrong."""
        wanted = self.expected
        ours = fetch.query == wanted.query or fetch.path == wanted.script_path
        if not ours:
            return
        if fetch.status == 404:
            raise InfraError(f"the boot server has no {self._name_of(fetch.path)} (404)")
        if fetch.status != 200 or not fetch.complete:
            return
        self._fetched.add(fetch.path)
        if fetch.path == wanted.script_path:
            self.reach(Phase.SCRIPT, time, "server")
        elif fetch.path == wanted.kernel_path:
            self.reach(Phase.KERNEL, time, "server")
        elif fetch.path == "beacon/handoff":
            self.reach(Phase.HANDOFF, time, "server")
        elif fetch.path.startswith("beacon/failed/"):
            _, _, step, error = fetch.path.split("/")
            raise self._script_failure(step, error)
        if wanted.initrd_paths and self._fetched >= set(wanted.initrd_paths):
            self.reach(Phase.INITRD, time, "server")

    # ------------------------------------------------------------------------- what comes out

    @property
    def current(self) -> Phase:
        """The phase that the boot is in: the one after the last milestone it reached."""
        last = max((ORDER.index(phase) for phase in self.reached), default=-1)
        following = ORDER[min(last + 1, len(ORDER) - 1)]
        if following is Phase.INITRD and not self.expected.initrd_paths:
            return Phase.HANDOFF
        return following

    @property
    def since(self) -> float:
        """When the current phase began, on the monotonic clock."""
        return max((milestone.time for milestone in self.reached.values()), default=self.start)

    @property
    def ready(self) -> bool:
        """Whether the login prompt was seen."""
        return Phase.READY in self.reached

    def overdue(self, now: float) -> bool:
        """Whether the current phase has used up its budget."""
        delay = self._reset_delay_s if self.waits_for_reset else 0
        return not self.ready and now - self.since > BUDGETS_S[self.current] + delay

    def durations_s(self) -> dict[str, float]:
        """Seconds from each milestone's forerunner to it, for those reached, in their order."""
        durations = {}
        before = self.start
        for phase in ORDER:
            if milestone := self.reached.get(phase):
                durations[phase.value] = round(max(0.0, milestone.time - before), 3)
                before = max(before, milestone.time)
        return durations

    def contradiction(self) -> KbootError | None:
        """Once it is ready: what the witnesses do not agree on, or None."""
        wanted = self.expected
        for path in (wanted.script_path, wanted.kernel_path, *wanted.initrd_paths):
            if path not in self._fetched:
                return GuestError(
                    "the guest is up, but this machine never fetched "
                    f"{self._name_of(path)} in this boot"
                )
        if Phase.LINUX not in self.reached and not _is_quiet(wanted.command_line):
            return GuestError(
                "the guest is up, but its kernel printed nothing on the serial line; "
                + _console_advice(wanted.command_line)
            )
        return None

    def late(self, waited_s: float) -> KbootError:
        """The error for a boot that came no further in its time."""
        phase = self.current
        waited = f"{waited_s:.0f} s"
        if phase is Phase.LINUX:
            advice = _console_advice(self.expected.command_line)
            return GuestTimeout(f"the kernel was started and printed nothing in {waited}; {advice}")
        if self.again and phase in {Phase.SCHEDULED, Phase.FIRMWARE}:
            return NoReboot(f"the machine did not reboot in {waited}")
        last = max(self.reached, key=ORDER.index, default=None)
        after = f" after {last}" if last else ""
        # Until the kernel runs, nothing can be its fault.
        error = GuestTimeout if phase in {Phase.INIT, Phase.READY} else InfraError
        return error(f"{_LATE[phase]}: nothing more{after} for {waited}")

    # ------------------------------------------------------------------------------ the proofs

    def _require_nonce(self, nonce: str) -> None:
        if nonce != self.expected.nonce:
            raise InfraError(
                f"the machine ran a boot script of another boot ({nonce}, not "
                f"{self.expected.nonce})"
            )

    def _see_banner(self, release: str, time: float) -> None:
        self.reach(Phase.LINUX, time, "console")
        if release != self.expected.release:
            raise WrongKernel(
                f"Linux {release} came up; the kernel that was pushed is {self.expected.release}"
            )

    def _see_command_line(self, command_line: str) -> None:
        if f"kboot.nonce={self.expected.nonce}" not in command_line.split():
            raise WrongKernel(
                f"the kernel that came up was not started by this boot: kboot.nonce="
                f"{self.expected.nonce} is not in its command line: {command_line.strip()[:200]}"
            )

    def _name_of(self, path: str) -> str:
        wanted = self.expected
        if path == wanted.script_path:
            return "boot script"
        if path == wanted.kernel_path:
            return "kernel"
        name = wanted.initrd_paths.get(path)
        return f"initrd {name}" if name else path

    def _script_failure(self, step: str, error: str) -> KbootError:
        names = dict(enumerate(self.expected.initrd_paths.values()))
        what = step
        if match := re.fullmatch(r"initrd(\d+)", step):
            what = f"initrd {names.get(int(match[1]), step)}"
        if step == "boot" or _NOT_EXECUTABLE.fullmatch(error):
            return GuestError(
                f"iPXE loaded the kernel and could not start it: error {error}, "
                f"explained at https://ipxe.org/{error.removeprefix('0x')}"
            )
        return InfraError(
            f"iPXE could not load the {what}: error {error}, "
            f"explained at https://ipxe.org/{error.removeprefix('0x')}"
        )


def _remedy(failure: str) -> str:
    """What to do about firmware that gave up, where that is known."""
    if "PXE-E" not in failure and "NBP" not in failure:
        return ""
    # EDK II's own PXE client: it takes a URL for the name of a file on a TFTP server.
    return (
        "; this UEFI firmware boots from the network by itself instead of by iPXE, and by TFTP "
        "only: give the machine a disk with iPXE (--ipxe-disk), or boot with --firmware bios"
    )


def _is_quiet(command_line: str) -> bool:
    return any(word == "quiet" or word.startswith("loglevel=") for word in command_line.split())


def _console_advice(command_line: str) -> str:
    consoles = [word for word in command_line.split() if word.startswith("console=")]
    serial = [word for word in consoles if word.startswith(("console=ttyS", "console=ttyAMA"))]
    if not serial:
        has = f"it has only {' '.join(consoles)}" if consoles else "it has none"
        return f"its command line has no console=ttyS0 ({has})"
    return (
        "it may have died before its console was up: "
        "add earlyprintk=ttyS0,115200 to its command line to see"
    )
