"""One attempt to boot a kernel: the machine, its console, how far it is, and how it ended."""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kboot.artifacts import Kernel
from kboot.backend import BootServer, Fetch, Machine
from kboot.boot import expectations
from kboot.boot.channel import reach_by_ssh
from kboot.boot.expectations import ExpectedCrash
from kboot.boot.judge import Judge
from kboot.boot.milestones import Expected, Milestone, Milestones, Phase
from kboot.boot.publish import Load, script_for, script_name
from kboot.boot.saved import WAKE_LIMIT_S, SavedBoot
from kboot.boot.settings import BootSettings
from kboot.console import Console, Line
from kboot.crash import CrashReport
from kboot.deadline import Deadline
from kboot.errors import (
    GuestError,
    GuestTimeout,
    InfraError,
    KernelCrash,
    NoReboot,
    RebootLoop,
    WrongKernel,
)
from kboot.guest import Guest, login
from kboot.guest.resume import resume
from kboot.log import logger, step

#: How often the two witnesses are asked while a boot is under way.
_POLL_S = 0.05

#: At the end of the output: a getty's prompt, or a shell's.
_PROMPT = re.compile(r"(?:^|\s)\S+ login: ?$|^\S*[#$] $")
#: The same when a kernel message came right after it.
_PROMPT_IN_LINE = re.compile(r"^\S+ login: ")

#: For a guest that is up already.
_LOGIN_LIMIT_S = 30

#: Seconds in which the guest can still answer that it has begun.
_LEAD_S = 1

_SCRIPT_LINE = re.compile(r"kboot: script \w")

#: Lines kept for a boot that nobody follows at the moment: more than a reset prints.
_KEPT_LINES = 50_000

OnPhase = Callable[[Milestone, float], None]


class GivenUp(InfraError):
    """A boot was not followed to its end, because something else was asked for."""


class Boot:
    """A machine from power-on to its end. Made by `kboot.boot.boot`."""

    def __init__(
        self,
        *,
        kernel: Kernel,
        settings: BootSettings,
        expected: Expected,
        machine: Machine,
        server: BootServer,
        console: Console,
        evidence_directory: Path,
        start: float,
        on_phase: OnPhase,
    ) -> None:
        self.kernel = kernel
        self.settings = settings
        self.machine = machine
        self.server = server
        self.console = console
        #: Where its logs and configuration are kept.
        self.evidence_directory = evidence_directory
        #: Such as ``QEMU 7.2.22, tcg``.
        self.machine_description = machine.description
        #: The milestones of each boot of this machine; the last one may be under way.
        self.history = [Milestones(expected, start=start)]
        #: The guest's boot_id, one for each boot so far.
        self.boot_ids: list[str] = []
        #: The snapshot that it went on from instead of being booted; None if it was booted.
        self.restored_from: str | None = None
        self._fetched_before: tuple[Fetch, ...] = ()
        self._expected = expected
        self._on_phase = on_phase
        self._announced = 0
        self._guest: Guest | None = None
        self._by_ssh: Guest | None = None
        self._lines: deque[Line] = deque(maxlen=_KEPT_LINES)
        self._fetch_count = 0
        self._scripts_seen = 0
        self._expecting = 0
        self._next: tuple[Load, Expected] | None = None
        self._given_up = threading.Event()
        self._reports_when_ready = 0
        #: What the machine is to come back from.
        self._crash: ExpectedCrash | None = None
        #: Decides about what the kernel reported in passing.
        self.judge = Judge()
        self.milestones.reach(Phase.SCHEDULED, time.monotonic(), "backend")
        console.subscribe(self._see_line)

    # ------------------------------------------------------------------------------ for tests

    @property
    def guest(self) -> Guest:
        """The booted system, logged in: by ssh if that was wanted, or else on its console."""
        return self._by_ssh or self.console_guest

    @property
    def console_guest(self) -> Guest:
        """The booted system, logged in on its console."""
        if self._guest is None:
            raise GuestError("the guest is not up: its boot, or its reboot, was not waited for")
        return self._guest

    @property
    def milestones(self) -> Milestones:
        """Of the boot under way, or of the last one."""
        return self.history[-1]

    @property
    def pristine(self) -> bool:
        """Whether it is up, and nothing has crashed since it came up."""
        return self.milestones.ready and len(self.console.reports) == self._reports_when_ready

    @property
    def boot_id(self) -> str:
        """What the kernel drew for this boot: ``/proc/sys/kernel/random/boot_id``."""
        return self.boot_ids[-1]

    @property
    def command_line(self) -> str:
        """The kernel's command line."""
        return self._expected.command_line

    @property
    def fetches(self) -> Sequence[Fetch]:
        """What this machine has asked the boot server for, in all its boots."""
        wanted = self._expected
        return [
            *self._fetched_before,
            *(
                fetch
                for fetch in self.server.fetches()
                if fetch.query == wanted.query or fetch.path == wanted.script_path
            ),
        ]

    def wait_until_ready(self, timeout_s: float | None = None) -> None:
        """Wait for the login prompt, prove that it is the right kernel, and log in.

        Raises `InfraError` if the host is at fault, `GuestError` if the guest is, as soon as that
        can be known.
        """
        deadline = Deadline(self.settings.timeout_s if timeout_s is None else timeout_s)
        self._follow(deadline, lambda: self.milestones.ready)
        if not self.milestones.ready:
            raise self.milestones.late(time.monotonic() - self.milestones.since)
        if fault := self.milestones.contradiction():
            raise fault
        with step("log in"):
            self._guest = login(self.console, self.settings.user, self.settings.password, deadline)
        self._prove_identity(self._guest)
        self._reach(self._guest, deadline)
        self._reports_when_ready = len(self.console.reports)

    def adopt(self, saved: SavedBoot) -> None:
        """Take up a machine that goes on from where it was saved: it is ready, as it was then.

        `GuestError` if the guest does not answer, `InfraError` if it is another one.
        """
        self.history = [saved.history()]
        self.restored_from = saved.key
        self._fetched_before = saved.fetches
        self._fetch_count = len(self.server.fetches())
        self._scripts_seen = 1
        with step("wake the guest"):
            self._guest, boot_id = resume(self.console, saved.agent, Deadline(WAKE_LIMIT_S))
        if boot_id != saved.boot_id:
            raise InfraError(f"another machine was restored: its boot_id is {boot_id}")
        self.boot_ids.append(boot_id)
        self._reach(self._guest, Deadline(WAKE_LIMIT_S))
        self._reports_when_ready = len(self.console.reports)

    def wait_for_line(self, pattern: str, timeout_s: float | None = None) -> str:
        """Wait for a line on the console, since power-on, in which `pattern` is found; the line.

        The last line counts as it stands: a prompt never ends.

        The boot is followed meanwhile, and what goes wrong with it raised, as by
        `wait_until_ready`.
        """
        deadline = Deadline(self.settings.timeout_s if timeout_s is None else timeout_s)
        regex = re.compile(pattern)
        found: list[str] = []

        def look() -> bool:
            texts = [line.text for line in self.console.lines()]
            found.extend(filter(regex.search, [*texts, self.console.unfinished]))
            return bool(found)

        self._follow(deadline, look)
        if not found:
            raise GuestTimeout(
                f"no line with {pattern!r} in {deadline.seconds:g} s; "
                f"last console line: {self.console.last_line!r}"
            )
        return found[0]

    def wait_for_reboot(self, timeout_s: float | None = None) -> None:
        """Wait until the machine is back: another script fetch, another kernel, another boot_id.

        Without `timeout_s`, it may take as long as the first boot. `NoReboot` if it runs on,
        `HungAfterPanic` if it stands still after an expected crash, `SecondCrash` or `RebootLoop`
        if it goes down once more, `WrongKernel` if another kernel comes up.
        """
        if self.milestones.ready:
            self._begin_life()
        try:
            with step("wait for the reboot"):
                self.wait_until_ready(timeout_s)
        except (KernelCrash, NoReboot) as error:
            if self._crash is None:
                raise
            raise expectations.not_recovered(
                error,
                self._crash,
                command_line=self.command_line,
                last_line=self.console.last_line,
            ) from error
        self._crash = None

    def reboot(self) -> None:
        """Have the guest reboot itself in good order, and wait until it is back."""
        guest = self.console_guest
        self._expect_reset()
        guest.spawn(f"sleep {_LEAD_S}; reboot")
        self.wait_for_reboot()

    def reset(self) -> None:
        """Push the reset button and wait until the machine is back."""
        self._expect_reset()
        self.machine.reset()
        self.wait_for_reboot()

    def restart(self) -> None:
        """Cut the power, switch it on again, and wait until the machine is back."""
        self._expect_reset()
        self.machine.restart()
        self.console.attach(self.machine.stream)
        self.wait_for_reboot()

    def load_next(self, load: Load) -> str:
        """Switch the boot script, in one step: what the machine loads from its next reset on.

        Returns the nonce by which that is told from all that ran before.
        """
        nonce = secrets.token_hex(8)
        expected, text = script_for(self.server, load, nonce)
        self.server.write(script_name(load.settings), text)
        (self.evidence_directory / "boot.ipxe").write_text(text, encoding="utf-8")
        self._next = (load, expected)
        return nonce

    @property
    def has_reset(self) -> bool:
        """Whether the machine began another boot that nobody has asked for."""
        return self._scripts_seen > len(self.history)

    def follow_reset(self) -> None:
        """The machine has gone through a reset by itself: wait until it is back.

        What it died of is forgiven.
        """
        self.console.expect_reset()
        self._crash = None
        self._begin_life()
        self._scripts_seen = len(self.history)
        self.wait_until_ready()

    def give_up(self) -> None:
        """From another thread: whoever waits for the boot to go on gets `GivenUp`."""
        self._given_up.set()

    def lend_console(self) -> None:
        """Leave the guest's terminal to somebody else, until `take_console`."""
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    @property
    def console_is_lent(self) -> bool:
        """Whether the machine is ready and its terminal is somebody else's."""
        return self._guest is None and self.milestones.ready

    def take_console(self) -> None:
        """Log in once more, where somebody else has used the terminal."""
        deadline = Deadline(_LOGIN_LIMIT_S)
        self._guest = login(self.console, self.settings.user, self.settings.password, deadline)

    def panic(self) -> None:
        """Have the guest's kernel panic, by sysrq; say so first, with `expect_crash`."""
        self.guest.spawn(f"sleep {_LEAD_S}; echo c > /proc/sysrq-trigger")

    @contextlib.contextmanager
    def expect_crash(
        self, kind: str | None = None, *, match: str | None = None, timeout_s: float = 60.0
    ) -> Iterator[ExpectedCrash]:
        """The block provokes a crash of this kind or family, see `kboot.boot.expectations.Wanted`.

        `match` is found in its title or its first line. When the kernel dies of it, the block ends
        there. `WrongCrash` for another crash, `SecondCrash` for one that does not follow from the
        first, `NoCrash` if none has come `timeout_s` after the block's end. A reboot after it is
        expected as well: see `wait_for_reboot`.
        """
        description = expectations.wanted(kind, match)
        self._expecting += 1
        try:
            with expectations.expecting(
                self.console, description, tolerates=self._tolerates, timeout_s=timeout_s
            ) as crash:
                yield crash
            self.judge.expect(crash)
            self._crash = crash
            if crash.fatal:
                self._begin_life(crash.died_at)
        finally:
            self._expecting -= 1

    def _tolerates(self, report: CrashReport) -> bool:
        """Whether the kernel may say this in passing."""
        if report.fatal:
            return False
        return self.settings.warnings == "report" or self.judge.allowance(report) is not None

    def check(self) -> None:
        """Return if all is well now; raise what is wrong with the host or the guest."""
        self.console.check()

    def check_reports(self) -> None:
        """`check`, and raise `KernelCrash` for a report that nobody expected or allowed.

        Each report counts once. The setting ``warnings`` may have it logged instead.
        """
        self.check()
        unexpected = self.judge.sort(self.console.reports)
        for report in unexpected:
            logger.warning("%s: the kernel reported: %s", self.settings.machine_name, report.title)
        if unexpected and self.settings.warnings == "fail":
            more = f" (and {len(unexpected) - 1} more)" if len(unexpected) > 1 else ""
            raise KernelCrash(f"the kernel reported: {unexpected[0].title}{more}", unexpected[0])

    def hang_up(self) -> None:
        """End the ssh connection, if there is one."""
        by_ssh, self._by_ssh = self._by_ssh, None
        if by_ssh:
            by_ssh.close()

    # ------------------------------------------------------------------------------- inside

    def _see_line(self, line: Line) -> None:
        """Take a whole line, on the console's reader thread."""
        self._lines.append(line)
        if _SCRIPT_LINE.search(line.text):
            self._scripts_seen += 1

    def _follow(self, deadline: Deadline, done: Callable[[], bool]) -> None:
        """Watch both witnesses until `done`, or until the deadline; raise what goes wrong."""
        pause = self.console.watch("next milestone of the boot")
        self._given_up.clear()
        while not deadline.expired:
            if self._given_up.is_set():
                raise GivenUp(f"the boot was left in its phase {self.milestones.current}")
            self._observe()
            if done():
                return
            now = time.monotonic()
            if self.milestones.overdue(now):
                raise self.milestones.late(now - self.milestones.since)
            pause(_POLL_S)

    def check_host(self) -> None:
        """What every wait on the console asks from time to time."""
        self.machine.check()
        self.server.check()
        if self._scripts_seen > len(self.history) + self._expecting:
            if self.milestones.ready:
                raise GuestError("the guest rebooted by itself")
            raise RebootLoop("reboot loop: the machine rebooted before it was ready")

    def _observe(self) -> None:
        """Look at both witnesses now; raise what they prove to be wrong."""
        offset = time.time() - time.monotonic()
        for fetch in self._new_fetches():
            self.milestones.see_fetch(fetch, fetch.time - offset)
            self._announce()
        while self._lines:
            line = self._lines.popleft()
            old_life = self.milestones.waits_for_reset
            self.milestones.see_line(line.text, line.time_s)
            if old_life and not self.milestones.waits_for_reset:
                self.judge.new_life(line.start)
            if _PROMPT_IN_LINE.search(line.text):
                self.milestones.see_prompt(line.time_s)
            self._announce()
        if _PROMPT.search(self.console.unfinished):
            self.milestones.see_prompt(time.monotonic())
        self._announce()

    def _new_fetches(self) -> Sequence[Fetch]:
        fetches = self.server.fetches()
        new = fetches[self._fetch_count :]
        self._fetch_count = len(fetches)
        return new

    def _announce(self) -> None:
        reached = list(self.milestones.reached.values())
        for milestone in reached[self._announced :]:
            logger.debug("%s (%s)", milestone.phase, milestone.witness)
            self._on_phase(milestone, milestone.time - self.milestones.start)
        self._announced = len(reached)

    def _expect_reset(self) -> None:
        self.console.expect_reset()
        self._crash = None
        # It may have gone through more lives than were waited for.
        self._scripts_seen = len(self.history)
        self._begin_life(self.console.mark())

    def _begin_life(self, offset: int = 0) -> None:
        """The machine is going through a reset, or has been: its next boot is another one.

        What was printed before the byte `offset` is of the old life.
        """
        while self._lines and self._lines[0].start < offset:
            self._lines.popleft()
        self._guest = None
        self.hang_up()
        self._announced = 0
        if self._next is not None:
            (load, self._expected), self._next = self._next, None
            self.kernel, self.settings = load.kernel, load.settings
        now = time.monotonic()
        self.history.append(Milestones(self._expected, start=now, again=True))
        self.milestones.reach(Phase.SCHEDULED, now, "backend")

    def _reach(self, guest: Guest, deadline: Deadline) -> None:
        self._by_ssh = reach_by_ssh(self.machine, self.console, self.settings, guest, deadline)

    def _prove_identity(self, guest: Guest) -> None:
        """The third proof, from inside; and a reboot must have drawn another boot_id."""
        answer = guest.succeed(
            "cat /proc/sys/kernel/random/boot_id && uname -r && cat /proc/cmdline"
        ).splitlines()
        boot_id, release, command_line = answer[0], answer[1], answer[2]
        if f"kboot.nonce={self._expected.nonce}" not in command_line.split():
            raise WrongKernel(
                f"the kernel was not started by this boot: /proc/cmdline is {command_line}"
            )
        if release != self.kernel.release:
            raise WrongKernel(f"uname -r says {release}, not {self.kernel.release}")
        if boot_id in self.boot_ids:
            raise GuestError(f"the guest has not rebooted: its boot_id is still {boot_id}")
        self.boot_ids.append(boot_id)
