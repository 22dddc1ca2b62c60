"""What a benchmark returns, and the one way to compare two things fairly."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value."""

    value: float
    #: ``ms``, ``s``, ``MB/s``, ``%``, or ``x`` for a ratio.
    unit: str
    #: What `value` was made of, in the order of measurement, in the same unit where that applies.
    runs: tuple[float, ...] = ()


def proportional_mib(pid: int) -> float:
    """A process's share of the host's memory: its part of what several share, counted once."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return int(fields["Pss"].split()[0]) / 1024


def interleaved(
    subject: Callable[[], float], reference: Callable[[], float], *, rounds: int
) -> list[tuple[float, float]]:
    """Measure both in turn, `rounds` times: pairs of (subject, reference).

    A shared machine has good and bad minutes; neighbours in time have the same ones.
    """
    pairs = []
    for number in range(rounds):
        if number % 2:
            second = reference()
            pairs.append((subject(), second))
        else:
            pairs.append((subject(), reference()))
        first, second = pairs[-1]
        sys.stderr.write(f"  {number + 1} of {rounds}: {first:.3f} against {second:.3f}\n")
    return pairs


def median_difference(pairs: list[tuple[float, float]], *, unit: str) -> Figure:
    """By how much the subject is above the reference, as the median over all pairs."""
    runs = tuple(subject - reference for subject, reference in pairs)
    return Figure(value=statistics.median(runs), unit=unit, runs=runs)


def median_ratio(pairs: list[tuple[float, float]]) -> Figure:
    """How many times the reference the subject is, as the median over all pairs."""
    runs = tuple(subject / reference for subject, reference in pairs)
    return Figure(value=statistics.median(runs), unit="x", runs=runs)
