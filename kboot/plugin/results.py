"""What a test run leaves behind: ``run.json`` beside its evidence, and the reports made of both.

With pytest-xdist, the controller does it: workers send the reports of tests, and at their end the
places of all evidence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kboot.errors import ConfigError, GuestError, InfraError, KbootError
from kboot.plugin import retry, subtests, workers
from kboot.plugin.options import option, read_config
from kboot.plugin.reporting import Handover

if TYPE_CHECKING:
    from kboot.config import Config
    from kboot.evidence import CaseResult, Run

#: The attribute of a report that says which machine its test had; see `note_machine`.
_MACHINE = "kboot_machine"
#: The attribute that says whose error it is; see `note_fault`.
_FAULT = "kboot_fault"
#: In xdist's ``workeroutput``: the evidence directories of a worker, as texts.
_DIRECTORIES = "kboot_evidence"
#: Sections of a report that the evidence has whole.
_CRASH = "kboot crash: "
_ELSEWHERE = ("kboot console", "kboot evidence", _CRASH)
#: Characters of a test's detail, and of its message.
_DETAIL = 40_000
_MESSAGE = 400
#: The worst first: a test has more than one report.
_WORST = ("failed", "error", "flaky")


def note_fault(report: pytest.TestReport, error: BaseException | None) -> None:
    """Note in a test's report whose error it is, if it is one of kboot's."""
    for kind, fault in ((InfraError, "host"), (ConfigError, "user"), (GuestError, "kernel")):
        if isinstance(error, kind):
            setattr(report, _FAULT, fault)


def note_machine(report: pytest.TestReport, handover: Handover) -> None:
    """Note in a test's report which machine it had, and what that said and reported meanwhile."""
    machine = handover.machine
    setattr(
        report,
        _MACHINE,
        {
            "evidence": str(machine.evidence_directory),
            "console": [handover.console_start, machine.console.mark()],
            "crashes": [each.title for each in machine.console.reports[handover.known :]],
        },
    )


@dataclass(slots=True)
class _Case:
    """A test of which not all reports are there yet."""

    outcome: str = ""
    message: str = ""
    fault: str = ""
    detail: str = ""
    duration_s: float = 0.0
    start: float | None = None
    line: int | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    crashes: list[str] = field(default_factory=list)
    file: str = ""
    worker: str = ""
    part_of: str | None = None


class RunRecorder:
    """Collects what a run finds; at its end, writes what was asked for."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._cases: dict[str, _Case] = {}
        #: How many subtests have each name.
        self._names: dict[str, int] = {}
        self._directories: dict[str, None] = {}
        self._start = time.time()
        #: None until the first test has a result: pytest runs without kboot pay for nothing.
        self._settings: Config | None = None
        self._looked = False
        #: In their order, each once: all workers of pytest-xdist collect the same tests.
        self._notes: dict[str, None] = {}
        self._lines: list[str] = []
        self._annotations: list[str] = []

    # ------------------------------------------------------------------------ what comes in

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A part of a test has ended."""
        if not self._is_wanted():
            return
        machine: dict[str, Any] = getattr(report, _MACHINE, {})
        if machine:
            self._directories[machine["evidence"]] = None
        context = getattr(report, "context", None)
        if context is None:
            case = self._cases.setdefault(report.nodeid, _Case())
        else:
            case = self._cases[self._name_of(report.nodeid, context)] = _Case()
            case.part_of = report.nodeid
        self._add(case, report, machine)

    def _name_of(self, test: str, context: Any) -> str:
        """A subtest's id; several may have the same name."""
        name = f"{test} [{_subtest(context)}]"
        self._names[name] = number = self._names.get(name, 0) + 1
        return name if number == 1 else f"{name} #{number}"

    def _add(self, case: _Case, report: pytest.TestReport, machine: dict[str, Any]) -> None:
        outcome = self._outcome(report)
        if outcome and (case.outcome not in _WORST or outcome in _WORST[:1]):
            case.outcome = outcome
            case.message = _message(report)[:_MESSAGE]
            case.fault = getattr(report, _FAULT, "")
        if report.failed:
            case.detail = "\n\n".join(filter(None, (case.detail, _detail(report))))[:_DETAIL]
        case.duration_s += report.duration
        if case.start is None:
            case.start = getattr(report, "start", None)
        path, line, _ = report.location
        case.file = path
        case.line = _failing_line(report, path) or case.line or (line or 0) + 1
        case.machine = machine or case.machine
        if case.part_of:
            found = (title for title, _ in report.sections if title.startswith(_CRASH))
            case.crashes = [title.removeprefix(_CRASH) for title in found]
        case.worker = getattr(report, "worker_id", "").replace("master", "")

    def _outcome(self, report: pytest.TestReport) -> str:
        """As the terminal counts it; empty for a set-up or an end that is as it should be."""
        if retry.flaky(report):
            return "flaky"
        if subtests.case_type(report) == "not-run":
            return "not run"
        if getattr(report, "context", None) is not None:
            # The terminal leaves those that passed out.
            return "xfailed" if hasattr(report, "wasxfail") else report.outcome
        told = self._config.hook.pytest_report_teststatus(report=report, config=self._config)
        category: str = told[0] if told else ""
        return category

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tests that could not even be collected are missing in every count."""
        if report.failed:
            why = report.longreprtext.strip().splitlines()[-1:]
            self._notes[f"{report.nodeid} could not be collected: {''.join(why)}"] = None

    def pytest_kboot_evidence_written(self, directory: Path) -> None:
        """A machine of this process is off."""
        self._directories[str(directory)] = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker of pytest-xdist has ended."""
        self._directories |= dict.fromkeys(getattr(node, "workeroutput", {}).get(_DIRECTORIES, ()))
        if error:
            self._notes[f"worker {node.gateway.id} ended early: {error}"] = None

    # ------------------------------------------------------------------------- what goes out

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """All machines are off."""
        output: dict[str, Any] | None = getattr(self._config, "workeroutput", None)
        if output is not None:
            output[_DIRECTORIES] = list(self._directories)
            return
        if self._config.getoption("collectonly") or not self._is_wanted() or self._settings is None:
            return
        if exitstatus == pytest.ExitCode.INTERRUPTED:
            self._notes["The run was interrupted: not all tests have run."] = None
        try:
            self._write(self._settings)
        except KbootError as error:
            self._lines.append(f"error: {error}")
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where the reports are."""
        for line in self._lines:
            terminalreporter.write_line(f"kboot: {line}")
        for line in self._annotations:
            # For the runner that reads our output: at the beginning of a line, and plain.
            terminalreporter.ensure_newline()
            terminalreporter.write_line(line)

    def _is_wanted(self) -> bool:
        """Whether anything is to be written at the end."""
        if not self._looked:
            self._looked = True
            try:
                settings = read_config(self._config)
            except ConfigError:
                # The tests that need the configuration report it.
                return False
            if not workers.worker_id(self._config) and _is_recorded(settings):
                self._settings = settings
                _forget(settings.evidence)
        return self._settings is not None

    def _write(self, settings: Config) -> None:
        run = self._run()
        if settings.evidence and run.machines:
            _write_run(run, settings.evidence)
        if settings.report:
            from kboot.results.report import html_report  # noqa: PLC0415

            self._write_file(settings.report, lambda: html_report(run))
        if settings.summary:
            from kboot.results.summary import markdown  # noqa: PLC0415

            self._write_file(settings.summary, lambda: markdown(run))
        if settings.kcidb:
            self._write_kcidb(run, settings.kcidb, settings)
        if annotates(settings):
            from kboot.results.summary import github_annotations, path_in  # noqa: PLC0415

            repository = Path(os.environ.get("GITHUB_WORKSPACE") or self._config.rootpath)
            self._annotations = github_annotations(run, path_in(repository, self._config.rootpath))

    def _write_kcidb(self, run: Run, path: Path, settings: Config) -> None:
        import json  # noqa: PLC0415

        from kboot.results import kcidb  # noqa: PLC0415

        report = kcidb.kcidb_report(run, kcidb.source_of(settings))
        self._write_file(path, lambda: json.dumps(report, indent=1) + "\n")
        if settings.kcidb_submit == "yes":
            sent = kcidb.submit(report, os.environ.get(kcidb.VARIABLE, ""))
            self._lines.append(f"submitted to KCIDB: {sent}")

    def _write_file(self, path: Path, content: Callable[[], str]) -> None:
        write_text(path, content(), append=str(path) == os.environ.get("GITHUB_STEP_SUMMARY"))
        self._lines.append(f"written: {path}")

    def _run(self) -> Run:
        from kboot import __version__  # noqa: PLC0415
        from kboot.evidence import Run, read_evidence  # noqa: PLC0415  only with results

        machines = []
        for text in self._directories:
            try:
                machines.append(read_evidence(Path(text)))
            except ConfigError as error:
                self._notes[f"The evidence of a machine is missing: {error}"] = None
        for case in self._cases.values():
            if case.part_of in self._cases and not case.machine:
                # A case of a suite ran where its test did.
                machine = self._cases[case.part_of].machine
                case.machine = (
                    {**machine, "console": None, "crashes": case.crashes} if machine else {}
                )
        return Run(
            cases=tuple(_result(name, case) for name, case in self._cases.items()),
            machines=tuple(machines),
            started=datetime.fromtimestamp(self._start, UTC),
            duration_s=time.time() - self._start,
            version=__version__,
            notes=tuple(self._notes),
        )


def register(config: pytest.Config) -> None:
    """Have a run recorded; with a kernel named, look at once whether its files can be written."""
    if option(config, "kernel") is not None:
        try:
            check_outputs(read_config(config))
        except ConfigError as error:
            raise pytest.UsageError(f"kboot: {error}") from error
    config.pluginmanager.register(RunRecorder(config), "kboot-results")


def _is_recorded(settings: Config) -> bool:
    """Whether a run has to be remembered."""
    wanted = (settings.evidence, settings.report, settings.summary, settings.kcidb)
    return any(wanted) or annotates(settings)


def annotates(settings: Config) -> bool:
    """Whether failed tests are marked in the files of a repository."""
    on_github = os.environ.get("GITHUB_ACTIONS") == "true"
    return settings.annotations == "github" or (
        settings.annotations == "auto" and on_github and settings.names_kernel
    )


def check_outputs(settings: Config) -> None:
    """`ConfigError` if a file that is to be written at the end of a run cannot be."""
    if settings.kcidb_submit == "yes":
        from kboot.results import kcidb  # noqa: PLC0415

        if not settings.kcidb:
            raise ConfigError("kcidb_submit needs a file to write the report to; set kcidb")
        kcidb.address(os.environ.get(kcidb.VARIABLE, ""))
    for path in filter(None, (settings.report, settings.summary, settings.kcidb)):
        if path.is_dir():
            raise ConfigError(f"{path}: is a directory; name a file")
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: its directory is not there; make it first")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"{path}: cannot be written: no permission")


def write_text(path: Path, text: str, *, append: bool = False) -> None:
    """Write a file, whole or not at all; or append to it. `ConfigError`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A device, such as /dev/stdout, is written as it is.
        if append or (path.exists() and not path.is_file()):
            with path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)
            return
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _forget(directory: Path | None) -> None:
    """An earlier run's results are not those of the machines that come now."""
    if directory:
        from kboot.evidence import RUN_FILE  # noqa: PLC0415

        (directory / RUN_FILE).unlink(missing_ok=True)


def _write_run(run: Run, directory: Path) -> None:
    import json  # noqa: PLC0415

    from kboot.evidence import RUN_FILE, run_as_dict  # noqa: PLC0415

    write_text(directory / RUN_FILE, json.dumps(run_as_dict(run, directory), indent=1) + "\n")


def _result(name: str, case: _Case) -> CaseResult:
    from kboot.evidence import CaseResult  # noqa: PLC0415

    machine = case.machine
    return CaseResult(
        id=name,
        outcome=case.outcome or "not run",
        message=case.message,
        fault=case.fault,
        detail=case.detail,
        started=None if case.start is None else datetime.fromtimestamp(case.start, UTC),
        duration_s=round(case.duration_s, 4),
        file=case.file,
        line=case.line,
        worker=case.worker,
        part_of=case.part_of,
        evidence=Path(machine["evidence"]) if machine else None,
        console=tuple(machine["console"]) if machine.get("console") else None,
        crashes=tuple(machine.get("crashes", case.crashes)),
    )


def _subtest(context: Any) -> str:
    words = [context.msg] if context.msg else []
    return " ".join([*words, *(f"{key}={value}" for key, value in context.kwargs.items())])


def _message(report: pytest.TestReport) -> str:
    """One line on why it did not pass."""
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail)
    if told := subtests.case_message(report):
        return told
    if counts := retry.flaky(report):
        return f"failed {counts}: {_reason(report)}"
    return _reason(report)


def _reason(report: pytest.TestReport) -> str:
    longrepr = report.longrepr
    if isinstance(longrepr, tuple):
        return str(longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(longrepr, "reprcrash", None)
    text = str(crash.message if crash else longrepr or "")
    return next((line for line in text.splitlines() if line.strip()), "")


def _detail(report: pytest.TestReport) -> str:
    parts = [report.longreprtext]
    parts += [
        f"{f' {title} ':-^80}\n{text}"
        for title, text in report.sections
        if text and not title.startswith(_ELSEWHERE)
    ]
    return "\n".join(parts)


def _failing_line(report: pytest.TestReport, path: str) -> int | None:
    """Where in the test's own file it failed."""
    entries: Iterable[Any] = getattr(
        getattr(report.longrepr, "reprtraceback", None), "reprentries", ()
    )
    lines = [
        each.reprfileloc.lineno
        for each in entries
        if getattr(each, "reprfileloc", None)
        and Path(each.reprfileloc.path).name == Path(path).name
    ]
    return lines[-1] if lines else None
