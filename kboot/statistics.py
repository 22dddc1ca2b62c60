"""The statistics of many boots; pure."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

#: Of the standard normal distribution: 95 % lie within so many deviations of its middle.
_Z_95 = 1.959964
#: A time this many scaled median deviations from the median is an outlier.
_OUTLYING = 3.5
#: What makes the median deviation comparable to a standard deviation, for a normal distribution.
_SCALE = 1.4826
#: With fewer boots nothing stands out.
_FEW = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one boot went."""

    #: From 1.
    number: int
    #: The crash's title, or where it hung and why; None if it became ready.
    failure: str | None
    #: Whether the failure is a crash of the kernel.
    crashed: bool
    #: Whether the host failed, so that nothing was learnt about the kernel.
    infra: bool
    duration_s: float
    #: Of each phase, the seconds since the previous one.
    phases_s: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Boots that failed in the same way."""

    failure: str
    #: Their numbers.
    boots: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The times that one phase took."""

    phase: str
    count: int
    minimum_s: float
    median_s: float
    p95_s: float
    maximum_s: float
    #: The numbers of the boots in which it took unusually long or short.
    outliers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is known after some boots."""

    #: Boots that tell something about the kernel: those that the host failed are not among them.
    boots: int
    failures: int
    #: The share of failures, and the interval that holds the true one with 95 % (Wilson).
    rate: float
    low: float
    high: float
    infra: int
    #: The most frequent first.
    clusters: tuple[Cluster, ...]
    spreads: tuple[Spread, ...]


def wilson(failures: int, boots: int) -> tuple[float, float]:
    """The interval that holds the true rate of failures with 95 %, by Wilson's score.

    Unlike the usual one it is right for few boots, and where none or all have failed. Without any
    boots, everything is possible.
    """
    if boots == 0:
        return 0.0, 1.0
    rate = failures / boots
    square = _Z_95**2
    middle = (rate + square / (2 * boots)) / (1 + square / boots)
    half = (
        _Z_95
        / (1 + square / boots)
        * math.sqrt(rate * (1 - rate) / boots + square / (4 * boots**2))
    )
    # At its ends the formula is exact, and floating point is not.
    low = 0.0 if failures == 0 else max(0.0, middle - half)
    high = 1.0 if failures == boots else min(1.0, middle + half)
    return low, high


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """All of it."""
    counted = [each for each in outcomes if not each.infra]
    failed = [each for each in counted if each.failure is not None]
    low, high = wilson(len(failed), len(counted))
    return Summary(
        boots=len(counted),
        failures=len(failed),
        rate=len(failed) / len(counted) if counted else 0.0,
        low=low,
        high=high,
        infra=len(outcomes) - len(counted),
        clusters=_clusters([each for each in outcomes if each.failure is not None]),
        spreads=_spreads(counted),
    )


def _clusters(failed: Sequence[Outcome]) -> tuple[Cluster, ...]:
    numbers: dict[str, list[int]] = {}
    for each in failed:
        numbers.setdefault(each.failure or "", []).append(each.number)
    ordered = sorted(numbers.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(Cluster(failure=failure, boots=tuple(boots)) for failure, boots in ordered)


def _spreads(outcomes: Sequence[Outcome]) -> tuple[Spread, ...]:
    names = dict.fromkeys(phase for each in outcomes for phase in each.phases_s)
    return tuple(
        _spread(
            phase,
            {each.number: each.phases_s[phase] for each in outcomes if phase in each.phases_s},
        )
        for phase in names
    )


def _spread(phase: str, times_s: Mapping[int, float]) -> Spread:
    ordered = sorted(times_s.values())
    median = statistics.median(ordered)
    deviation = _SCALE * statistics.median(abs(time - median) for time in ordered)
    # Times that hardly differ at all have no outliers worth reporting.
    tolerance = max(_OUTLYING * deviation, 0.1 * median, 0.1)
    return Spread(
        phase=phase,
        count=len(ordered),
        minimum_s=ordered[0],
        median_s=median,
        # The nearest rank: one of the times there were.
        p95_s=ordered[math.ceil(0.95 * len(ordered)) - 1],
        maximum_s=ordered[-1],
        outliers=tuple(number for number, time in times_s.items() if abs(time - median) > tolerance)
        if len(ordered) >= _FEW
        else (),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How much longer something takes than before."""

    before_count: int
    after_count: int
    before_s: float
    after_s: float
    #: The difference of the medians, and the interval that holds the true one.
    difference_s: float
    low_s: float
    high_s: float


#: Resamples of a bootstrap: the ends of an interval of 99.5 % have 12 of them beyond.
_RESAMPLES = 5000


def median_change(
    before: Sequence[float],
    after: Sequence[float],
    *,
    confidence: float,
    resamples: int = _RESAMPLES,
) -> Change:
    """The difference of the medians of two samples, with its interval by bootstrap (percentiles).

    The same samples have the same interval. Both must have values.
    """
    chance = random.Random(0)  # noqa: S311  reproducible, and no secret
    old, new = sorted(before), sorted(after)
    differences = sorted(
        _resampled_median(new, chance) - _resampled_median(old, chance) for _ in range(resamples)
    )
    tail = (1 - confidence) / 2
    return Change(
        before_count=len(old),
        after_count=len(new),
        before_s=statistics.median(old),
        after_s=statistics.median(new),
        difference_s=statistics.median(new) - statistics.median(old),
        low_s=differences[math.floor(tail * resamples)],
        high_s=differences[math.ceil((1 - tail) * resamples) - 1],
    )


def _resampled_median(ordered: Sequence[float], chance: random.Random) -> float:
    """The median of as many values drawn from the sample, with replacement.

    Which of the sample's values it is follows the order statistics of uniform numbers: two draws,
    however large the sample.
    """
    count = len(ordered)
    middle = (count + 1) // 2
    share = chance.betavariate(middle, count - middle + 1)
    low = ordered[min(count - 1, int(share * count))]
    if count % 2:
        return low
    # The next one of the uniform numbers, given the middle one.
    share += (1 - share) * chance.betavariate(1, count - middle)
    return (low + ordered[min(count - 1, int(share * count))]) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """The middle of some measured times, and between which of them the true one lies."""

    seconds: tuple[float, ...]
    median_s: float
    #: With 95 %, whatever the times' distribution is; the extremes where they are too few for that.
    low_s: float
    high_s: float

    def __str__(self) -> str:
        """For people."""
        return (
            f"{self.median_s:.2f} s (95 %: {self.low_s:.2f} to {self.high_s:.2f} s, "
            f"{len(self.seconds)} rounds)"
        )


def median(seconds: Sequence[float]) -> Median:
    """The median of at least one time, with its interval by order statistics."""
    times = sorted(seconds)
    count = len(times)
    # Of how many on either side can be left out: Binomial(count, 1/2) below that is under 2.5 %.
    left_out, below = 0, 0.0
    for number in range(count // 2):
        below += math.comb(count, number) / 2**count
        if below > 0.025:
            break
        left_out = number
    return Median(
        seconds=tuple(seconds),
        median_s=statistics.median(times),
        low_s=times[left_out],
        high_s=times[count - 1 - left_out],
    )
