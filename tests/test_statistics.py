"""Statistics of many boots: counts, intervals, clusters, times."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kboot.statistics import Outcome, summarise, wilson


def outcome(
    number: int, failure: str | None = None, *, infra: bool = False, linux_s: float = 1.0
) -> Outcome:
    return Outcome(
        number=number,
        failure=failure,
        crashed=failure is not None,
        infra=infra,
        duration_s=10.0,
        phases_s={"linux": linux_s},
    )


@pytest.mark.parametrize(
    ("failures", "boots", "low", "high"),
    # From the score test solved by hand: |rate - p| = z * sqrt(p * (1 - p) / n).
    [(0, 10, 0.0, 0.2775), (1, 5, 0.0362, 0.6245), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)],
)
def test_the_interval_is_wilsons(failures: int, boots: int, low: float, high: float) -> None:
    assert list(wilson(failures, boots)) == pytest.approx([low, high], abs=5e-4)


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_its_ends_are_where_the_score_test_just_fails(counts: tuple[int, int]) -> None:
    failures, boots = counts
    rate = failures / boots
    for end in wilson(failures, boots):
        if 0 < end < 1:
            score = abs(rate - end) / math.sqrt(end * (1 - end) / boots)
            assert score == pytest.approx(1.959964, rel=1e-6)


def test_without_boots_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert summarise([]).boots == 0


def test_boots_that_the_host_failed_do_not_count() -> None:
    found = summarise([outcome(1), outcome(2, "nginx stopped", infra=True), outcome(3, "panic")])
    assert (found.boots, found.failures, found.infra) == (2, 1, 1)
    assert found.rate == 0.5


def test_failures_are_clustered_by_what_they_were() -> None:
    found = summarise([outcome(1, "a"), outcome(2, "b"), outcome(3), outcome(4, "b")])
    assert [(each.failure, each.boots) for each in found.clusters] == [("b", (2, 4)), ("a", (1,))]


def test_a_slow_boot_stands_out() -> None:
    times = [1.0, 1.1, 0.9, 1.0, 9.0, 1.05, 0.95]
    found = summarise([outcome(n, linux_s=time) for n, time in enumerate(times, start=1)])
    (spread,) = found.spreads
    assert spread.outliers == (5,)
    assert (spread.minimum_s, spread.median_s, spread.maximum_s) == (0.9, 1.0, 9.0)


def test_boots_of_equal_length_have_no_outliers() -> None:
    found = summarise([outcome(n, linux_s=1.0 + n / 1000) for n in range(20)])
    assert found.spreads[0].outliers == ()
