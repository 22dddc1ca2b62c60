"""What a fleet of 50 on a cluster costs here: ``python -m tests.soak_cluster_fleet [MACHINES]``.

The test cluster is another process, and its machines' consoles are replayed, so that what is
measured is kboot's own: one watch for each kind of object, at most one processor, at most 250 MiB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kboot.config import Config
from kboot.fleet import open_fleet, read_roles
from kboot.session import open_session
from kboot.testing import write_kernel
from tests.kubevirt.cluster import running_cluster
from tests.kubevirt.replayed import RELEASE, replayed

_MACHINES = 50
_ROUNDS = 5
_MOST_CORES, _MOST_MIB = 1.0, 250.0
#: For machines that run, and nothing is done with them.
_QUIET_S = 10.0


def main(machines: int) -> int:
    """Print what a fleet costs; 0 if that is no more than it may be."""
    with tempfile.TemporaryDirectory() as directory, _cluster(Path(directory)) as ask:
        found = measure(Path(directory), machines)
        watches = {call.split("?")[0].rpartition("/")[2]: 0 for call in ask("calls", "watch=true")}
        for call in ask("calls", "watch=true"):
            watches[call.split("?")[0].rpartition("/")[2]] += 1
        left = ask("left", "")
    sys.stdout.write(
        f"{machines} machines: up in {found['up_s']:.0f} s with {found['up_cores']:.2f} cores, "
        f"{found['quiet_cores']:.3f} cores while nothing is done, {found['work_cores']:.2f} while "
        f"{_ROUNDS} times all are cut, healed and asked; {found['mib']:.0f} MiB at most; watches: "
        f"{watches}; left: {left}\n"
    )
    good = (
        max(found["up_cores"], found["quiet_cores"], found["work_cores"]) <= _MOST_CORES
        and found["mib"] <= _MOST_MIB
        and set(watches.values()) == {1}
        and not left
    )
    return 0 if good else 1


def measure(directory: Path, machines: int) -> dict[str, float]:
    """What a fleet costs this process, in cores and MiB."""
    kernel = write_kernel(directory / "vmlinuz", RELEASE)
    config = Config(kernel=str(kernel), backend="kubevirt", isolation="none")
    roles = read_roles({"control": 1, "worker": machines - 1})
    clock = _Clock()
    with (
        open_session(config, evidence=directory / "evidence") as session,
        open_fleet(session, roles, {role.name: config for role in roles}) as fleet,
    ):
        up_cores, up_s = clock.lap()
        time.sleep(_QUIET_S)
        quiet_cores, _ = clock.lap()
        for _ in range(_ROUNDS):
            with fleet.cut("worker"):
                pass
            boots = fleet.role("worker").run("cat /proc/sys/kernel/random/boot_id")
            if len({result.stdout for result in boots.values()}) != machines - 1:
                raise AssertionError("two machines are one")
        work_cores, _ = clock.lap()
    return {
        "up_s": up_s,
        "up_cores": up_cores,
        "quiet_cores": quiet_cores,
        "work_cores": work_cores,
        "mib": _peak_mib(),
    }


class _Clock:
    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.monotonic()

    def lap(self) -> tuple[float, float]:
        """Processors that were used since the last lap, and its seconds."""
        cpu, wall = time.process_time(), time.monotonic()
        used, seconds = cpu - self._cpu, wall - self._wall
        self._cpu, self._wall = cpu, wall
        return used / seconds, seconds


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(peak) / 1024


@contextmanager
def _cluster(directory: Path) -> Iterator[Any]:
    """The test cluster in a process of its own; what it is asked, it answers."""
    words = [sys.executable, "-m", "tests.soak_cluster_fleet", "--serve", str(directory)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        os.environ["KUBECONFIG"] = other.stdout.readline().strip()

        def ask(what: str, pattern: str) -> Any:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write(f"{what} {pattern}\n")
            other.stdin.flush()
            return json.loads(other.stdout.readline())

        yield ask
        other.stdin.close()


def _serve(directory: Path) -> int:
    with running_cluster(replayed(boot_s=1.0)) as cluster:
        sys.stdout.write(f"{cluster.write_kubeconfig(directory / 'kubeconfig')}\n")
        sys.stdout.flush()
        for line in sys.stdin:
            what, _, pattern = line.strip().partition(" ")
            answer = (
                cluster.calls(pattern)
                if what == "calls"
                else [
                    each["metadata"]["name"]
                    for plural in ("virtualmachines", "configmaps", "services", "pods")
                    for each in cluster.objects(plural)
                ]
            )
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        sys.exit(_serve(Path(sys.argv[2])))
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else _MACHINES))
