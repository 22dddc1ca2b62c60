"""A fleet of real machines: they find each other, are cut off, come back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.fleet import Fleet, open_fleet, read_roles
from kboot.session import open_session

ROLES = read_roles({"control": 1, "worker": 2})


@pytest.fixture(scope="module")
def fleet(debian_kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    config = Config(kernel=str(debian_kernel), accel="tcg", firmware_start="saved")
    with (
        open_session(config, evidence=tmp_path_factory.mktemp("evidence")) as session,
        open_fleet(session, ROLES, {role.name: config for role in ROLES}) as fleet,
    ):
        yield fleet


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


def test_restored_twins_differ_in_what_they_should(fleet: Fleet) -> None:
    cards = fleet.all.succeed("cat /sys/class/net/*/address")
    own = {line for text in cards.values() for line in re.findall("52:54:00:6b:66:..", text)}
    assert len(own) == 3
    drawn = fleet.all.succeed("head -c 16 /dev/urandom | md5sum")
    assert len(set(drawn.values())) == 3
    # And in what they do not: it is one boot, several times over.
    boot_ids = fleet.all.succeed("cat /proc/sys/kernel/random/boot_id")
    assert len(set(boot_ids.values())) == 1


def test_a_role_is_cut_off_at_once_and_healed(fleet: Fleet) -> None:
    with fleet.cut("worker") as cut:
        assert cut.machines == ("worker-1", "worker-2")
        assert fleet.reachable(timeout=1) == set()
        carriers = fleet.role("worker").succeed(
            "for each in /sys/class/net/*; do read mac <$each/address; "
            "case $mac in 52:54:00:6b:66:*) cat $each/carrier;; esac; done"
        )
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
        assert control.run("ping -c 1 -w 1 worker-1").exit_status == 1
        control.succeed("ping -c 1 -w 5 worker-2")
    with fleet.impair("worker-1", delay=0.2):
        answer = control.succeed("ping -c 2 -w 10 worker-1")
        times = [float(ms) for ms in re.findall(r"time=([\d.]+) ms", answer)]
        assert times
        assert min(times) >= 400


def test_a_machine_that_was_restarted_is_the_same_member(fleet: Fleet) -> None:
    fleet["worker-2"].restart()
    recovered(fleet)
    assert fleet["worker-2"].guest.succeed("hostname") == "worker-2\n"
    fleet.check_reports()
