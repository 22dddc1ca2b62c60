"""Names and labels of what kboot puts on a cluster."""

from __future__ import annotations

import hashlib
import re
import secrets

#: Which run an object belongs to.
RUN_LABEL = "kboot.dev/run"
#: Which of the run's machines an object belongs to.
MACHINE_LABEL = "kboot.dev/machine"
#: How a machine that stays is called, and by whom.
NAME_LABEL = "kboot.dev/name"
OWNER_LABEL = "kboot.dev/owner"
#: On everything that kboot has made; what is without it, kboot never touches.
MANAGED_BY = "app.kubernetes.io/managed-by"

#: A DNS label; Services, and host names made of machines' names, take no more.
_LONGEST = 63


def new_run() -> str:
    """An identifier for a run: 10 characters that may begin, end and fill a DNS label."""
    return "r" + secrets.token_hex(5)[:9]


def object_name(run: str, what: str = "") -> str:
    """The name of an object of a run: ``kboot-<run>``, or ``kboot-<run>-<what>``.

    Valid as a DNS label whatever `what` is, and different for different ones: what has to be
    changed or cut short ends in a hash of the whole.
    """
    prefix = f"kboot-{run}"
    if not what:
        return prefix
    return f"{prefix}-{label(what, _LONGEST - len(prefix) - 1)}"


def label(text: str, longest: int = _LONGEST) -> str:
    """`text` as a DNS label, and different for different ones; see `object_name`."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if plain == text and len(plain) <= longest:
        return plain
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    kept = plain[: longest - len(digest) - 1].rstrip("-")
    return f"{kept}-{digest}" if kept else digest


def labels(run: str, *, component: str) -> dict[str, str]:
    """The labels of an object of a run."""
    return {
        "app.kubernetes.io/name": "kboot",
        "app.kubernetes.io/instance": object_name(run),
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "kboot",
        MANAGED_BY: "kboot",
        RUN_LABEL: run,
    }


def selector(run: str | None = None) -> str:
    """The label selector for the objects of a run, or of all runs of kboot."""
    ours = f"{MANAGED_BY}=kboot"
    return f"{ours},{RUN_LABEL}={run}" if run else ours
