"""Boot a kernel once, and look for the failure."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kboot import process
from kboot.backend import Backend
from kboot.bisect.search import Trial
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError, InfraError, ProcessTimeout
from kboot.evidence import CaseResult, read_run
from kboot.log import logger
from kboot.machine import Machine, open_backend
from kboot.session import Session, open_session

#: How a test's outcome counts; all others say nothing.
_OF_OUTCOMES = {"passed": Trial.PASS, "xpassed": Trial.PASS, "failed": Trial.HIT}
#: Seconds that a test may take beside the boot.
_TEST_LIMIT_S = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What is looked for. Without any of these: that the kernel does not come up, or crashes."""

    #: In the title of a report of the kernel's; other crashes do not count.
    title: str = ""
    #: pytest's node id of a test that fails.
    test: str = ""
    #: A command in the guest, which fails, or during which the kernel does.
    command: str = ""
    #: Seconds to wait for a crash after that.
    settle_s: float = 2.0


class Boots:
    """Boots kernels; a context. The boot server is shared by the boots of one."""

    def __init__(
        self,
        config: Config,
        failure: Failure,
        *,
        evidence: Path,
        pytest_options: Sequence[str] = (),
        backend: Backend | None = None,
    ) -> None:
        """`pytest_options` are for the test, beside the kernel's."""
        self._config = config
        self._failure = failure
        self._evidence = evidence
        self._options = pytest_options
        #: One for all, opened when it is needed first.
        self._backend = backend
        self._opened = contextlib.ExitStack()
        self._numbers = itertools.count(1)
        self._stack = contextlib.ExitStack()
        self._kernel: tuple[str, Path] | None = None
        self._session: Session | None = None

    def __enter__(self) -> Boots:
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what was started."""
        with self._opened:
            self._close()

    def boot(self, revision: str, kernel: Path) -> Trial:
        """Boot it once. What it leaves is kept if it did not go well."""
        try:
            if self._failure.test:
                return self._run_test(kernel)
            return self._boot(revision, kernel)
        except InfraError as error:
            logger.warning("%s: the host failed: %s", revision, error)
            # The boot server may be what has failed.
            with contextlib.suppress(InfraError):
                self._close()
            return Trial.INFRA

    def _close(self) -> None:
        self._kernel = self._session = None
        self._stack.close()

    # -------------------------------------------------------------------------- a boot of ours

    def _boot(self, revision: str, kernel: Path) -> Trial:
        session = self._session_for(revision, kernel)
        try:
            settings = session.settings(session.config)
        except ConfigError as error:
            logger.warning("%s: %s", revision, error)
            return Trial.NO_KERNEL
        seen: list[Machine] = []
        came_up = False
        fault: GuestError | None = None
        directories: list[Path] = []
        session.evidence.on_complete = directories.append
        try:
            machine = session.machine(
                settings,
                name=f"boot-{next(self._numbers)}",
                fresh=True,
                isolation="none",
                on_machine=seen.append,
            )
            came_up = True
            failed = self._provoke(machine)
        except GuestError as error:
            fault, failed = error, True
        finally:
            session.power_off()
        titles = [report.title for machine in seen for report in machine.console.reports]
        trial = self._judge(titles, failed=failed)
        if self._failure.command and not came_up and not self._failure.title:
            # The command is what is looked for, and it never ran.
            trial = Trial.OTHER
        if fault and trial is Trial.OTHER:
            logger.warning("%s: another failure: %s", revision, fault)
        if trial is Trial.PASS:
            for directory in directories:
                shutil.rmtree(directory, ignore_errors=True)
        return trial

    def _provoke(self, machine: Machine) -> bool:
        """Whether the command failed; raises what the kernel does."""
        failed = False
        if self._failure.command:
            failed = machine.guest.run(self._failure.command).exit_status != 0
        for remaining_s in Deadline(self._failure.settle_s).poll(0.1):
            machine.check()
            time.sleep(min(0.1, remaining_s))
        machine.check_reports()
        return failed

    def _judge(self, titles: Sequence[str], *, failed: bool) -> Trial:
        wanted = self._failure.title
        if wanted and any(wanted in title for title in titles):
            return Trial.HIT
        if not failed:
            return Trial.PASS
        return Trial.OTHER if wanted else Trial.HIT

    def _session_for(self, revision: str, kernel: Path) -> Session:
        if self._session is None or self._kernel != (revision, kernel):
            self._close()
            if self._backend is None:
                self._backend = self._opened.enter_context(open_backend(self._config))
            self._session = self._stack.enter_context(
                open_session(
                    replace(self._config, kernel=str(kernel)),
                    evidence=self._evidence,
                    backend=self._backend,
                )
            )
            self._kernel = (revision, kernel)
        return self._session

    # ------------------------------------------------------------------------- a test of pytest

    def _run_test(self, kernel: Path) -> Trial:
        evidence = self._evidence / f"test-{next(self._numbers)}"
        argv = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            f"--kernel={kernel}",
            *self._options,
            # Whatever a file says: they are what is read afterwards.
            f"--kboot-evidence={evidence}",
            self._failure.test,
        ]
        try:
            done = process.run(argv, timeout_s=_TEST_LIMIT_S + self._config.timeout_s, check=False)
        except ProcessTimeout as error:
            logger.warning("%s", error)
            return Trial.OTHER
        if not (evidence / "run.json").is_file():
            words = done.stdout.decode(errors="replace").strip()[-400:]
            # pytest's own: a mistake in the command line, or no such test.
            if done.exit_status in {4, 5}:
                raise ConfigError(f"{self._failure.test} cannot be run: {words}")
            raise InfraError(f"{self._failure.test} left no results: {words}")
        trial = self._of_cases(read_run(evidence).cases)
        if trial is Trial.PASS:
            shutil.rmtree(evidence, ignore_errors=True)
        return trial

    def _of_cases(self, cases: Sequence[CaseResult]) -> Trial:
        wanted = self._failure.title
        trials = []
        for case in cases:
            trial = _OF_OUTCOMES.get(case.outcome, Trial.OTHER)
            if case.fault == "host":
                trial = Trial.INFRA
            elif wanted and any(wanted in title for title in case.crashes):
                trial = Trial.HIT
            elif wanted and trial is Trial.HIT:
                trial = Trial.OTHER
            trials.append(trial)
        order = (Trial.HIT, Trial.INFRA, Trial.OTHER, Trial.PASS)
        return next((trial for trial in order if trial in trials), Trial.OTHER)
