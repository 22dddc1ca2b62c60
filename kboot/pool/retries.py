"""When the next machine of a pool may be started, after some that were good for nothing."""

from __future__ import annotations

import time

#: Seconds until the next try: doubled each time, up to the last.
_RETRY_S = (1.0, 60.0)


class Retries:
    """Not for two threads at a time."""

    def __init__(self) -> None:
        self._pause_s = _RETRY_S[0]
        self._at = 0.0
        #: So many machines in a row have broken before they were of any use.
        self._broken = 0

    @property
    def is_due(self) -> bool:
        """Whether a machine may be started now."""
        return time.monotonic() >= self._at

    def fail(self) -> None:
        """One could not be started: the next one has to wait."""
        self._at = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _RETRY_S[1])

    def break_early(self, replicas: int) -> bool:
        """One broke before it was of any use; whether the next one has to wait.

        All of them may break at once, and are replaced at once. More in a row would break as well.
        """
        self._broken += 1
        if self._broken <= replicas:
            return False
        self.fail()
        return True

    def prove(self) -> None:
        """One was good for something: the next one that breaks is replaced at once."""
        self._broken, self._pause_s = 0, _RETRY_S[0]
