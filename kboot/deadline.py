"""One budget of time, handed down from the caller to every wait below it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


class Deadline:
    """A moment on the monotonic clock by which the work must be done.

    Made once, at the top, and passed down; a step that has a budget of its own takes a part of it
    with `within`, which never reaches past the whole.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds = seconds
        self.start = clock()
        self.end = self.start + seconds

    def within(self, seconds: float) -> Deadline:
        """A deadline `seconds` from now, or this one's end if that comes first."""
        return Deadline(min(seconds, self.remaining), clock=self._clock)

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.end - self._clock())

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self._clock() >= self.end

    def poll(self, interval_s: float) -> Iterator[float]:
        """Yield the seconds left, at once and then every `interval_s`, until none is left.

        Use it with ``for ... else``: the ``else`` branch is the time-out.
        """
        while not self.expired:
            yield self.remaining
            time.sleep(min(interval_s, self.remaining))


def time_limit(timeout: float | None, deadline: Deadline | None, default_s: float) -> Deadline:
    """The deadline of a public call: its `timeout` in seconds, within a `deadline` from inside.

    With neither, it has `default_s`.
    """
    if deadline is None:
        return Deadline(default_s if timeout is None else timeout)
    return deadline if timeout is None else deadline.within(timeout)
