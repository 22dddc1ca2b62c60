"""Pools on a cluster: a replica set keeps the machines, labels take one out, nothing stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot import service
from kboot.backend import ReplicaBackend
from kboot.cli import main
from kboot.config import ClusterConfig, Config
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError, InfraError
from kboot.kubevirt import KubevirtBackend, manifests, replica_set, watches
from kboot.machine import Machine
from kboot.machine_spec import MachineSpec
from kboot.pool import Pool, State
from kboot.pool.replicas import open_replicas
from kboot.pool.service import KIND, _pool_of
from kboot.session import open_session
from kboot.testing import GuestAction, write_kernel
from kboot.testing.guest import Answer
from tests.kubevirt import schema
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.recordings import calls, needs_recordings, rows
from tests.kubevirt.replayed import RELEASE, everything_succeeds, replayed

RUN = manifests.Run(identifier="r123456789", namespace="team", owner_uid="c0ffee")
SPEC = MachineSpec(name="pool", boot_file="http://kboot/boot.ipxe")


def commands(command: str) -> Answer:
    return GuestAction.PANIC if command == "crash" else everything_succeeds(command)


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(replayed(commands)) as cluster:
        yield cluster


def instances(cluster: Cluster, *, waiting: bool) -> list[dict[str, Any]]:
    """Those that the set has, or those that were taken out."""
    return [
        vmi
        for vmi in cluster.objects("virtualmachineinstances")
        if (replica_set.POOL_LABEL in vmi["metadata"]["labels"]) == waiting
    ]


def eventually(condition: Callable[[], object]) -> None:
    for _ in Deadline(30).poll(0.02):
        if condition():
            return
    assert condition()


class Ended:
    """What the pool has told of machines that are off."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}

    def __call__(self, machine: Machine, fault: str) -> None:
        self.faults[machine.name] = fault


@contextlib.contextmanager
def pool_of(
    tmp_path: Path, replicas: int, *, max_age_s: float | None = None, ended: Ended | None = None
) -> Iterator[Pool]:
    kernel = write_kernel(tmp_path / "vmlinuz", RELEASE)
    config = Config(kernel=str(kernel), backend="kubevirt", cmdline="panic=0")
    with (
        open_session(config, evidence=tmp_path / "evidence") as session,
        _pool_of(session, replicas, max_age_s, on_ended=ended or Ended()) as pool,
    ):
        yield pool


def ready(pool: Pool) -> int:
    return sum(each.state is State.READY for each in pool.machines)


@needs_recordings
@pytest.mark.parametrize("ssh", [False, True])
def test_the_api_server_knows_every_field_of_the_set(ssh: bool) -> None:
    spec = MachineSpec(name="pool", boot_file="http://kboot/", ssh=ssh)
    made = replica_set.manifest(spec, RUN, ClusterConfig(), replicas=4)
    assert schema.faults(made) == []
    (recorded,) = calls("pool", "POST", "virtualmachineinstancereplicasets?fieldValidation=Strict")
    assert made["spec"].keys() == recorded["request"]["spec"].keys()


def test_machines_of_a_set_load_ones_own_ipxe_as_others_do(
    cluster: Cluster, tmp_path: Path
) -> None:
    own = tmp_path / "ipxe.lkrn"
    own.write_bytes(bytes(0x202) + b"HdrS")
    kernel = write_kernel(tmp_path / "vmlinuz", RELEASE)
    config = Config(kernel=str(kernel), backend="kubevirt", ipxe=own)
    with open_session(config, evidence=tmp_path / "evidence") as session:
        assert isinstance(session.backend, ReplicaBackend)
        with open_replicas(session, session.backend, 0):
            (made,) = cluster.objects("virtualmachineinstancereplicasets")
            (card,) = made["spec"]["template"]["spec"]["domain"]["devices"]["interfaces"]
    assert card["dhcpOptions"]["bootFileName"].endswith("/scripts/pool/kboot-load.ipxe")


def test_machines_with_an_ssh_server_are_probed() -> None:
    def probes(spec: MachineSpec) -> set[str]:
        made = replica_set.manifest(spec, RUN, ClusterConfig(), replicas=1)
        instance: dict[str, Any] = made["spec"]["template"]["spec"]
        # Each has an address of its own.
        assert "macAddress" not in instance["domain"]["devices"]["interfaces"][0]
        return {"readinessProbe", "livenessProbe"} & instance.keys()

    assert probes(MachineSpec(name="pool", boot_file="http://x/", ssh=True)) == {
        "readinessProbe",
        "livenessProbe",
    }
    assert probes(MachineSpec(name="pool", boot_file="http://x/")) == set()


def test_a_lease_takes_a_machine_out_of_the_set_and_another_takes_its_place(
    cluster: Cluster, tmp_path: Path
) -> None:
    with pool_of(tmp_path, 2) as pool:
        eventually(lambda: ready(pool) == 2)
        names = {each["metadata"]["name"] for each in instances(cluster, waiting=True)}
        assert len(names) == 2
        lease = pool.acquire("me", ttl=60, timeout=30)
        (taken,) = instances(cluster, waiting=False)
        assert taken["metadata"]["name"] in names
        assert taken["metadata"]["annotations"][replica_set.TAKEN] == "leased to me"
        # It goes with the run, whatever becomes of us.
        assert [it["kind"] for it in taken["metadata"]["ownerReferences"]] == ["ConfigMap"]
        assert pool.run(lease.identifier, "uname -r", timeout=20).stdout == f"{RELEASE}\n"
        eventually(lambda: ready(pool) == 2)
        boots = {lease.machine.boot_id}
        pool.release(lease.identifier)
        for number in range(2):
            other = pool.acquire(f"user {number}", ttl=60, timeout=30)
            assert other.machine.pristine
            boots.add(other.machine.boot_id)
            pool.release(other.identifier)
        # Nobody got what somebody had.
        assert len(boots) == 3
        eventually(lambda: instances(cluster, waiting=False) == [])
    assert cluster.objects("virtualmachineinstancereplicasets") == []
    assert cluster.objects("virtualmachineinstances") == []
    assert cluster.objects("configmaps") == []


def test_one_that_crashes_while_it_waits_is_taken_out_and_kept_as_evidence(
    cluster: Cluster, tmp_path: Path
) -> None:
    ended = Ended()
    with pool_of(tmp_path, 2, ended=ended) as pool:
        eventually(lambda: ready(pool) == 2)
        bad = pool.machines[0].machine
        bad.guest.run("crash", timeout=20)
        eventually(lambda: "sysrq" in ended.faults.get(bad.name, ""))
        eventually(lambda: ready(pool) == 2)
        assert bad not in {each.machine for each in pool.machines}
    log = (bad.evidence_directory / "serial.log").read_text(errors="replace")
    assert "Kernel panic" in log
    assert list(ended.faults.values()).count("") == 2


def test_what_breaks_while_another_boots_is_told_and_no_boot_is_waited_for_at_the_end(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "LOOK_CLOSER_S", 0.2)
    ended = Ended()
    deadline = Deadline(120)
    with pool_of(tmp_path, 1, ended=ended) as pool:
        eventually(lambda: ready(pool) == 1)
        monkeypatch.setattr(cluster.virt, "_make", replayed(commands, boot_s=3600))
        pool.scale(2)
        eventually(lambda: len(instances(cluster, waiting=True)) == 2)
        bad = pool.machines[0].machine
        bad.guest.run("crash", timeout=20)
        eventually(lambda: "sysrq" in ended.faults.get(bad.name, ""))
    assert not deadline.expired
    assert cluster.objects("virtualmachineinstances") == []


def test_a_pool_is_scaled_drained_and_renewed(cluster: Cluster, tmp_path: Path) -> None:
    ended = Ended()
    with pool_of(tmp_path, 1, ended=ended) as pool:
        pool.scale(3)
        eventually(lambda: ready(pool) == 3)
        assert len(instances(cluster, waiting=True)) == 3
        pool.scale(1)
        eventually(lambda: len(instances(cluster, waiting=True)) == 1)
        eventually(lambda: len(pool.machines) == 1)
        (wanted,) = cluster.objects("virtualmachineinstancereplicasets")
        assert wanted["spec"]["replicas"] == 1
        eventually(lambda: not _set(cluster)["spec"]["paused"])
        pool.drain()
        eventually(lambda: instances(cluster, waiting=True) == [])
        with pytest.raises(InfraError, match="being drained"):
            pool.acquire("me", ttl=60, timeout=5)
        pool.scale(1)
        eventually(lambda: ready(pool) == 1)
    # Nobody had them, and nothing was wrong with them.
    assert set(ended.faults.values()) == {""}


def _set(cluster: Cluster) -> dict[str, Any]:
    (found,) = cluster.objects("virtualmachineinstancereplicasets")
    return found


def test_no_machine_waits_for_longer_than_it_may(cluster: Cluster, tmp_path: Path) -> None:
    with pool_of(tmp_path, 1, max_age_s=0.5) as pool:
        eventually(lambda: ready(pool) == 1)
        first = pool.machines[0].machine
        eventually(lambda: ready(pool) == 1 and pool.machines[0].machine is not first)


def test_a_machine_that_somebody_else_took_out_is_not_handed_out(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    assert isinstance(backend, ReplicaBackend)
    with (
        backend.serve(Deadline(20)) as server,
        backend.open_replicas(_served(server), 1, Deadline(20)) as found,
        found.machine(Deadline(20)) as machine,
    ):
        (vmi,) = instances(cluster, waiting=True)
        cluster.call(lambda: vmi["metadata"]["labels"].pop(replica_set.POOL_LABEL))
        with pytest.raises(ClusterError, match="cannot be had"):
            machine.take_out("leased to me")
        with pytest.raises(ConfigError, match="release it, and acquire another"):
            machine.restart()
        with pytest.raises(ConfigError, match="cannot be pulled"):
            machine.set_link(up=False)


def _served(server: Any) -> MachineSpec:
    """A machine whose boot script is one of kboot's, of a kernel that is not there."""
    return MachineSpec(name="pool", boot_file=server.write("pool/boot.ipxe", "#!ipxe\n"))


@needs_recordings
def test_a_set_replaces_what_is_deleted_and_what_is_dead_as_recorded(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    recorded = [
        row["event"]["object"] for row in rows("pool", "watch") if row["resource"] == "vmirs"
    ]
    spec = MachineSpec(name="pool", boot_file="http://10.0.2.2:9/none/scripts/x", ssh=True)
    with backend.open_replicas(spec, 2, Deadline(20)):
        eventually(lambda: _set(cluster).get("status", {}).get("readyReplicas") == 2)
        status = _set(cluster)["status"]
        assert status.keys() == recorded[-1]["status"].keys() | {"readyReplicas", "replicas"}
        names = {each["metadata"]["name"] for each in instances(cluster, waiting=True)}
        victim = sorted(names)[0]
        cluster.delete("virtualmachineinstances", victim)

        def replaced() -> bool:
            now = {each["metadata"]["name"] for each in instances(cluster, waiting=True)}
            return len(now) == 2 and victim not in now

        eventually(replaced)
        # No guest of these listens: the probe ends each, and the set replaces it.
        before = {each["metadata"]["name"] for each in instances(cluster, waiting=True)}
        eventually(
            lambda: (
                before & {each["metadata"]["name"] for each in instances(cluster, waiting=True)}
                == set()
            )
        )
    assert cluster.objects("virtualmachineinstances") == []


def test_the_commands_are_those_of_every_pool_and_a_killed_one_leaves_nothing_after_gc(
    cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel = write_kernel(tmp_path / "vmlinuz", RELEASE)
    kboot = [sys.executable, "-m", "kboot", "pool"]
    up = ["up", "ci", "--replicas=1", "--backend=kubevirt", f"--kernel={kernel}"]
    subprocess.run([*kboot, *up], check=True)
    assert main(["pool", "acquire", "ci", "--", *kboot, "exec", "--", "uname", "-r"]) == 0
    assert f"{RELEASE}\n" in capfd.readouterr().out

    def is_listed() -> bool:
        # The set makes another one in the place of the one that was used.
        assert main(["pool", "list", "ci"]) == 0
        return "pool-" in capfd.readouterr().out

    eventually(is_listed)
    os.kill(_supervisor(), signal.SIGKILL)
    # What the cluster keeps goes on without it.
    assert len(cluster.objects("virtualmachineinstancereplicasets")) == 1
    eventually(lambda: main(["gc", "--backend", "kubevirt", "--yes"]) == 0 and _nothing(cluster))
    assert main(["pool", "list"]) == 0


def _nothing(cluster: Cluster) -> bool:
    kinds = ("virtualmachineinstancereplicasets", "virtualmachineinstances", "configmaps")
    return not any(cluster.objects(kind) for kind in kinds)


def _supervisor() -> int:
    """The process of the pool, known by its directory."""
    directory = str(service.find(KIND, "ci").path).encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if directory in (entry / "cmdline").read_bytes().split(b"\0"):
                return int(entry.name)
    raise AssertionError("the pool has no process")
