"""A fleet of real machines: they find each other, are cut off, come back."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.errors import InfraError
from kboot.fleet import Fleet, open_fleet, read_roles
from kboot.rootfs import overlay_initramfs
from kboot.session import open_session

ROLES = read_roles({"control": 1, "worker": 2})


IMAGE = b"the image's own\n".ljust(1 << 20, b"\0")

#: What a system draws once and keeps; the tiny one has nothing of it by itself.
SECRETS = {
    "/etc/machine-id": b"0123456789abcdef0123456789abcdef\n",
    "/var/lib/systemd/random-seed": bytes(512),
    "/etc/ssh/ssh_host_ed25519_key": b"of all of them",
    "/usr/bin/ssh-keygen": b"#!/bin/sh\nhead -c 32 /dev/urandom >/etc/ssh/ssh_host_ed25519_key\n",
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk image that all of them begin with."""
    path = tmp_path_factory.mktemp("disks") / "image.raw"
    path.write_bytes(IMAGE)
    return path


@pytest.fixture(scope="module")
def fleet(
    quick_kernel: Path, image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    config = Config(
        kernel=str(quick_kernel),
        accel="tcg",
        firmware_start="saved",
        initrd=(overlay_initramfs(SECRETS),),
        disk=("data=blank,size=64M", f"image={image}"),
    )
    with (
        open_session(config, evidence=tmp_path_factory.mktemp("evidence")) as session,
        open_fleet(session, ROLES, {role.name: config for role in ROLES}) as fleet,
    ):
        yield fleet


#: Prints 1 if the cable of the card on the fleet's network is plugged in, else 0.
CARRIER = (
    "for each in /sys/class/net/*; do read mac <$each/address; "
    "case $mac in 52:54:00:6b:66:*) cat $each/carrier;; esac; done"
)


def mesh(fleet: Fleet) -> set[tuple[str, str]]:
    return {(a, b) for a in fleet.names for b in fleet.names if a != b}


def recovered(fleet: Fleet) -> None:
    fleet.wait_until(lambda: fleet.reachable() == mesh(fleet), timeout=60)


def test_every_machine_reaches_every_other_by_its_name(fleet: Fleet) -> None:
    recovered(fleet)
    assert fleet.all.succeed("hostname") == {name: f"{name}\n" for name in fleet.names}
    assert fleet.addresses["worker-1"] == "10.98.0.2"
    answer = fleet["control-1"].guest.succeed("ping -c 1 worker-1")
    assert "(10.98.0.2)" in answer


def test_names_are_known_by_dns_as_well(fleet: Fleet) -> None:
    worker = fleet["worker-1"].guest
    for name in ("control-1", "control-1.fleet.internal"):
        assert "10.98.0.1" in worker.succeed(f"nslookup {name}").rpartition("Name:")[2]
    assert "name = control-1.fleet.internal" in worker.succeed("nslookup 10.98.0.1")
    assert worker.run("nslookup control-9.fleet.internal").exit_status == 1
    # The C library's resolver: under this name it does not stand in /etc/hosts.
    assert "(10.98.0.3)" in worker.succeed("ping -c 1 worker-2.fleet.internal")


#: What prints something of a guest, and whether it is another one in each of the twins.
TWINS = {
    "cat /sys/class/net/*/address | grep 52:54:00:6b:66": True,
    "hostname": True,
    "ip -4 addr | grep 10.98": True,
    "cat /etc/machine-id": True,
    "md5sum </etc/ssh/ssh_host_ed25519_key": True,
    "md5sum </var/lib/systemd/random-seed": True,
    "head -c 16 /dev/urandom | md5sum": True,
    "cat /proc/sys/kernel/random/uuid": True,
    # It is one boot, several times over.
    "cat /proc/sys/kernel/random/boot_id": False,
    "cat /proc/cmdline": False,
    "cat /etc/hosts": False,
    "cat /etc/resolv.conf": False,
    "echo $KBOOT_DIR": False,
}


def test_restored_twins_differ_in_what_they_should(fleet: Fleet) -> None:
    said = fleet.all.succeed("; echo ----; ".join(TWINS))
    parts = [text.split("----\n") for text in said.values()]
    for (command, differs), *texts in zip(TWINS.items(), *parts, strict=True):
        assert (command, len(set(texts))) == (command, len(fleet) if differs else 1)


def test_each_machine_writes_to_disks_of_its_own(fleet: Fleet, image: Path) -> None:
    disks = "/dev/disk/by-id/virtio-data /dev/disk/by-id/virtio-image"
    before = fleet.all.succeed(f"for d in {disks}; do head -c 16 $d | tr -d '\\0'; done")
    assert before == dict.fromkeys(fleet.names, "the image's own\n")
    fleet.all.succeed(f"for d in {disks}; do hostname >$d; done; sync")
    fleet.all.succeed("echo 3 >/proc/sys/vm/drop_caches")
    after = fleet.all.succeed(f"for d in {disks}; do head -n 1 $d; done")
    assert after == {name: f"{name}\n{name}\n" for name in fleet.names}
    assert image.read_bytes() == IMAGE


def test_a_role_is_cut_off_at_once_and_healed(fleet: Fleet) -> None:
    with fleet.cut("worker") as cut:
        assert cut.machines == ("worker-1", "worker-2")
        assert fleet.reachable(timeout=1) == set()
        carriers = fleet.role("worker").succeed(CARRIER)
        assert carriers == {"worker-1": "0\n", "worker-2": "0\n"}
    assert cut.plugged
    recovered(fleet)


def test_a_partition_leaves_those_on_one_side_together(fleet: Fleet) -> None:
    with fleet.partition({"control-1", "worker-1"}, {"worker-2"}):
        expected = {("control-1", "worker-1"), ("worker-1", "control-1")}
        assert fleet.reachable(timeout=1) == expected
    recovered(fleet)


def test_frames_are_lost_in_one_direction_and_late_in_both(fleet: Fleet) -> None:
    control = fleet["control-1"].guest
    with fleet.impair("worker-1", toward="control", loss=1):
        # It is asked, and its answer is lost.
        assert control.run("ping -c 1 -w 1 -W 1 worker-1").exit_status == 1
        control.succeed("ping -c 1 -w 5 worker-2")
    with fleet.impair("worker-1", delay=0.2):
        answer = control.succeed("ping -c 2 -w 10 worker-1")
        times = [float(ms) for ms in re.findall(r"time=([\d.]+) ms", answer)]
        assert times
        assert min(times) >= 400


def test_a_machine_that_is_powered_on_again_in_a_cut_is_the_same_member_and_stays_cut_off(
    fleet: Fleet,
) -> None:
    worker = fleet["worker-2"]
    with fleet.cut("worker"):
        os.kill(worker.vm.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        with pytest.raises(InfraError, match=r"^worker-2: QEMU was killed by signal 9"):
            fleet.role("worker").run("true")
        with fleet.cut("worker-2"):
            # Nothing is left to be pulled.
            pass
        worker.restart()
        assert worker.guest.succeed(CARRIER) == "0\n"
        assert fleet.reachable(timeout=1) == set()
    recovered(fleet)
    fleet.check_reports()
    # The same member as before.
    assert worker.guest.succeed("hostname") == "worker-2\n"
    fleet.check_reports()
