"""The diagrams of a report, as numbers for its template: where each bar and point is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kboot.evidence import BootRecord
from kboot.statistics import Outcome, Spread, Summary

#: In the units of the diagrams' own coordinates.
WIDTH = 760
_LEFT = 92
_RIGHT = 150
_ROW = 22
_TOP = 22
#: Points of one phase in a plot.
_POINTS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark on the axis of time."""

    x: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """When a witness has seen a phase."""

    x: float
    witness: str
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A phase of a boot."""

    phase: str
    witness: str
    y: float
    x: float
    width: float
    duration_s: float
    time_s: float
    marks: tuple[Mark, ...]
    #: Where its duration is written.
    label_x: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """The phases of one boot, each below the one before it."""

    number: int
    boot: BootRecord
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """The times that a phase took in many boots: a point for each."""

    spread: Spread
    y: float
    #: Position, and whether it is an outlier.
    points: tuple[tuple[float, bool], ...]
    median_x: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StripPlot:
    """All phases of many boots."""

    strips: tuple[Strip, ...]
    ticks: tuple[Tick, ...]
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How long each boot of a loop took, in their order."""

    #: Position, and ``ready``, ``failed`` or ``error``.
    points: tuple[tuple[float, float, str], ...]
    ticks: tuple[Tick, ...]
    height: float


def _scale(longest_s: float) -> tuple[float, tuple[Tick, ...]]:
    """Units per second, and the marks of an axis that holds `longest_s`."""
    longest_s = max(longest_s, 0.001)
    width = WIDTH - _LEFT - _RIGHT
    step = 10 ** math.floor(math.log10(longest_s / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if longest_s / (factor * step) <= 6)
    per_s = width / longest_s
    ticks = tuple(
        Tick(x=round(_LEFT + number * step * per_s, 1), label=f"{number * step:g} s")
        for number in range(int(longest_s / step) + 1)
    )
    return per_s, ticks


def waterfall(number: int, boot: BootRecord) -> Waterfall:
    """The diagram of a boot, which is its machine's `number` th."""
    longest_s = max((max(p.witnesses.values(), default=p.time_s) for p in boot.phases), default=0)
    per_s, ticks = _scale(max(longest_s, boot.duration_s))
    bars = []
    for row, phase in enumerate(boot.phases):
        width = phase.duration_s * per_s
        x = _LEFT + phase.time_s * per_s - width
        marks = tuple(
            Mark(x=round(_LEFT + time_s * per_s, 1), witness=witness, time_s=time_s)
            # The console's, which is smaller, above the others.
            for witness, time_s in sorted(phase.witnesses.items(), reverse=True)
        )
        bars.append(
            Bar(
                phase=phase.phase,
                witness=phase.witness,
                y=_TOP + row * _ROW,
                x=round(x, 1),
                width=round(max(width, 1), 1),
                duration_s=phase.duration_s,
                time_s=phase.time_s,
                marks=marks,
                label_x=round(max((mark.x for mark in marks), default=x) + 10, 1),
            )
        )
    return Waterfall(
        number=number,
        boot=boot,
        bars=tuple(bars),
        ticks=ticks,
        height=_TOP + len(bars) * _ROW + 4,
    )


def strip_plot(outcomes: Sequence[Outcome], summary: Summary) -> StripPlot:
    """The times of each phase."""
    per_s, ticks = _scale(max((each.maximum_s for each in summary.spreads), default=1.0))
    strips = []
    for row, spread in enumerate(summary.spreads):
        times = [
            (each.phases_s[spread.phase], each.number in spread.outliers)
            for each in outcomes
            if spread.phase in each.phases_s and not each.infra
        ]
        step = max(1, math.ceil(len(times) / _POINTS))
        shown = [time for n, time in enumerate(times) if n % step == 0 or time[1]]
        strips.append(
            Strip(
                spread=spread,
                y=_TOP + row * _ROW,
                points=tuple(
                    (round(_LEFT + time * per_s, 1), outlying) for time, outlying in shown
                ),
                median_x=round(_LEFT + spread.median_s * per_s, 1),
            )
        )
    return StripPlot(strips=tuple(strips), ticks=ticks, height=_TOP + len(strips) * _ROW + 4)


def course(outcomes: Sequence[Outcome]) -> Course:
    """The boots of a loop, one after the other."""
    longest_s = max((each.duration_s for each in outcomes), default=1.0) or 1.0
    height = 140.0
    per_s = (height - 30) / longest_s
    step = (WIDTH - _LEFT - 20) / max(1, len(outcomes))
    points = tuple(
        (
            round(_LEFT + (index + 0.5) * step, 1),
            round(height - 20 - each.duration_s * per_s, 1),
            "error" if each.infra else "failed" if each.failure else "ready",
        )
        for index, each in enumerate(outcomes)
    )
    ticks = tuple(
        Tick(
            x=round(height - 20 - share * longest_s * per_s, 1), label=f"{share * longest_s:.3g} s"
        )
        for share in (0.0, 0.5, 1.0)
    )
    return Course(points=points, ticks=ticks, height=height)
