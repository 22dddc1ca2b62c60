"""Leases of a pool on a cluster: ``python -m tests.soak_cluster_pool [LEASES [PANICS [...]]]``.

As ``tests.soak_pool``, on the test cluster with replayed guests: a replica set of four. Nobody may
ever get a machine that was used, and nothing may be left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from kboot.statistics import median
from kboot.testing import GuestAction, write_kernel
from kboot.testing.guest import Answer
from tests import soak_pool
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.replayed import RELEASE, Commands, everything_succeeds, replayed

_NAME, _REPLICAS = "soak", 4
_TOUCH = "test ! -e /root/mark && touch /root/mark"
_KINDS = ("virtualmachineinstancereplicasets", "virtualmachineinstances", "configmaps", "services")


def _commands() -> Commands:
    """Of one guest, which knows whether somebody had it."""
    used = False

    def answer(command: str) -> Answer:
        nonlocal used
        if command == _TOUCH:
            before, used = used, True
            return (1, "used") if before else ""
        if "sysrq" in command:
            return GuestAction.PANIC
        return everything_succeeds(command)

    return answer


def _up(kernel: Path) -> None:
    words = soak_pool.kboot("pool", "up", _NAME, f"--replicas={_REPLICAS}", f"--kernel={kernel}")
    words += ["--backend=kubevirt", "--cmdline=panic=0"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def _left(cluster: Cluster) -> list[str]:
    return [each["metadata"]["name"] for kind in _KINDS for each in cluster.objects(kind)]


def main(leases: int, panics: int, killed: int, supervisors: int) -> int:
    """Run it; 0 if nothing was handed out twice and nothing is left."""
    make_guest = replayed(make_commands=_commands, boot_s=0.5)
    with (
        tempfile.TemporaryDirectory(prefix="kboot-soak-") as name,
        running_cluster(make_guest) as cluster,
    ):
        folder = Path(name)
        for variable in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            os.environ[variable] = name
        os.environ["KUBECONFIG"] = str(cluster.write_kubeconfig(folder / "kubeconfig"))
        kernel = write_kernel(folder / "vmlinuz", RELEASE)
        _up(kernel)
        seconds = [soak_pool.lease(_TOUCH) for _ in range(leases)]
        sys.stdout.write(f"{leases} leases, none of a machine that was used: {median(seconds)}\n")
        for _ in range(panics):
            soak_pool.lease("echo c >/proc/sysrq-trigger", check=False)
        complete_s = soak_pool.wait_until_complete()
        sys.stdout.write(f"{panics} panics; complete again after {complete_s:.1f} s\n")
        for _ in range(killed):
            soak_pool.killed_holder()
        complete_s = soak_pool.wait_until_complete()
        sys.stdout.write(f"{killed} holders killed; complete again after {complete_s:.1f} s\n")
        soak_pool.lease(_TOUCH)
        if panics and not soak_pool.status()["broken"]:
            raise AssertionError("no evidence of what broke")
        for _ in range(supervisors):
            os.kill(soak_pool.supervisor(), signal.SIGKILL)
            subprocess.run(
                soak_pool.kboot("gc", "--backend", "kubevirt", "--yes"),
                check=True,
                stdout=subprocess.DEVNULL,
            )
            _up(kernel)
            soak_pool.lease(_TOUCH)
        subprocess.run(soak_pool.kboot("pool", "down", _NAME), check=True)
        left = _left(cluster)
    sys.stdout.write(f"{supervisors} pools killed and begun again; left behind: {left}\n")
    return 1 if left else 0


if __name__ == "__main__":
    counts = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*[*counts, *(100, 20, 10, 2)[len(counts) :]]))
