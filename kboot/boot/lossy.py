"""A serial line that loses a character now and then.

Linux gives a busy UART 10 ms to send a character, and then writes the next one all the same
(``wait_for_xmitr`` in 8250_port.c). On a host with more machines than processors, an emulated UART
takes longer than that at times. So what stands there only almost is no proof of anything.
"""

from __future__ import annotations

#: Of one word.
_MOST_LOST = 3


def may_be(seen: str, expected: str) -> bool:
    """Whether `seen` is `expected`, or what is left of it without a few characters."""
    if not 0 <= len(expected) - len(seen) <= _MOST_LOST:
        return False
    letters = iter(expected)
    return all(letter in letters for letter in seen)
