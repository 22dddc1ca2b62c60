"""kboot.deadline: one budget, handed down."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kboot.deadline import Deadline


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_deadline_counts_down_and_stops_at_nothing() -> None:
    clock = Clock()
    deadline = Deadline(10, clock=clock)
    assert deadline.remaining == 10
    clock.now += 4
    assert deadline.remaining == 6
    assert not deadline.expired
    clock.now += 7
    assert deadline.remaining == 0
    assert deadline.expired


def test_no_time_at_all_is_expired_from_the_start() -> None:
    assert Deadline(0, clock=Clock()).expired


@given(
    whole=st.floats(0, 1000),
    part=st.floats(0, 1000),
    passed=st.floats(0, 2000),
)
def test_a_part_never_reaches_past_the_whole(whole: float, part: float, passed: float) -> None:
    clock = Clock()
    deadline = Deadline(whole, clock=clock)
    clock.now += passed
    # Adding to and taking from a clock's reading loses the last few bits.
    rounding = 1e-9
    assert deadline.within(part).end <= max(deadline.end, clock.now) + rounding
    assert deadline.within(part).remaining <= part + rounding


def test_polling_yields_at_once_and_then_until_no_time_is_left() -> None:
    seen = list(Deadline(0.1).poll(0.02))
    assert len(seen) >= 2
    assert seen == sorted(seen, reverse=True)


def test_polling_does_not_sleep_past_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    assert list(Deadline(10, clock=clock).poll(4)) == [10, 6, 2]
    assert slept == [4, 4, 2]


def test_polling_an_expired_deadline_goes_straight_to_the_timeout() -> None:
    for _ in Deadline(0).poll(1):
        outcome = "looked"
        break
    else:
        outcome = "timed out"
    assert outcome == "timed out"
