"""A fleet on a cluster from its start to its end, with guests that boot as one was recorded."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import KernelCrash
from kboot.fleet import open_fleet, read_roles
from kboot.machine import Machine
from kboot.session import open_session
from kboot.testing import GuestAction, write_kernel
from kboot.testing.guest import Answer
from tests import soak_cluster_fleet
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.replayed import RELEASE, everything_succeeds, replayed

#: What the guests were asked.
TOLD: list[str] = []


def commands(command: str) -> Answer:
    TOLD.append(command)
    if command == "cloud-init status --long":
        return "status: done\n"
    if command.startswith("cloud-init"):
        return ""
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


def told_to_cloud_init(cluster: Cluster, machine: Machine, name: str) -> str:
    """What the guest's cloud-init reads by the URL on its command line."""
    (url,) = re.findall(r"ds=nocloud;dsmode=net;s=(\S+)", machine.command_line)
    (pod,) = cluster.kubelet.running.values()
    with requests.Session() as web:
        # The tests' proxies are for nobody.
        web.trust_env = False
        place = f"http://127.0.0.1:{pod.ports[8080]}{urlsplit(url).path}{name}"
        answer = web.get(place, timeout=10)
    answer.raise_for_status()
    return answer.text


def test_each_role_has_its_own_user_data_and_disks(cluster: Cluster, tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "vmlinuz", RELEASE)
    configs = {}
    for role, disk in (("control", "data=blank,size=64M"), ("worker", "data=blank,size=96M")):
        user_data = tmp_path / role
        user_data.write_text(f"#cloud-config\nfqdn: {role}\n")
        configs[role] = Config(
            kernel=str(kernel),
            backend="kubevirt",
            isolation="none",
            cloud_init=user_data,
            disk=(disk,),
        )
    roles = read_roles({"control": 1, "worker": 2})
    with (
        open_session(configs["control"], evidence=tmp_path / "evidence") as session,
        open_fleet(session, roles, configs) as fleet,
    ):
        for name in fleet.names:
            told = told_to_cloud_init(cluster, fleet[name], "user-data")
            assert told == f"#cloud-config\nfqdn: {name.partition('-')[0]}\n"
        data = [json.loads(told_to_cloud_init(cluster, machine, "meta-data")) for machine in fleet]
        assert [each["local-hostname"] for each in data] == list(fleet.names)
        assert len({each["instance-id"] for each in data}) == 3
        # Each pod makes its own.
        volumes = {
            each["metadata"]["name"]: each["spec"]["template"]["spec"]["volumes"]
            for each in cluster.objects("virtualmachines")
        }
    sizes = {
        name.rpartition("-")[0].rpartition("-")[2]: volume["emptyDisk"]["capacity"]
        for name, each in volumes.items()
        for volume in each
        if "emptyDisk" in volume
    }
    assert (len(volumes), sizes) == (3, {"control": "64Mi", "worker": "96Mi"})


def test_a_network_that_is_named_has_cards_of_its_own_which_are_cut(
    cluster: Cluster, tmp_path: Path
) -> None:
    kernel = write_kernel(tmp_path / "vmlinuz", RELEASE)
    config = Config(
        kernel=str(kernel), backend="kubevirt", isolation="none", cluster_network="lab/bridge"
    )
    TOLD.clear()
    roles = read_roles({"worker": 2})
    with (
        open_session(config, evidence=tmp_path / "evidence") as session,
        open_fleet(session, roles, {"worker": config}) as fleet,
    ):
        cards = {
            name: cards_of(cluster, machine)
            for name, machine in zip(fleet.names, fleet, strict=True)
        }
        for boots_by, card in cards.values():
            assert "masquerade" in boots_by
            assert (card["model"], card["bridge"]) == ("virtio", {})
        assert len({card["macAddress"] for _, card in cards.values()}) == 2
        for name, address in fleet.addresses.items():
            mac = cards[name][1]["macAddress"]
            assert [each for each in TOLD if mac in each and f"ip addr add {address}/24" in each]
            assert [each for each in TOLD if f"{address} {name} " in each and "/etc/hosts" in each]
        with fleet.cut("worker-1"):
            boots_by, card = cards_of(cluster, fleet["worker-1"])
            assert (boots_by.get("state"), card["state"]) == (None, "down")
            assert "state" not in cards_of(cluster, fleet["worker-2"])[1]
        assert cards_of(cluster, fleet["worker-1"])[1]["state"] == "up"
    assert [
        each for each in cluster.objects("services") if each["spec"]["clusterIP"] == "None"
    ] == []


def cards_of(cluster: Cluster, machine: Machine) -> list[dict[str, Any]]:
    """The network cards of its VirtualMachine; the second one is on the right network."""
    (vm,) = [
        each
        for each in cluster.objects("virtualmachines")
        if each["metadata"]["name"].endswith(f"-{machine.name}")
    ]
    spec = vm["spec"]["template"]["spec"]
    assert spec["networks"][1]["multus"] == {"networkName": "lab/bridge"}
    cards: list[dict[str, Any]] = spec["domain"]["devices"]["interfaces"]
    assert [card["name"] for card in cards] == [each["name"] for each in spec["networks"]]
    return cards
