"""Disks and cloud-init of a fleet's roles, without guests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.errors import ConfigError, GuestError
from kboot.fleet import Fleet, open_fleet, read_roles
from kboot.fleet.service import configs_of
from kboot.machine import Machine
from kboot.machine.saved import parts
from kboot.session import open_session
from kboot.testing import FakeBackend, Script, write_kernel

WAIT, LONG = "cloud-init status --wait", "cloud-init status --long"
DONE: Script = {WAIT: "", LONG: "status: done\n"}


def configs(folder: Path, **roles: Mapping[str, object]) -> dict[str, Config]:
    """Of a fleet as somebody declares it, with user data for each role in a file of its name."""
    for role in roles:
        (folder / f"{role}.yaml").write_text(f"#cloud-config\nfqdn: {role}\n")
    options = {
        "kernel": str(write_kernel(folder / "vmlinuz", "6.99.1-mine")),
        "isolation": "none",
    }
    declared = {role: {"count": 2, **settings} for role, settings in roles.items()}
    return configs_of(read_roles(declared), options, folder)[1]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    wanted = configs(
        tmp_path,
        control={"disk": ["data=blank,size=64M"], "cloud_init": "control.yaml"},
        worker={"cloud_init": "worker.yaml", "memory": "1G"},
    )
    roles = read_roles({"control": 2, "worker": 2})
    with (
        open_session(
            wanted["control"], evidence=tmp_path / "e", backend=FakeBackend(commands=DONE)
        ) as session,
        open_fleet(session, roles, wanted) as fleet,
    ):
        yield fleet


def published(machine: Machine, name: str) -> str:
    """What the boot server has for this machine's cloud-init."""
    server = machine.server
    url = server.url(f"scripts/{machine.name}/cloud-init/{name}")
    text: str = server._texts[url]  # type: ignore[attr-defined]
    return text


def test_each_role_has_its_own_user_data_and_each_machine_its_name(fleet: Fleet) -> None:
    for name in fleet.names:
        role = name.partition("-")[0]
        assert published(fleet[name], "user-data") == f"#cloud-config\nfqdn: {role}\n"
    data = {name: json.loads(published(fleet[name], "meta-data")) for name in fleet.names}
    assert {name: each["local-hostname"] for name, each in data.items()} == {
        name: name for name in fleet.names
    }
    assert len({each["instance-id"] for each in data.values()}) == len(fleet)


def test_each_role_has_its_own_disks(fleet: Fleet) -> None:
    disks = {name: [disk.name for disk in fleet[name].settings.spec.disks] for name in fleet.names}
    assert disks == {"control-1": ["data"], "control-2": ["data"], "worker-1": [], "worker-2": []}


def test_a_machine_goes_on_only_from_one_that_cloud_init_gave_the_same_name(fleet: Fleet) -> None:
    keys = [
        parts(fleet[name].settings, kernel_sha256="", initrd_sha256s=())["cloud-init"]
        for name in fleet.names
    ]
    assert len(set(keys)) == len(fleet)


def test_user_data_that_fails_is_blamed_on_its_machine(tmp_path: Path) -> None:
    wanted = configs(tmp_path, worker={"cloud_init": "worker.yaml"})
    fails: Script = {WAIT: (1, ""), LONG: "status: error\ndetail:\n  ('runcmd', 7)\n"}
    with (
        open_session(
            wanted["worker"], evidence=tmp_path / "e", backend=FakeBackend(commands=fails)
        ) as session,
        pytest.raises(GuestError, match=r"^worker-1: cloud-init: error: \('runcmd', 7\); see /"),
        open_fleet(session, read_roles({"worker": 2}), wanted),
    ):
        pytest.fail("it is up")


def test_a_disk_that_is_to_be_kept_is_refused_with_the_name_of_its_role(tmp_path: Path) -> None:
    wanted = configs(tmp_path, control={}, worker={"disk": ["data=blank,keep"]})
    with (
        open_session(wanted["control"], evidence=tmp_path / "e", backend=FakeBackend()) as session,
        pytest.raises(
            ConfigError, match=r"^the role worker: disk data: .* a fleet .* keeps no disk; leave"
        ),
        open_fleet(session, read_roles({"control": 1, "worker": 1}), wanted),
    ):
        pytest.fail("it is up")


def test_a_mistake_in_a_roles_settings_has_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the role worker: .*'kept' in 'data=blank,kept'"):
        configs(tmp_path, control={}, worker={"disk": ["data=blank,kept"]})
