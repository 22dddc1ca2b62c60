"""A fleet on a cluster from its start to its end, with guests that boot as one was recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import KernelCrash
from kboot.fleet import open_fleet, read_roles
from kboot.session import open_session
from kboot.testing import GuestAction, write_kernel
from kboot.testing.guest import Answer
from tests import soak_cluster_fleet
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.replayed import RELEASE, everything_succeeds, replayed


def commands(command: str) -> Answer:
    return GuestAction.PANIC if command == "crash" else everything_succeeds(command)


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(replayed(commands)) as cluster:
        yield cluster


def watches(cluster: Cluster) -> Counter[str]:
    """How often each kind of object is watched."""
    calls = cluster.calls("watch=true")
    return Counter(call.split("?")[0].rpartition("/")[2] for call in calls)


def test_a_fleet_has_one_watch_for_each_kind_and_leaves_nothing(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_cluster_fleet, "_QUIET_S", 0.0)
    monkeypatch.setattr(soak_cluster_fleet, "_ROUNDS", 2)
    soak_cluster_fleet.measure(tmp_path, 4)
    assert watches(cluster) == {"virtualmachines": 1, "virtualmachineinstances": 1, "pods": 1}
    assert cluster.objects("virtualmachines") + cluster.objects("services") == []


def test_one_bad_machine_of_a_fleet_is_blamed_by_its_name(cluster: Cluster, tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "vmlinuz", RELEASE)
    config = Config(kernel=str(kernel), backend="kubevirt", isolation="none", cmdline="panic=0")
    roles = read_roles({"worker": 2})
    with (
        open_session(config, evidence=tmp_path / "evidence") as session,
        open_fleet(session, roles, {"worker": config}) as fleet,
    ):
        bad = fleet["worker-2"]
        bad.guest.run("crash", timeout=20)
        for _ in Deadline(20).poll(0.02):
            if bad.console.fatal:
                break
        with pytest.raises(KernelCrash, match=r"^worker-2: .*sysrq"):
            fleet.all.check()
        fleet["worker-1"].check()
