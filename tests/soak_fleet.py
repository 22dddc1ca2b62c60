"""Cuts in a row: ``python -m tests.soak_fleet KERNEL.deb [ROUNDS [MACHINES]]``.

Eight machines on one network. In each round the cables of all but one are pulled at once, nobody
reaches anybody, they are plugged in again, and everybody has to reach everybody.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from kboot.config import Config
from kboot.fleet import Fleet, open_fleet, read_roles
from kboot.session import open_session
from kboot.statistics import median

_SKEW_LIMIT_S = 0.1


def one(fleet: Fleet, skews: list[float]) -> float:
    """Cut, heal; the seconds until all reach each other again."""
    everybody = {(a, b) for a in fleet.names for b in fleet.names if a != b}
    with fleet.cut("worker") as cut:
        reached = fleet.reachable(timeout=1)
        assert not reached, f"reached in spite of the cut: {reached}"
    skews.append(cut.skew_s)
    seconds = fleet.wait_until(lambda: fleet.reachable(timeout=1) == everybody, timeout=60)
    fleet.check_reports()
    return seconds


def main() -> None:
    """Run it."""
    config = Config(kernel=str(Path(sys.argv[1]).resolve()), accel="tcg")
    rounds = int(sys.argv[2]) if sys.argv[2:] else 100
    roles = read_roles({"control": 1, "worker": (int(sys.argv[3]) if sys.argv[3:] else 8) - 1})
    skews: list[float] = []
    seconds = []
    with (
        tempfile.TemporaryDirectory(prefix="kboot-soak-") as folder,
        open_session(config, evidence=Path(folder)) as session,
    ):
        begin = time.monotonic()
        with open_fleet(session, roles, {role.name: config for role in roles}) as fleet:
            print(f"{len(fleet)} machines up after {time.monotonic() - begin:.1f} s", flush=True)
            for number in range(rounds):
                seconds.append(one(fleet, skews))
                if number % 10 == 9:
                    print(f"{number + 1}: healed after {median(seconds)}", flush=True)
    print(f"healed {len(seconds)} of {rounds}; cuts at most {1000 * max(skews):.1f} ms apart")
    if max(skews) > _SKEW_LIMIT_S:
        sys.exit("too far apart")


if __name__ == "__main__":
    main()
