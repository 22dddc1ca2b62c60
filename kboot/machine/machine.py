"""One attempt to boot a kernel: the machine, its console, how far it is, and how it ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kboot.backend import BootServer, Fetch, VirtualMachine
from kboot.console import Console, Line
from kboot.crash import CrashReport
from kboot.deadline import Deadline
from kboot.errors import GuestError, InfraError, KernelCrash, NoCrash, NoReboot
from kboot.guest import CommandRecord, Guest
from kboot.guest.login import wake_terminal
from kboot.guest.saved import resume
from kboot.kernel import Kernel
from kboot.log import logger, step
from kboot.machine import expectations, faults, identity
from kboot.machine.boot import Boot
from kboot.machine.channels import Channels
from kboot.machine.expectations import ExpectedCrash, ReportFilter, crash_of
from kboot.machine.follower import Follower, OnPhase
from kboot.machine.phases import Expected, Phase
from kboot.machine.publishing import Load, publish_script
from kboot.machine.saved import WAKE_LIMIT_S, SavedMachine
from kboot.machine.settings import MachineSettings

#: Seconds in which the guest can still answer that it has begun.
_LEAD_S = 1
#: In which a guest that was asked to panic says the first line of it.
_PANIC_LIMIT_S = 30.0


class Machine:
    """A machine from power-on to its end. Made by `kboot.machine.boot`."""

    def __init__(
        self,
        *,
        kernel: Kernel,
        settings: MachineSettings,
        expected: Expected,
        vm: VirtualMachine,
        server: BootServer,
        console: Console,
        evidence_directory: Path,
        start: float,
        on_phase: OnPhase,
    ) -> None:
        self.kernel = kernel
        self.settings = settings
        self.vm = vm
        self.server = server
        self.console = console
        #: Where its logs and configuration are kept.
        self.evidence_directory = evidence_directory
        #: Such as ``QEMU 7.2.22, tcg``.
        self.machine_description = vm.description
        #: The guest's boot_id, one for each boot so far.
        self.boot_ids: list[str] = []
        #: The snapshot that it went on from instead of being booted; None if it was booted.
        self.restored_from: str | None = None
        #: Decides about what the kernel reported in passing.
        self.report_filter = ReportFilter()
        self._expected = expected
        self._next: tuple[Load, Expected] | None = None
        self._fetched_before: tuple[Fetch, ...] = ()
        self._reports_when_ready = 0
        #: How many reports there were when a panic was asked for that has not come.
        self._provoked: int | None = None
        #: What the machine is to come back from.
        self._crash: ExpectedCrash | None = None
        #: The ways into the guest, while it is up.
        self.channels = Channels(vm, console)
        #: Watches how far the machine is, in this boot and in the following ones.
        self.follower = Follower(
            expected,
            start=start,
            server=server,
            console=console,
            report_filter=self.report_filter,
            on_phase=on_phase,
        )

    @property
    def guest(self) -> Guest:
        """The booted system, logged in: by ssh if that was wanted, or else on its console."""
        return self.channels.guest

    @property
    def console_guest(self) -> Guest:
        """The booted system, logged in on its console."""
        return self.channels.on_console

    @property
    def commands(self) -> Sequence[CommandRecord]:
        """The last 100 commands that were run in its guest, in all its boots, oldest first."""
        return self.channels.history.records

    @property
    def boots(self) -> Sequence[Boot]:
        """The milestones of each boot of this machine; the last one may be under way."""
        return self.follower.boots

    @property
    def boot(self) -> Boot:
        """Of the boot under way, or of the last one."""
        return self.follower.boot

    @property
    def pristine(self) -> bool:
        """Whether it is up, and nothing has crashed since it came up."""
        return self.boot.ready and len(self.console.reports) == self._reports_when_ready

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
        ours = filter(self._expected.concerns, self.server.fetches())
        return [*self._fetched_before, *ours]

    def wait_until_ready(self, timeout_s: float | None = None) -> None:
        """Wait for the login prompt, prove that it is the right kernel, and log in.

        Raises `InfraError` if the host is at fault, `GuestError` if the guest is, as soon as that
        can be known.
        """
        deadline = self._deadline(timeout_s)
        self.follower.follow(deadline, lambda: self.boot.ready)
        if self.boot.ready and (fault := self.follower.contradiction(deadline)):
            raise fault
        self._enter(deadline)
        self._hear(self.channels.on_console)

    def _enter(self, deadline: Deadline) -> None:
        """Log in where it is ready, and have it prove what it is."""
        if not self.boot.ready:
            raise self.boot.late(time.monotonic() - self.boot.since)
        guest = self._log_in(deadline)
        self.boot_ids.append(
            identity.prove(guest.unrecorded(), self._expected, known=self.boot_ids)
        )
        self.channels.reach(self.settings, deadline)
        self._reports_when_ready = len(self.console.reports)

    def _log_in(self, deadline: Deadline) -> Guest:
        """On the console. A guest that is perhaps another one is not blamed for its refusal."""
        try:
            with step("log in"):
                return self.channels.log_in(self.settings, deadline)
        except KernelCrash:
            raise
        except GuestError as error:
            raise faults.unless_doubted(error, self.boot.doubt) from error

    def _hear(self, guest: Guest) -> None:
        """`GuestError` if the kernel prints nothing on the serial line, and could."""
        heard = Phase.LINUX in self.boot.reached
        if heard or faults.is_quiet(self._expected.command_line):
            return
        if not identity.prints_on(guest.unrecorded(), self._expected.console):
            raise faults.unheard(self._expected)

    def meet(self, lines: Sequence[Line]) -> None:
        """Take up a machine that somebody else has booted: wait until it is ready, and prove it.

        `lines` are what it has printed in this boot. As `wait_until_ready`; but what it has fetched
        long ago is not asked of the boot server, which may be another one.
        """
        self.follower.see_past(lines)
        if not lines or Phase.LINUX in self.boot.reached:
            self.follower.forgive_resets()
            wake_terminal(self.console, Deadline(WAKE_LIMIT_S))
        deadline = self._deadline(None)
        self.follower.follow(deadline, lambda: self.boot.ready)
        self._enter(deadline)

    def adopt(self, saved: SavedMachine) -> None:
        """Take up a machine that goes on from where it was saved: it is ready, as it was then.

        `GuestError` if the guest does not answer, `InfraError` if it is another one.
        """
        self.follower.go_on_from(saved.boots())
        self.restored_from = saved.key
        self._fetched_before = saved.fetches
        with step("wake the guest"):
            guest, boot_id = resume(
                self.console,
                saved.agent,
                Deadline(WAKE_LIMIT_S),
                history=self.channels.history,
            )
        if boot_id != saved.boot_id:
            raise InfraError(f"another machine was restored: its boot_id is {boot_id}")
        self.boot_ids.append(boot_id)
        self.channels.take_up(guest)
        self.channels.reach(self.settings, Deadline(WAKE_LIMIT_S))
        self._reports_when_ready = len(self.console.reports)

    def wait_for_line(self, pattern: str, timeout_s: float | None = None) -> str:
        """Wait for a line on the console, since power-on, in which `pattern` is found; the line.

        The last line counts as it stands: a prompt never ends. The boot is followed meanwhile, and
        what goes wrong with it raised, as by `wait_until_ready`.
        """
        return self.follower.wait_for_line(pattern, self._deadline(timeout_s))

    def wait_for_reboot(self, timeout_s: float | None = None) -> None:
        """Wait until the machine is back: another script fetch, another kernel, another boot_id.

        Without `timeout_s`, it may take as long as the first boot. `NoReboot` if it runs on,
        `HungAfterPanic` if it stands still after an expected crash, `SecondCrash` or `RebootLoop`
        if it goes down once more, `WrongKernel` if another kernel comes up.
        """
        if self.boot.ready:
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
        self.vm.reset()
        self.wait_for_reboot()

    def restart(self) -> None:
        """Cut the power, switch it on again, and wait until the machine is back."""
        self._expect_reset()
        self.vm.restart()
        self.console.attach(self.vm.stream)
        self.wait_for_reboot()

    def load_next(self, load: Load, nonce: str | None = None) -> str:
        """Switch the boot script, in one step: what the machine loads from its next reset on.

        Returns the nonce by which that is told from all that ran before.
        """
        expected = publish_script(
            self.server, load, evidence_directory=self.evidence_directory, nonce=nonce
        )
        self._next = (load, expected)
        self.follower.knows(expected.nonce)
        return expected.nonce

    def follow_reset(self) -> None:
        """The machine has gone through a reset by itself: wait until it is back.

        What it died of is forgiven.
        """
        self.console.expect_reset()
        self._crash = None
        self._begin_life()
        self.follower.forgive_resets()
        self.wait_until_ready()

    def panic(self) -> None:
        """Have the guest's kernel panic, by sysrq; say so first, with `expect_crash`.

        A test that does not say so fails, also if it ends before the kernel does.
        """
        self._provoked = len(self.console.reports)
        self.guest.spawn(f"sleep {_LEAD_S}; echo c > /proc/sysrq-trigger")

    @contextlib.contextmanager
    def expect_crash(
        self, kind: str | None = None, *, match: str | None = None, timeout_s: float = 60.0
    ) -> Iterator[ExpectedCrash]:
        """The block provokes a crash of this kind or family, see `expectations.Wanted`.

        `match` is found in its title or its first line. When the kernel dies of it, the block ends
        there. `WrongCrash` for another crash, `SecondCrash` for one that does not follow from the
        first, `NoCrash` if none has come `timeout_s` after the block's end. A reboot after it is
        expected as well: see `wait_for_reboot`.
        """
        description = expectations.wanted(kind, match)
        with self.follower.expecting_reset():
            with expectations.expecting(
                self.console, description, tolerates=self._tolerates, timeout_s=timeout_s
            ) as crash:
                yield crash
            self.report_filter.expect(crash)
            self._crash = crash
            if crash.fatal:
                self._begin_life(crash.died_at)

    def _tolerates(self, report: CrashReport) -> bool:
        """Whether the kernel may say this in passing."""
        if report.fatal:
            return False
        return (
            self.settings.warnings == "report" or self.report_filter.allowance(report) is not None
        )

    def check(self) -> None:
        """Return if all is well now; raise what is wrong with the host or the guest."""
        self.console.check()

    def check_reports(self) -> None:
        """`check`, and raise `KernelCrash` for a report that nobody expected or allowed.

        A panic that was asked for is waited for; `NoCrash` if it does not come.
        Each report counts once. The setting ``warnings`` may have it logged instead.
        """
        self._wait_for_panic()
        self.check()
        unexpected = self.report_filter.sort(self.console.reports)
        for report in unexpected:
            logger.warning("%s: the kernel reported: %s", self.settings.machine_name, report.title)
        if self.settings.warnings == "fail" and (crash := crash_of(unexpected)):
            raise crash

    def _wait_for_panic(self) -> None:
        before, self._provoked = self._provoked, None
        if before is None:
            return
        pause = self.console.watch("panic that was asked for")
        for remaining_s in Deadline(_PANIC_LIMIT_S).poll(0):
            if len(self.console.reports) > before:
                return
            pause(remaining_s)
        raise NoCrash(
            f"panic() was called, and no panic came in {_PANIC_LIMIT_S:g} s, last console line: "
            f"{self.console.last_line!r}"
        )

    def check_host(self) -> None:
        """What every wait on the console asks from time to time."""
        self.vm.check()
        self.server.check()
        self.follower.check()

    def _deadline(self, timeout_s: float | None) -> Deadline:
        return Deadline(self.settings.timeout_s if timeout_s is None else timeout_s)

    def _expect_reset(self) -> None:
        self.console.expect_reset()
        self._crash = None
        self.follower.forgive_resets()
        self._begin_life(self.console.mark())

    def _begin_life(self, offset: int = 0) -> None:
        """Its next boot is another one; what was printed before `offset` is of the old life."""
        self.channels.forget()
        self._provoked = None
        if self._next is not None:
            (load, self._expected), self._next = self._next, None
            self.kernel, self.settings = load.kernel, load.settings
        self.follower.begin_boot(self._expected, offset=offset)
