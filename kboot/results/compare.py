"""Two runs, or two kernels: what is worse with the second one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from kboot.errors import ConfigError
from kboot.evidence import PHASES, BootRecord, CaseResult, Evidence, Run
from kboot.results.report import boots_of
from kboot.statistics import Change, median_change

#: Of a test with several results, the first of these counts; that the host failed tells nothing.
_TELLING = (
    "failed",
    "flaky",
    "xpassed",
    "passed",
    "xfailed",
    "skipped",
    "not run",
    "error",
)
_BAD = ("failed", "flaky")
#: Of which nothing is known.
_UNKNOWN = ("error", "not run")
#: With fewer boots on one side, nothing is said about its phases.
FEWEST_BOOTS = 5
#: The whole boot, beside its phases.
TOTAL = "boot"
#: Together: of so many comparisons of equal kernels, one in twenty finds a phase that differs.
_CONFIDENCE = 0.95
#: A difference below is of no interest, however sure.
_LEAST_S = 0.02

Verdict = Literal["slower", "faster", "same", "too few boots"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseChange:
    """A test with another outcome than before."""

    id: str
    #: None if it was not there.
    before: str | None
    after: str | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChange:
    """A phase of the boots."""

    #: How the machines came to it: ``bios``, or ``bios, restarted``.
    way: str
    phase: str
    verdict: Verdict
    #: None with too few boots.
    change: Change | None
    before_count: int
    after_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs between two runs."""

    before: str
    after: str
    new_failures: tuple[CaseChange, ...]
    fixed: tuple[CaseChange, ...]
    #: Passed or failed before; now the host failed, or they were not reached.
    unknown: tuple[CaseChange, ...]
    new_crashes: tuple[str, ...]
    gone_crashes: tuple[str, ...]
    phases: tuple[PhaseChange, ...]

    @property
    def worse(self) -> bool:
        """Whether a test fails, a crash is there, or a phase is slower that was not before."""
        slower = any(each.verdict == "slower" for each in self.phases)
        return bool(self.new_failures or self.new_crashes or slower)


def compare(before: Run, after: Run, *, names: tuple[str, str], slower: float) -> Comparison:
    """What `after` has that `before` had not.

    `slower` is the share by which a phase's median must have grown to be of interest, such as 0.05.
    """
    old, new = _outcomes(before.cases), _outcomes(after.cases)
    titles = [
        {report.title for each in run.machines for report in each.crashes}
        for run in (before, after)
    ]
    return Comparison(
        before=names[0],
        after=names[1],
        new_failures=tuple(
            _change(name, old, new)
            for name, case in new.items()
            if case.outcome in _BAD and not (name in old and old[name].outcome in _BAD)
        ),
        fixed=tuple(
            _change(name, old, new)
            for name, case in new.items()
            if name in old and old[name].outcome in _BAD and case.outcome in ("passed", "xpassed")
        ),
        unknown=tuple(
            _change(name, old, new)
            for name, case in old.items()
            if case.outcome not in _UNKNOWN and (name not in new or new[name].outcome in _UNKNOWN)
        ),
        new_crashes=tuple(sorted(titles[1] - titles[0])),
        gone_crashes=tuple(sorted(titles[0] - titles[1])),
        phases=tuple(_phases(_boots(before.machines), _boots(after.machines), slower)),
    )


def _outcomes(cases: Iterable[CaseResult]) -> dict[str, CaseResult]:
    found: dict[str, CaseResult] = {}
    for case in cases:
        known = found.get(case.id)
        if known is None or _rank(case.outcome) < _rank(known.outcome):
            found[case.id] = case
    return found


def _rank(outcome: str) -> int:
    return _TELLING.index(outcome) if outcome in _TELLING else len(_TELLING)


def _change(name: str, old: Mapping[str, CaseResult], new: Mapping[str, CaseResult]) -> CaseChange:
    return CaseChange(
        id=name,
        before=old[name].outcome if name in old else None,
        after=new[name].outcome if name in new else None,
        message=new[name].message if name in new else "",
    )


def _boots(machines: Iterable[Evidence]) -> dict[str, list[BootRecord]]:
    """By the way in which the machines booted."""
    found: dict[str, list[BootRecord]] = {}
    for (_, _, way), boots in boots_of(machines).items():
        found.setdefault(way, []).extend(boots)
    return found


def _phases(
    before: Mapping[str, Sequence[BootRecord]],
    after: Mapping[str, Sequence[BootRecord]],
    slower: float,
) -> Iterable[PhaseChange]:
    """Of the ways in which both have booted."""
    old, new = (
        {
            (way, phase): times
            for way in before.keys() & after.keys()
            for phase, times in _times(side[way]).items()
        }
        for side in (before, after)
    )
    enough = {key for key in old if min(len(old[key]), len(new.get(key, ()))) >= FEWEST_BOOTS}
    # Each phase is another chance to be wrong (Bonferroni).
    confidence = 1 - (1 - _CONFIDENCE) / max(1, len(enough))
    for way, phase in sorted({*old, *new}, key=lambda key: (key[0], _place(key[1]))):
        key = (way, phase)
        change = None
        verdict: Verdict = "too few boots"
        if key in enough:
            change = median_change(old[key], new[key], confidence=confidence)
            verdict = _verdict(change, slower)
        yield PhaseChange(
            way=way,
            phase=phase,
            verdict=verdict,
            change=change,
            before_count=len(old.get(key, ())),
            after_count=len(new.get(key, ())),
        )


def _place(phase: str) -> int:
    """In the order in which they come, and the whole boot at the end."""
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def _verdict(change: Change, slower: float) -> Verdict:
    least_s = max(_LEAST_S, slower * change.before_s)
    if change.low_s > 0 and change.difference_s >= least_s:
        return "slower"
    if change.high_s < 0 and -change.difference_s >= least_s:
        return "faster"
    return "same"


def _times(boots: Iterable[BootRecord]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {}
    for boot in boots:
        for phase in boot.phases:
            times.setdefault(phase.phase, []).append(phase.duration_s)
        times.setdefault(TOTAL, []).append(boot.duration_s)
    return times


# ------------------------------------------------------------------------------ of which kernel


def kernels_of(run: Run) -> dict[str, str]:
    """The release of each kernel of a run by its sha256, in the order in which they were booted."""
    epoch = datetime.fromtimestamp(0, UTC)
    machines = sorted(
        (each for each in run.machines if each.kernel), key=lambda each: each.started or epoch
    )
    return {each.kernel["sha256"]: each.kernel["release"] for each in machines}


def with_kernel(run: Run, wanted: str) -> Run:
    """What a run tells of one kernel, by its release or the beginning of its sha256.

    `ConfigError` if there is none, or more than one.
    """
    kernels = kernels_of(run)
    found = [
        sha256
        for sha256, release in kernels.items()
        if release == wanted or (len(wanted) >= 6 and sha256.startswith(wanted))
    ]
    if len(found) != 1:
        known = ", ".join(f"{release} ({sha256[:12]})" for sha256, release in kernels.items())
        problem = "more than one kernel is" if found else "no kernel is"
        raise ConfigError(f"{problem} {wanted}; there are: {known or 'none'}")
    machines = tuple(each for each in run.machines if each.kernel.get("sha256") == found[0])
    places = {each.directory.resolve() for each in machines}
    cases = tuple(case for case in run.cases if case.evidence and case.evidence.resolve() in places)
    return replace(run, machines=machines, cases=cases)
