"""A run as one HTML file: no other file, no network; opens from a CI system's artifacts.

Everything that a guest or a test has said goes through a template that escapes it, or into
compressed data that the page's script puts in place as text. The page's own policy forbids every
script and style but its own two.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kboot.console.text import printable
from kboot.evidence import BootRecord, CaseResult, Evidence, Run
from kboot.results import report_charts as charts
from kboot.results.report_consoles import Consoles
from kboot.statistics import Outcome, Summary, summarise
from kboot.templates import render_html

_PAGE = Path(__file__).parent / "page"

#: The order of outcomes, and how each is marked beside its name.
OUTCOMES: Mapping[str, str] = {
    "failed": "✗",
    "error": "!",
    "flaky": "≈",
    "not run": "∅",
    "xpassed": "✓",
    "passed": "✓",
    "xfailed": "~",
    "skipped": "-",
}
#: Boots of one machine that get a diagram of their own; the others are in the statistics.
_DIAGRAMS = 12
#: Characters of what a failed test shows, and of a file.
_DETAIL = 16_000
_TEXT = 32_000
_HTTP_ROWS = 300
#: Of a page, if its tests alone are not more; and what its consoles get in any case.
_PAGE_BYTES = 4_900_000
_LEAST_PACKED = 400_000
#: Stands in the page for the consoles until it is known how much room there is.
_PACKED_HERE = "@packed@"
#: Endings of the files by which the machine is started by hand.
_BY_HAND = (".argv", ".yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A test in the table."""

    case: CaseResult
    #: Of its place in the page: ``t17``.
    key: str
    #: ``m3``; empty if it used no machine that is known.
    machine: str
    #: What the kernel reported meanwhile: the title, and its place, or an empty text.
    crashes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    """A machine in the page."""

    key: str
    evidence: Evidence
    diagrams: Sequence[charts.Waterfall]
    by_hand: Mapping[str, str]
    #: Names of its other files, which are packed with its console.
    files: Sequence[str]
    #: The lines with which its console ends, for who cannot unpack it.
    tail: str

    @property
    def title(self) -> str:
        """What tells it from the others of a run."""
        return self.evidence.directory.name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statistics:
    """Many boots, of one kernel or of a loop."""

    title: str
    summary: Summary
    plot: charts.StripPlot
    #: None where the order of the boots means nothing.
    course: charts.Course | None = None


def html_report(
    run: Run, *, loops: Mapping[str, Sequence[Outcome]] | None = None, title: str = ""
) -> str:
    """The page. `loops` are restart loops, by their names."""
    machines = {f"m{number}": each for number, each in enumerate(run.machines, 1)}
    rows = _rows(run.cases, machines)
    consoles = Consoles(
        machines,
        {row.key: (row.machine, row.case.console) for row in rows if row.machine},
        {key: _texts(each, by_hand=False) for key, each in machines.items()},
    )
    style, script = (_part(name) for name in ("report.css", "report.js"))
    page = render_html(
        _PAGE,
        "report.html",
        as_shown=printable,
        title=title or _title(run),
        run=run,
        rows=rows,
        outcomes=_count(run.cases),
        marks=OUTCOMES,
        kernels=_kernels(run.machines),
        hosts=sorted({each.machine for each in run.machines if each.machine}),
        machines=[_machine(key, each, consoles) for key, each in machines.items()],
        statistics=[*_by_kernel(run.machines), *_of_loops(loops or {})],
        packed=_PACKED_HERE,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        detail_limit=_DETAIL,
        http_rows=_HTTP_ROWS,
        when=_when,
    )
    # What the guests have said is escaped, and cannot contain the first one.
    before, _, after = page.partition(_PACKED_HERE)
    room = _PAGE_BYTES - len(page.encode(errors="replace"))
    return before + consoles.packed(max(room, _LEAST_PACKED)) + after


def _rows(cases: Sequence[CaseResult], machines: Mapping[str, Evidence]) -> list[_Row]:
    places = {each.directory.resolve(): key for key, each in machines.items()}
    #: Resolving a path asks the disk, and thousands of subtests have the same.
    keys: dict[Path | None, str] = {None: ""}
    rows = []
    for number, case in enumerate(cases, 1):
        if case.evidence not in keys and case.evidence:
            keys[case.evidence] = places.get(case.evidence.resolve(), "")
        machine = keys[case.evidence]
        reports = machines[machine].crashes if machine else ()
        anchors = {each.title: f"{machine}-c{n}" for n, each in enumerate(reports, 1)}
        crashes = tuple((title, anchors.get(title, "")) for title in case.crashes)
        rows.append(_Row(case=case, key=f"t{number}", machine=machine, crashes=crashes))
    return rows


def _part(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _title(run: Run) -> str:
    kernels = _kernels(run.machines)
    return f"Linux {kernels[0]['release']}" if len(kernels) == 1 else "kboot report"


def _when(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S %Z") if moment else ""


def _count(cases: Iterable[CaseResult]) -> dict[str, int]:
    """How many tests had each outcome; the worst first, and what is not known at the end."""
    found = Counter(case.outcome for case in cases)
    order = [*OUTCOMES, *sorted(found.keys() - OUTCOMES.keys())]
    return {name: found[name] for name in order if found[name]}


def _kernels(machines: Iterable[Evidence]) -> list[Mapping[str, str]]:
    kernels = {each.kernel["sha256"]: each.kernel for each in machines if each.kernel}
    return list(kernels.values())


def _machine(key: str, evidence: Evidence, consoles: Consoles) -> _Machine:
    return _Machine(
        key=key,
        evidence=evidence,
        diagrams=[
            charts.waterfall(number, boot)
            for number, boot in enumerate(evidence.boots[:_DIAGRAMS], 1)
        ],
        by_hand=_texts(evidence, by_hand=True),
        files=list(_texts(evidence, by_hand=False)),
        tail=consoles.tail(key),
    )


def _texts(evidence: Evidence, *, by_hand: bool) -> Mapping[str, str]:
    """Those files by which it is started by hand, or the others."""
    return {
        name: text[:_TEXT].strip()
        for name, text in evidence.texts.items()
        if text.strip() and name.endswith(_BY_HAND) == by_hand
    }


def _by_kernel(machines: Iterable[Evidence]) -> list[_Statistics]:
    """The boots of each kernel in each way, where there is more than one."""
    found = []
    for (_, release, way), boots in boots_of(machines).items():
        if len(boots) > 1:
            outcomes = [_outcome(number, boot) for number, boot in enumerate(boots, 1)]
            summary = summarise(outcomes)
            found.append(
                _Statistics(
                    title=f"Linux {release}, {way}",
                    summary=summary,
                    plot=charts.strip_plot(outcomes, summary),
                )
            )
    return found


def boots_of(machines: Iterable[Evidence]) -> dict[tuple[str, str, str], list[BootRecord]]:
    """All boots that came up, each once, by what is comparable.

    By the kernel's sha256, its release, and the way: ``bios``, or ``bios, restarted`` for a machine
    that was on before. A machine that went on from a saved one has not booted.
    """
    found: dict[tuple[str, str, str], list[BootRecord]] = {}
    seen: set[str] = set()
    for machine in machines:
        for number, boot in enumerate(machine.boots):
            if boot.saved or boot.boot_id is None or boot.boot_id in seen:
                continue
            seen.add(boot.boot_id)
            way = str(machine.settings.get("firmware", "")) + (", restarted" if number else "")
            key = (machine.kernel["sha256"], machine.kernel["release"], way)
            found.setdefault(key, []).append(boot)
    return found


def _outcome(number: int, boot: BootRecord) -> Outcome:
    return Outcome(
        number=number,
        failure=None,
        crashed=False,
        infra=False,
        duration_s=boot.duration_s,
        phases_s={each.phase: each.duration_s for each in boot.phases},
    )


def _of_loops(loops: Mapping[str, Sequence[Outcome]]) -> list[_Statistics]:
    found = []
    for name, outcomes in loops.items():
        summary = summarise(outcomes)
        found.append(
            _Statistics(
                title=f"Restart loop {name}",
                summary=summary,
                plot=charts.strip_plot(outcomes, summary),
                course=charts.course(outcomes),
            )
        )
    return found
