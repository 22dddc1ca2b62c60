"""A machine under test, through all its boots: its console, its guest, and how it ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kboot.backend import BootServer, Fetch, LocalVirtualMachine, VirtualMachine
from kboot.boot_messages import IpxeBuild, ipxe_build
from kboot.console import Console, Line
from kboot.crash import CrashReport
from kboot.deadline import Deadline
from kboot.errors import GuestError, GuestTimeout, KernelCrash, NoCrash, NoReboot
from kboot.guest import CommandRecord, Guest
from kboot.guest.login import wake_terminal
from kboot.guest.saved import resume
from kboot.kernel import Kernel
from kboot.log import logger, step
from kboot.machine import cloud_init, expectations, faults, suites
from kboot.machine.boot import Boot
from kboot.machine.channels import Channels
from kboot.machine.expectations import ExpectedCrash, ReportFilter, crash_of
from kboot.machine.follower import Follower, OnPhase
from kboot.machine.phases import Expected, Phase
from kboot.machine.publishing import Load, publish_script, publish_tree
from kboot.machine.saved import WAKE_LIMIT_S, SavedMachine
from kboot.machine.settings import MachineSettings
from kboot.results.cases import SuiteResults

#: Seconds in which the guest can still answer that the command was started.
_LEAD_S = 1
#: Seconds from `panic` to the first line of the kernel's report.
_PANIC_LIMIT_S = 30.0


class Machine:
    """A machine from power-on to its end. Made by `power_on` and `take_over`."""

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
        load: Load | None = None,
    ) -> None:
        """With its `load`, every boot that is asked for has a nonce of its own."""
        self.kernel = kernel
        self.settings = settings
        self.vm = vm
        self.server = server
        self.console = console
        #: Where its logs and configuration are kept; to rename the directory is to change this.
        self.evidence_directory = evidence_directory
        #: Such as ``QEMU 7.2.22, tcg``.
        self.machine_description = vm.description
        #: The guest's boot_id, one for each boot so far.
        self.boot_ids: list[str] = []
        #: The snapshot that it went on from instead of being booted; None if it was booted.
        self.restored_from: str | None = None
        #: Called each time it has become ready, before anybody else may use it.
        self.on_ready: Callable[[], None] = lambda: None
        #: Decides about what the kernel reported in passing.
        self.report_filter = ReportFilter()
        self._expected = expected
        #: What was expected of earlier boots, by other nonces.
        self._former: list[Expected] = []
        self._load = load
        self._next: tuple[Load, Expected] | None = None
        self._fetched_before: tuple[Fetch, ...] = ()
        self._reports_when_ready = 0
        #: How many reports there were when `panic` was called; None once the panic has come.
        self._reports_before_panic: int | None = None
        #: What the machine is to come back from.
        self._crash: ExpectedCrash | None = None
        #: What test suites have given, in the order in which they were run.
        self.suites: list[SuiteResults] = []
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
            starved_s=vm.starved_s if isinstance(vm, LocalVirtualMachine) else lambda: 0.0,
            silence_s=vm.silence_s if isinstance(vm, LocalVirtualMachine) else lambda: None,
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
    def name(self) -> str:
        """Its name, unique among the machines of a run."""
        return self.settings.spec.name

    @property
    def commands(self) -> Sequence[CommandRecord]:
        """The last 100 commands that were run in its guest, in all its boots, oldest first."""
        return self.channels.history.records

    @property
    def boots(self) -> Sequence[Boot]:
        """Each boot of this machine, in order; the last one may be under way."""
        return self.follower.boots

    @property
    def boot(self) -> Boot:
        """The boot under way, or the last one."""
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
    def expected(self) -> Expected:
        """What its kernel, its command line and its console have to be."""
        return self._expected

    @property
    def ipxe(self) -> IpxeBuild | None:
        """The iPXE that has booted it last; None if none has said so on its console."""
        return ipxe_build(line.text for line in self.console.lines())

    @property
    def fetches(self) -> Sequence[Fetch]:
        """What this machine has asked the boot server for, in all its boots."""
        boots = [*self._former, self._expected]
        ours = (
            fetch
            for fetch in self.server.fetches()
            if any(expected.concerns(fetch) for expected in boots)
        )
        return [*self._fetched_before, *ours]

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Wait for the login prompt, prove that it is the right kernel, and log in.

        It may take `timeout` seconds; unless given, as long as the settings say. Raises
        `InfraError` if the host is at fault, `GuestError` if the guest is, as soon as that can be
        known.
        """
        deadline = self._deadline(timeout)
        try:
            self._wait_until_ready(deadline)
        except GuestTimeout as error:
            raise faults.unless_slow(error, self._speed_fault(deadline)) from error
        self.on_ready()

    def _speed_fault(self, deadline: Deadline) -> str | None:
        """Why the machine, and not the guest, may have been too slow; None if it was not."""
        if not isinstance(self.vm, LocalVirtualMachine):
            return None
        # What a phase may take is counted without the time that the host was busy elsewhere.
        overload_fault = self.vm.overload_fault() if deadline.expired else None
        return self.vm.speed_fault() or overload_fault

    def _wait_until_ready(self, deadline: Deadline) -> None:
        self.follower.follow(deadline, lambda: self.boot.ready)
        if self.boot.ready and (fault := self.follower.contradiction(deadline)):
            raise fault
        self._log_in_and_verify(deadline)
        self._require_output(self.channels.on_console)

    def _log_in_and_verify(self, deadline: Deadline) -> None:
        """Log in where it is ready, and verify that it runs the right kernel."""
        if not self.boot.ready:
            waited_s = time.monotonic() - self.boot.since
            raise self.boot.late(waited_s, limit_s=deadline.seconds)
        guest = self._log_in(deadline)
        found = faults.prove(guest.unrecorded(), self._expected, known=self.boot_ids)
        self.boot_ids.append(found.boot_id)
        if self._expected.boot_disk:
            self._learn(
                replace(self._expected, release=found.release, command_line=found.command_line)
            )
        self.channels.connect(self.settings, deadline)
        if self.settings.user_data:
            cloud_init.wait_until_done(self.guest.unrecorded(), deadline, self.evidence_directory)
        self._reports_when_ready = len(self.console.reports)

    def _learn(self, expected: Expected) -> None:
        """What its disk has booted is known from now on."""
        self._expected = self.boot.expected = expected
        self.kernel = replace(self.kernel, release=expected.release, version=expected.release)

    def _log_in(self, deadline: Deadline) -> Guest:
        """On the console. A guest that is perhaps another one is not blamed for its refusal."""
        try:
            with step("log in"):
                return self.channels.log_in(self.settings, deadline)
        except KernelCrash:
            raise
        except GuestError as error:
            raise faults.unless_doubted(error, self.boot.doubt) from error

    def _require_output(self, guest: Guest) -> None:
        """`GuestError` if the kernel prints nothing on the serial line, and could."""
        printed = Phase.LINUX in self.boot.reached
        if printed or faults.is_quiet(self._expected.command_line):
            return
        if not faults.prints_on(guest.unrecorded(), self._expected.console):
            raise faults.silent_kernel(self._expected)

    def take_over(self, lines: Sequence[Line]) -> None:
        """Go on with a machine that somebody else has booted: wait until it is ready, verify it.

        `lines` are what it has printed in this boot. As `wait_until_ready`; but what it has fetched
        long ago is not asked of the boot server, which may be another one.
        """
        self.follower.replay(lines)
        if not lines or Phase.LINUX in self.boot.reached:
            self.follower.accept_resets()
            wake_terminal(self.console, Deadline(WAKE_LIMIT_S))
        deadline = self._deadline(None)
        self.follower.follow(deadline, lambda: self.boot.ready)
        self._log_in_and_verify(deadline)

    def resume(self, saved: SavedMachine) -> None:
        """Go on with a machine that was restored: it is ready, as it was when it was saved.

        `GuestError` if the guest does not answer, `InfraError` if it is another one.
        """
        self.follower.resume(saved.first_boot())
        if saved.expected.boot_disk:
            self._learn(saved.expected)
        self.restored_from = saved.key
        self._fetched_before = saved.fetches
        with step("wake the guest"):
            guest = resume(
                self.console,
                saved.agent,
                Deadline(WAKE_LIMIT_S),
                boot_id=saved.boot_id,
                history=self.channels.history,
            )
        self.boot_ids.append(saved.boot_id)
        self.channels.use_console(guest)
        self.channels.connect(self.settings, Deadline(WAKE_LIMIT_S))
        self._reports_when_ready = len(self.console.reports)

    def wait_for_line(self, pattern: str, timeout: float | None = None) -> str:
        """Wait for a line on the console, since power-on, in which `pattern` is found; the line.

        The last line counts as it stands: a prompt never ends. The boot is followed meanwhile, and
        what goes wrong with it raised, as by `wait_until_ready`.
        """
        return self.follower.wait_for_line(pattern, self._deadline(timeout))

    def wait_for_reboot(self, timeout: float | None = None) -> None:
        """Wait until the machine is back: another script fetch, another kernel, another boot_id.

        It may take `timeout` seconds; unless given, as long as the first boot. `NoReboot` if
        it runs on, `HungAfterPanic` if it stands still after an expected crash, `SecondCrash` or
        `RebootLoop` if it goes down once more, `WrongKernel` if another kernel comes up.
        """
        if self.boot.ready:
            self._begin_boot()
        try:
            with step("wait for the reboot"):
                self.wait_until_ready(timeout)
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

    def reboot(self, timeout: float | None = None) -> None:
        """Have the guest reboot itself cleanly, and wait until it is back."""
        self._renew_nonce()
        guest, offset = self.console_guest, self.console.mark()
        self.console.expect_reset()
        guest.spawn(f"sleep {_LEAD_S}; reboot")
        self._expect_reset(offset)
        self.wait_for_reboot(timeout)

    def reset(self, timeout: float | None = None) -> None:
        """Push the reset button and wait until the machine is back."""
        self._renew_nonce()
        self._expect_reset()
        self.vm.reset()
        self.wait_for_reboot(timeout)

    def restart(self, timeout: float | None = None) -> None:
        """Cut the power, power on again, and wait until the machine is back."""
        self._renew_nonce()
        self._expect_reset()
        self.vm.restart()
        self.console.attach(self.vm.stream)
        self.wait_for_reboot(timeout)

    def load_next(self, load: Load, nonce: str | None = None) -> str:
        """Replace the boot script, in one step: what the machine loads from its next reset on.

        Returns the nonce by which that is told from all that ran before.
        """
        expected = publish_script(
            self.server, load, evidence_directory=self.evidence_directory, nonce=nonce
        )
        self._next = (load, expected)
        self.follower.accept_nonce(expected.nonce)
        return expected.nonce

    def follow_reset(self) -> None:
        """The machine has gone through a reset by itself: wait until it is back.

        What it died of is no fault any more.
        """
        self.console.expect_reset()
        self._crash = None
        self._begin_boot()
        self.follower.accept_resets()
        self.wait_until_ready()

    def panic(self) -> None:
        """Make the guest's kernel panic, by sysrq; call it inside `expect_crash`.

        Outside, the test fails, also if it ends before the kernel does.
        """
        self._reports_before_panic = len(self.console.reports)
        self.guest.spawn(f"sleep {_LEAD_S}; echo c > /proc/sysrq-trigger")

    @contextlib.contextmanager
    def expect_crash(
        self, kind: str | None = None, *, match: str | None = None, timeout: float = 60.0
    ) -> Iterator[ExpectedCrash]:
        """The block provokes a crash of this kind or family, see `expectations.Wanted`.

        `match` is found in its title or its first line. When the kernel dies of it, the block ends
        there. `WrongCrash` for another crash, `SecondCrash` for one that does not follow from the
        first, `NoCrash` if none has come `timeout` seconds after the block's end. A reboot after it
        is expected as well: see `wait_for_reboot`.
        """
        description = expectations.wanted(kind, match)
        with self.follower.expecting_reset():
            with expectations.expecting(
                self.console, description, tolerates=self.tolerates, timeout_s=timeout
            ) as crash:
                yield crash
            self.report_filter.expect(crash)
            self._crash = crash
            if crash.fatal:
                self._begin_boot(crash.died_at)

    def tolerates(self, report: CrashReport) -> bool:
        """Whether the kernel may say this in passing."""
        if report.fatal:
            return False
        return (
            self.settings.warnings == "report" or self.report_filter.allowance(report) is not None
        )

    def ktap(
        self,
        command: str,
        *,
        timeout: float | None = None,
        expected_failures: Mapping[str, str] | None = None,
        report: str | None = None,
    ) -> SuiteResults:
        """Run a command in the guest that prints KTAP or TAP; its cases.

        It may take `timeout` seconds, 60 unless given. A crash, a hang or a reset is the fault of
        the case that ran; what was planned behind it was not run. `expected_failures` has patterns
        of cases' full names, and why they fail. What is bad is not raised: see
        `SuiteResults.check`. In a test of pytest, each case is a subtest, and what is bad fails the
        test. `GuestError` if it prints no results at all.

        With `report`, the results are in that file of the guest when the command has ended: KTAP,
        or a report of LTP's runners (see `kboot.results.ltp`).
        """
        return suites.run(self, command, timeout, expected_failures or {}, report=report)

    def check(self) -> None:
        """Return if all is well now; raise what is wrong with the host or the guest."""
        self.console.check()

    def check_reports(self, timeout: float = _PANIC_LIMIT_S) -> None:
        """`check`, and raise `KernelCrash` for a report that nobody expected or allowed.

        A panic that was asked for is waited for; `NoCrash` if it does not come in `timeout`
        seconds.
        Each report counts once. The setting ``warnings`` may have it logged instead.
        """
        self._wait_for_panic(timeout)
        self.check()
        unexpected = self.report_filter.sort(self.console.reports)
        for report in unexpected:
            logger.warning("%s: the kernel reported: %s", self.name, report.title)
        if self.settings.warnings == "fail" and (crash := crash_of(unexpected)):
            raise crash

    def _wait_for_panic(self, timeout: float) -> None:
        before, self._reports_before_panic = self._reports_before_panic, None
        if before is None:
            return
        pause = self.console.watch("panic that was asked for")
        for remaining_s in Deadline(timeout).poll(0):
            if len(self.console.reports) > before:
                return
            pause(remaining_s)
        raise NoCrash(
            f"panic() was called, and no panic came in {timeout:g} s, last console line: "
            f"{self.console.last_line!r}"
        )

    def check_host(self) -> None:
        """What every wait on the console checks from time to time."""
        self.vm.check()
        self.server.check()
        self.follower.check()

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self.settings.timeout_s if timeout is None else timeout)

    def _renew_nonce(self) -> None:
        """What an earlier boot has fetched and printed is no proof for the next one."""
        if self._load is not None and self._next is None:
            self.load_next(self._load)

    def _expect_reset(self, offset: int | None = None) -> None:
        """The next boot begins after the byte `offset` of the console's record, or else now."""
        self.console.expect_reset()
        self._crash = None
        publish_tree(self.server, self.settings, self.evidence_directory)
        self.follower.accept_resets()
        self._begin_boot(self.console.mark() if offset is None else offset)

    def _begin_boot(self, offset: int = 0) -> None:
        """Its next boot is another one; what was printed before `offset` is of the last boot."""
        self.channels.close()
        self._reports_before_panic = None
        if self._next is not None:
            self._former.append(self._expected)
            (load, self._expected), self._next = self._next, None
            self._load = self._load and load
            self.kernel, self.settings = load.kernel, load.settings
        self.follower.begin_boot(self._expected, offset=offset)
