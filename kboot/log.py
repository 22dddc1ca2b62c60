"""What kboot is doing, as nested, timed log lines.

The library logs to the logger ``kboot`` and never prints; the command line and pytest decide what
is shown.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import time
from collections.abc import Iterator

logger = logging.getLogger("kboot")

_depth: contextvars.ContextVar[int] = contextvars.ContextVar("kboot_step_depth", default=0)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Log `what` when it begins and how long it took when it ends, indented below its parent."""
    depth = _depth.get()
    indent = "  " * depth
    token = _depth.set(depth + 1)
    start = time.monotonic()
    logger.debug("%s%s", indent, what)
    try:
        yield
    except BaseException as error:
        logger.debug(
            "%s%s: %s after %.2f s", indent, what, type(error).__name__, time.monotonic() - start
        )
        raise
    else:
        logger.debug("%s%s: done in %.2f s", indent, what, time.monotonic() - start)
    finally:
        _depth.reset(token)


def age(seconds: float) -> str:
    """A length of time for people, in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:z.0f} s"
