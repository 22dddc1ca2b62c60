"""How many boots without the failure make a kernel a good one; pure.

A boot that shows the failure proves a kernel bad. One that does not proves little where the failure
shows now and then: how often it does is learnt from the kernels that are known to be bad.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

#: Before anything is known: that the failure shows every time, or else at any rate (Jeffreys).
_CERTAIN = 0.5
_JEFFREYS = 0.5
#: A rate that nobody has the time to find.
_MOST_BOOTS = 100_000


@dataclass(slots=True)
class Tally:
    """The boots of one kernel."""

    #: Showed the failure.
    hits: int = 0
    #: Went well.
    passes: int = 0
    #: Went wrong in another way.
    others: int = 0
    #: The host failed.
    infra: int = 0

    @property
    def boots(self) -> int:
        """All of them."""
        return self.hits + self.passes + self.others + self.infra


@dataclass(frozen=True, slots=True)
class Rate:
    """What is known of how often a bad kernel shows the failure."""

    hits: int
    passes: int

    @classmethod
    def of(cls, tallies: Iterable[Tally]) -> Rate:
        """From all kernels that have shown it."""
        bad = [each for each in tallies if each.hits]
        return cls(sum(each.hits for each in bad), sum(each.passes for each in bad))

    @property
    def middle(self) -> float:
        """The share of boots that showed it; 1 if nothing is known."""
        boots = self.hits + self.passes
        return self.hits / boots if boots else 1.0

    def chance_of_passes(self, count: int) -> float:
        """How likely it is that a bad kernel does not show the failure in so many boots."""
        if count == 0:
            return 1.0
        a, b = _JEFFREYS + self.hits, _JEFFREYS + self.passes
        some = math.exp(_log_beta(a, b + count) - _log_beta(a, b))
        if self.passes:
            return some
        # It has shown each time so far: how likely is that if it does not always?
        not_always = math.exp(_log_beta(a, b) - _log_beta(_JEFFREYS, _JEFFREYS))
        share = (1 - _CERTAIN) * not_always
        return some * share / (_CERTAIN + share)

    def passes_needed(self, error: float) -> int:
        """In how many boots a bad kernel shows the failure, but for an `error` of cases."""
        low, high = 1, 1
        while self.chance_of_passes(high) > error and high < _MOST_BOOTS:
            low, high = high, 2 * high
        while low < high:
            middle = (low + high) // 2
            if self.chance_of_passes(middle) > error:
                low = middle + 1
            else:
                high = middle
        return low


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
