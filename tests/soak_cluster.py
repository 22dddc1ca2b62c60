"""Kill many runs on a cluster at random moments, then look what kboot gc leaves.

    python -m tests.soak_cluster [KILLS]

On the test cluster, whose machines only talk; each run pushes a file, boots and restarts machines.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kboot.cli import main as kboot
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.talking import talking
from tests.kubevirt.test_ownership import everything, foreign, make_old

_AT_ONCE = 4
#: From before the run has a connection to after its second restart.
_LONGEST_S = 8.0

_RUN = """
import pathlib, sys
from kboot.machine_spec import MachineSpec
from kboot.deadline import Deadline
from kboot.config import ClusterConfig
from kboot.kubevirt import open_kubevirt
with open_kubevirt(ClusterConfig()) as backend, backend.serve(Deadline(60)) as server:
    server.put(pathlib.Path(sys.argv[1]))
    while True:
        spec = MachineSpec(name="m", boot_file=server.write("m/boot.ipxe", "#!ipxe"))
        with backend.power_on(spec, Deadline(60)) as machine:
            machine.stream.recv(65536)
            machine.restart()
"""


def main(kills: int) -> int:
    """Print what the runs have left, and what is left of that in the end; 0 if it is nothing."""
    with tempfile.TemporaryDirectory() as directory, running_cluster(talking) as cluster:
        artifact = Path(directory, "artifact")
        artifact.write_bytes(os.urandom(5_000_000))
        os.environ["KUBECONFIG"] = str(cluster.write_kubeconfig(Path(directory, "kubeconfig")))
        before = everything(cluster) | foreign(cluster)
        start = time.monotonic()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            seen = list(pool.map(lambda _: _kill_one(artifact), range(kills)))
        left = everything(cluster) - before
        make_old(cluster)
        status = kboot(["gc", "--backend", "kubevirt", "--yes"])
        after = _settled(cluster, before)
    sys.stdout.write(
        f"{kills} runs killed after {min(seen):.1f} to {max(seen):.1f} s, in "
        f"{time.monotonic() - start:.0f} s; they left {len(left)} objects; after kboot gc "
        f"{len(after - before)} are left, and {len(before - after)} of others are gone\n"
    )
    return 0 if status == 0 and left and after == before else 1


def _kill_one(artifact: Path) -> float:
    seconds = random.uniform(0.3, _LONGEST_S)
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, str(artifact)], stderr=subprocess.PIPE
    ) as run:
        time.sleep(seconds)
        if run.poll() is not None:
            raise AssertionError(f"a run ended by itself: {run.communicate()[1].decode()}")
        run.send_signal(signal.SIGKILL)
    return seconds


def _settled(cluster: Cluster, wanted: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """What there is when all has gone that is about to go."""
    end = time.monotonic() + 10
    while (there := everything(cluster)) != wanted and time.monotonic() < end:
        time.sleep(0.1)
    return there


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
