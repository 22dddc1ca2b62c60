"""How far a boot is, from two witnesses: what the server was asked for, and what the guest printed.

Pure: lines and fetches go in with their times, milestones and faults come out.
"""

from __future__ import annotations

import re

from kboot.backend import Fetch
from kboot.boot import faults
from kboot.boot.lossy import may_be
from kboot.boot.phases import BUDGETS_S, ORDER, Expected, Milestone, Phase, Witness
from kboot.errors import InfraError, KbootError, WrongKernel

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
        """A milestone is there; the first to see it counts.

        It is no earlier than the start: a reset may print before whoever asked for it knows that
        it was done, and the server's clock is another one.
        """
        if phase not in self.reached:
            time = max(time, self.start)
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
            raise faults.script_failed(self.expected, match[1], match[2])
        if Phase.HANDOFF not in self.reached and (match := _GAVE_UP.search(line)):
            raise faults.nothing_to_boot(match[0].strip())
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
        if not wanted.concerns(fetch):
            return
        if fetch.status == 404:
            raise InfraError(f"the boot server has no {wanted.name_of(fetch.path)} (404)")
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
            raise faults.script_failed(wanted, step, error)
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
        return faults.contradiction(
            self.expected, fetched=self._fetched, printed=Phase.LINUX in self.reached
        )

    def late(self, waited_s: float) -> KbootError:
        """The error for a boot that came no further in its time."""
        return faults.late(
            self.expected,
            self.current,
            waited_s,
            last=max(self.reached, key=ORDER.index, default=None),
            again=self.again,
        )

    # ------------------------------------------------------------------------------ the proofs
    # What has lost a character on its way proves nothing; `identity.prove` then does, from inside.

    def _require_nonce(self, nonce: str) -> None:
        if not may_be(nonce, self.expected.nonce):
            raise InfraError(
                f"the machine ran a boot script of another boot ({nonce}, not "
                f"{self.expected.nonce})"
            )

    def _see_banner(self, release: str, time: float) -> None:
        self.reach(Phase.LINUX, time, "console")
        if not may_be(release, self.expected.release):
            raise WrongKernel(
                f"Linux {release} came up; the kernel that was pushed is {self.expected.release}"
            )

    def _see_command_line(self, command_line: str) -> None:
        ours = f"kboot.nonce={self.expected.nonce}"
        # The space behind it may be what is lost.
        if not any(word.startswith(ours) or may_be(word, ours) for word in command_line.split()):
            raise WrongKernel(
                f"the kernel that came up was not started by this boot: {ours} is not in its "
                f"command line: {command_line.strip()[:200]}"
            )
