"""Read what runs and machines leave behind: a library for one's own tools.

`read_evidence` reads the directory of one machine, `read_run` all of a test run: its tests, and the
machines that they used.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from kboot.backend import Fetch
from kboot.console import Line
from kboot.console.text import LineSplitter, normalise
from kboot.crash import CrashKind, CrashReport, Frame
from kboot.errors import ConfigError
from kboot.guest import CommandRecord

__all__ = [
    "BootRecord",
    "CaseResult",
    "Evidence",
    "PhaseRecord",
    "Run",
    "find_evidence",
    "read_evidence",
    "read_run",
]

#: Of result.json and run.json. It changes when a reader of the old form would misread the new one;
#: fields may be added without.
FORMAT_VERSION = 1

#: Of a boot, in their order: `kboot.Phase`.
PHASES = (
    *("scheduled", "firmware", "dhcp", "script", "kernel", "initrd"),
    *("handoff", "linux", "init", "ready"),
)

#: Beside the directories of a run's machines.
RUN_FILE = "run.json"

_RESULT_FILE = "result.json"
_CONSOLE_FILE = "serial.log"
#: A machine whose process was killed before it could write how it ended.
UNFINISHED = "unfinished"
#: What is read of other files, such as the hypervisor's log.
_TEXT_LIMIT = 256 << 10
_NOT_TEXTS = frozenset({"serial.log", "serial.timing", "access.jsonl", "result.json", "run.json"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseRecord:
    """A phase of a boot that was completed."""

    #: Such as ``kernel``; see docs/testing.md for their order.
    phase: str
    #: Seconds since the boot began.
    time_s: float
    #: Seconds since the previous phase.
    duration_s: float
    #: Who saw it first: ``backend``, ``server`` or ``console``.
    witness: str
    #: All who saw it, with their times in seconds since the boot began.
    witnesses: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootRecord:
    """One boot of a machine."""

    #: Seconds from power-on to its beginning; below 0 for that of a saved machine.
    began_s: float
    #: In their order.
    phases: tuple[PhaseRecord, ...]
    #: What the kernel drew for this boot; None if that was never read.
    boot_id: str | None
    #: It is the boot of a saved machine, from which this one went on.
    saved: bool

    @property
    def ready(self) -> bool:
        """Whether it came up."""
        return any(each.phase == "ready" for each in self.phases)

    @property
    def duration_s(self) -> float:
        """Seconds to the last phase it has reached."""
        return max((each.time_s for each in self.phases), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one machine left behind, from power-on to its end."""

    directory: Path
    #: Its name among the machines of the run.
    name: str
    #: ``passed``, ``failed`` (the guest), ``error`` (the host or the user), ``interrupted``, ``test
    #: failed``, or ``unfinished``: nobody was left to write it.
    verdict: str
    #: The class and the message of what ended it; None if nothing did.
    error: tuple[str, str] | None
    #: ``source``, ``release``, ``version``, ``architecture``, ``sha256``.
    kernel: Mapping[str, Any]
    command_line: str
    settings: Mapping[str, Any]
    #: Such as ``QEMU 7.2.22, tcg``.
    machine: str
    #: When it was powered on; None if that is not known.
    started: datetime | None
    duration_s: float
    boots: tuple[BootRecord, ...]
    #: The saved machine that it went on from; None if it was booted.
    restored_from: str | None
    crashes: tuple[CrashReport, ...]
    #: Title of each report that a test had allowed, and by what.
    allowed: tuple[tuple[str, str], ...]
    commands: tuple[CommandRecord, ...]
    #: Seconds from power-on to the first byte of its console's record.
    console_began_s: float = 0.0

    @property
    def console(self) -> bytes:
        """All that its serial line said."""
        return _bytes(self.directory / _CONSOLE_FILE)

    def lines(self) -> Iterator[Line]:
        """The console's lines; their time is in seconds since power-on."""
        splitter = LineSplitter()
        console = self.console
        position = 0
        time_s = self.console_began_s
        for piece_s, size in self._timing():
            time_s += piece_s
            yield from _lines(splitter.feed(console[position : position + size]), time_s)
            position += size
        # What has no time: a run that was killed may have written bytes and not their time.
        yield from _lines(splitter.feed(console[position:]), time_s)
        yield from _lines(splitter.flush(), time_s)

    @property
    def fetches(self) -> tuple[Fetch, ...]:
        """What it asked the boot server for."""
        known = {each.name for each in dataclasses.fields(Fetch)}
        found = []
        for line in _bytes(self.directory / "access.jsonl").decode(errors="replace").splitlines():
            # The last line of a run that was killed need not be whole.
            value = _json(line)
            if isinstance(value, dict) and value.keys() >= known:
                found.append(Fetch(**{name: value[name] for name in known}))
        return tuple(found)

    @property
    def texts(self) -> Mapping[str, str]:
        """The other files, by name: the machine as one starts it by hand, logs, configuration."""
        paths = sorted(path for path in _files(self.directory) if path.name not in _NOT_TEXTS)
        return {
            path.name: _bytes(path)[:_TEXT_LIMIT].decode(errors="replace")
            for path in paths
            if not path.name.startswith("failed-")
        }

    def _timing(self) -> Iterator[tuple[float, int]]:
        for line in _bytes(self.directory / "serial.timing").splitlines():
            seconds, _, size = line.partition(b" ")
            try:
                yield float(seconds), int(size)
            except ValueError:
                return


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """A test of a run, or a part of one (a subtest)."""

    #: pytest's node id, and for a subtest its name behind it in brackets.
    id: str
    #: ``passed``, ``failed`` (the kernel, or the test), ``error`` (the host), ``skipped``,
    #: ``xfailed``, ``xpassed``, ``flaky``, or what another plugin calls it.
    outcome: str
    #: One line about why; empty if there is nothing to say.
    message: str = ""
    #: The traceback, and what the report of a failed test shows beside it.
    detail: str = ""
    started: datetime | None = None
    duration_s: float = 0.0
    #: Whose error ended it: ``host``, ``user`` or ``kernel``; empty for the test's own, and none.
    fault: str = ""
    #: Relative to pytest's root directory, and counted from 1.
    file: str = ""
    line: int | None = None
    #: Of pytest-xdist, such as ``gw0``.
    worker: str = ""
    #: It is a part of the test with this id.
    part_of: str | None = None
    #: The directory of the machine that it used.
    evidence: Path | None = None
    #: What its machine's console said meanwhile: from this byte of the record, to that one.
    console: tuple[int, int] | None = None
    #: Titles of what the kernel reported meanwhile, expected or not.
    crashes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the kernel or the test is at fault."""
        return self.outcome == "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A test run: what was tested, and on which machines."""

    cases: tuple[CaseResult, ...]
    machines: tuple[Evidence, ...]
    started: datetime | None = None
    duration_s: float = 0.0
    #: Of kboot, that has written it.
    version: str = ""
    #: Why the run ended early or a part of it is missing; one line each.
    notes: tuple[str, ...] = field(default=())


# ------------------------------------------------------------------------------------ one machine


def read_evidence(directory: Path) -> Evidence:
    """What one machine left behind in `directory`.

    `ConfigError` if there is nothing of kboot's in it, or if a newer kboot has written it.
    """
    path = directory / _RESULT_FILE
    if not path.is_file():
        if not (directory / _CONSOLE_FILE).is_file():
            raise ConfigError(f"{directory}: no {_RESULT_FILE}: not the evidence of a machine")
        return _unfinished(directory)
    value = _read_object(path)
    try:
        return _evidence(directory, value)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not as kboot writes it: {error!r}") from error


def find_evidence(root: Path) -> list[Path]:
    """The evidence directories at and below `root`, in their order. `ConfigError`."""
    if not root.is_dir():
        what = "not a directory" if root.exists() else "no such directory"
        raise ConfigError(f"{root}: {what}; give the one of --evidence")
    names = (_RESULT_FILE, _CONSOLE_FILE)
    found = {path.parent for name in names for path in root.rglob(name) if path.is_file()}
    return sorted(found)


def _unfinished(directory: Path) -> Evidence:
    return Evidence(
        directory=directory,
        name=directory.name,
        verdict=UNFINISHED,
        error=None,
        kernel={},
        command_line="",
        settings={},
        machine="",
        started=None,
        duration_s=0.0,
        boots=(),
        restored_from=None,
        crashes=(),
        allowed=(),
        commands=(),
    )


def _evidence(directory: Path, value: Mapping[str, Any]) -> Evidence:
    error = value["error"]
    restored_from = value["restored_from"]
    return Evidence(
        directory=directory,
        name=value["name"],
        verdict=value["verdict"],
        error=error and (str(error["class"]), str(error["message"])),
        kernel=value["kernel"],
        command_line=value["command_line"],
        settings=value["settings"],
        machine=value["machine"],
        started=datetime.fromisoformat(value["started"]),
        duration_s=value["duration_s"],
        boots=tuple(_boots(value["boots"], value["boot_ids"], restored=restored_from is not None)),
        restored_from=restored_from,
        crashes=tuple(map(_crash, value["crashes"])),
        allowed=tuple((each["title"], each["by"]) for each in value["allowed"]),
        commands=tuple(map(_command, value["commands"])),
        console_began_s=value["console_began_s"],
    )


def _boots(
    values: Sequence[Mapping[str, Any]], boot_ids: Sequence[str], *, restored: bool
) -> Iterator[BootRecord]:
    # Only boots that came up have an id.
    ids = iter(boot_ids)
    for number, value in enumerate(values):
        phases = tuple(_phases(value["milestones"]))
        ready = any(each.phase == "ready" for each in phases)
        yield BootRecord(
            began_s=value["began_s"],
            phases=phases,
            boot_id=next(ids, None) if ready else None,
            saved=restored and number == 0,
        )


def _phases(values: Iterable[Mapping[str, Any]]) -> Iterator[PhaseRecord]:
    before = 0.0
    for value in values:
        time_s = float(value["time_s"])
        yield PhaseRecord(
            phase=value["phase"],
            time_s=time_s,
            duration_s=round(max(0.0, time_s - before), 3),
            witness=value["witness"],
            witnesses=value["witnesses"],
        )
        before = max(before, time_s)


def _crash(value: Mapping[str, Any]) -> CrashReport:
    fields = _known(CrashReport, value)
    cause = value["caused_by"]
    fields |= {
        "kind": CrashKind(value["kind"]),
        "frames": tuple(Frame(**_known(Frame, each)) for each in value["frames"]),
        "caused_by": cause and _crash(cause),
    }
    return CrashReport(**fields)


def _command(value: Mapping[str, Any]) -> CommandRecord:
    fields = _known(CommandRecord, value)
    return CommandRecord(**(fields | {"time": datetime.fromisoformat(value["time"])}))


# ------------------------------------------------------------------------------------------ a run


def read_run(*paths: Path) -> Run:
    """All that was found in `paths`: the directory of a run, or those of machines; one run.

    `ConfigError` if there is nothing of kboot's in one of them.
    """
    runs = [_read_run(path) for path in paths]
    started = [run.started for run in runs if run.started]
    machines = {each.directory.resolve(): each for run in runs for each in run.machines}
    return Run(
        cases=tuple(case for run in runs for case in run.cases),
        machines=tuple(machines.values()),
        started=min(started, default=None),
        duration_s=sum(run.duration_s for run in runs),
        version=next((run.version for run in runs if run.version), ""),
        notes=tuple(note for run in runs for note in run.notes),
    )


def _read_run(root: Path) -> Run:
    directories = find_evidence(root)
    files = sorted(root.rglob(RUN_FILE))
    if not directories and not files:
        raise ConfigError(f"{root}: no evidence of kboot's in it; give the directory of --evidence")
    machines = {path.resolve(): read_evidence(path) for path in directories}
    run = Run(cases=(), machines=tuple(machines.values()))
    for file in files:
        value = _read_object(file)
        try:
            told = run_from(value, file.parent)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file}: not as kboot writes it: {error!r}") from error
        run = replace(
            run,
            cases=(*run.cases, *told.cases),
            started=min(filter(None, (run.started, told.started)), default=None),
            duration_s=run.duration_s + told.duration_s,
            version=told.version,
            notes=(*run.notes, *told.notes),
        )
    return run


def run_as_dict(run: Run, root: Path) -> dict[str, Any]:
    """The content of run.json in the directory `root`, below which most machines' are."""
    return {
        "version": FORMAT_VERSION,
        "kboot": run.version,
        "started": run.started and run.started.isoformat(),
        "duration_s": round(run.duration_s, 3),
        "notes": list(run.notes),
        "cases": [_case_as_dict(case, root) for case in run.cases],
    }


def _case_as_dict(case: CaseResult, root: Path) -> dict[str, Any]:
    value = {
        each.name: getattr(case, each.name)
        for each in dataclasses.fields(CaseResult)
        if getattr(case, each.name) != each.default
    }
    if case.started:
        value["started"] = case.started.isoformat()
    if case.evidence:
        # Relative, so that a directory can be moved, as CI systems do with their artifacts.
        inside = case.evidence.is_relative_to(root)
        value["evidence"] = str(case.evidence.relative_to(root) if inside else case.evidence)
    return value


def run_from(value: Mapping[str, Any], root: Path) -> Run:
    """The run that `run_as_dict` has written, without its machines."""
    return Run(
        cases=tuple(_case(each, root) for each in value["cases"]),
        machines=(),
        started=value["started"] and datetime.fromisoformat(value["started"]),
        duration_s=value["duration_s"],
        version=value["kboot"],
        notes=tuple(value["notes"]),
    )


def _case(value: Mapping[str, Any], root: Path) -> CaseResult:
    fields = _known(CaseResult, value)
    if "started" in value:
        fields["started"] = datetime.fromisoformat(value["started"])
    if "evidence" in value:
        fields["evidence"] = root / value["evidence"]
    if "console" in value:
        fields["console"] = tuple(value["console"])
    fields["crashes"] = tuple(value.get("crashes", ()))
    return CaseResult(**fields)


# -------------------------------------------------------------------------------------- the files


def _read_object(path: Path) -> dict[str, Any]:
    """A file of ours. `ConfigError` if it cannot be read, or not by this version."""
    try:
        value = _json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a JSON object; was its disk full?")
    version = value.get("version")
    if version != FORMAT_VERSION:
        found = "no version" if version is None else f"version {version}"
        raise ConfigError(
            f"{path}: has {found}, and this kboot reads version {FORMAT_VERSION}; "
            "read it with the kboot that has written it"
        )
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _known(kind: type[Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the fields of `kind` that are there; a later kboot may have written more."""
    names = {each.name for each in dataclasses.fields(kind)}
    return {name: value[name] for name in names & value.keys()}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_file()]


def _lines(raws: Iterable[Any], time_s: float) -> Iterator[Line]:
    for raw in raws:
        yield Line(text=normalise(raw.data), time_s=time_s, start=raw.start, end=raw.end)
