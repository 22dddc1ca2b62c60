"""Fleets without guests: who is in one, what is done to its network, whose fault an error is."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import (
    CommandFailed,
    ConfigError,
    GuestError,
    GuestTimeout,
    InfraError,
    KernelCrash,
)
from kboot.fleet import Fleet, open_fleet, read_roles
from kboot.fleet.fleet import combined
from kboot.fleet.layout import select
from kboot.machine_network import PathCondition
from kboot.session import open_session
from kboot.statistics import median
from kboot.testing import FakeBackend, GuestAction, write_kernel
from kboot.testing.backend import FakeNetwork
from kboot.testing.guest import Answer

LOST = PathCondition(loss=1.0)

COMMANDS: dict[str, Answer] = {
    "true": "",
    "false": (1, "no"),
    "whoami": "root\n",
    "crash": GuestAction.PANIC,
}


@contextlib.contextmanager
def fleet_of(directory: Path, chosen: dict[str, Any]) -> Iterator[Fleet]:
    kernel = write_kernel(directory / "vmlinuz", "6.99.1-mine")
    config = Config(kernel=str(kernel), isolation="none")
    roles = read_roles(chosen)
    backend = FakeBackend(commands=COMMANDS)
    with (
        open_session(config, evidence=directory / "e", backend=backend) as session,
        open_fleet(session, roles, {role.name: config for role in roles}) as fleet,
    ):
        yield fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(tmp_path_factory.mktemp("fleet"), {"control": 1, "worker": 3}) as fleet:
        yield fleet


def network_of(fleet: Fleet) -> FakeNetwork:
    network = fleet._network
    assert isinstance(network, FakeNetwork)
    return network


# ------------------------------------------------------------------------------------ who is in it


def test_roles_are_numbers_or_settings_with_a_count() -> None:
    control, worker = read_roles({"control": 2, "worker": {"count": 3, "memory": "1G"}})
    assert control.members == ("control-1", "control-2")
    assert worker.count == 3
    assert worker.settings == {"memory": "1G"}


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ({}, "at least one role"),
        ({"worker": 0}, "^worker=0: say how many"),
        ({"worker": {"count": 0}}, "^worker=0: say how many"),
        ({"worker": True}, "say how many"),
        ({"worker": {"memory": "1G"}}, "say how many"),
        ({"Worker": 1}, "cannot be the name"),
        ({"w-": 1}, "cannot be the name"),
        ({"worker": 201}, "at most 200"),
        ({"a" * 21: 1}, "cannot be the name"),
        ({"w": 1, "w-1": 1}, "the role w-1 is called as a machine of another role"),
    ],
)
def test_a_mistake_in_a_fleet_is_named(chosen: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read_roles(chosen)


def test_machines_are_chosen_by_role_or_name() -> None:
    roles = read_roles({"control": 1, "worker": 2})
    assert select(roles, ("worker", "worker-1")) == ("worker-1", "worker-2")
    assert select(roles, ("worker-2", "control")) == ("control-1", "worker-2")
    with pytest.raises(ConfigError, match=r"no role or machine workers .*did you mean worker\?"):
        select(roles, ("workers",))


def test_a_fleet_is_its_machines(fleet: Fleet) -> None:
    assert fleet.names == ("control-1", "worker-1", "worker-2", "worker-3")
    assert len(fleet) == len(list(fleet)) == 4
    assert fleet["worker-2"].name.endswith("-worker-2")
    assert fleet["worker-2"].evidence_directory.name.endswith("-worker-2")
    assert fleet.role("worker").names == fleet.roles["worker"]
    with pytest.raises(ConfigError, match="no machine worker-4"):
        _ = fleet["worker-4"]
    with pytest.raises(ConfigError, match=r"worker is a role: fleet.role\('worker'\)"):
        _ = fleet["worker"]


def test_a_group_does_what_a_machine_does_and_answers_by_name(fleet: Fleet) -> None:
    workers = fleet.role("worker")
    assert workers.succeed("whoami") == dict.fromkeys(workers.names, "root\n")
    results = workers.run("false")
    assert {name: result.exit_status for name, result in results.items()} == dict.fromkeys(
        workers.names, 1
    )
    assert len(fleet.all) == 4


def test_what_is_wrong_with_one_machine_has_its_name(fleet: Fleet) -> None:
    with pytest.raises(CommandFailed, match=r"^worker-1: 'false' exited with 1") as caught:
        fleet.role("worker").succeed("false")
    assert len(caught.value.__notes__) == 2
    assert caught.value.result.exit_status == 1


def test_a_crash_is_one_machines_blame(tmp_path: Path) -> None:
    with fleet_of(tmp_path, {"worker": 2}) as fleet:
        fleet["worker-2"].guest.run("crash")
        for _ in Deadline(20).poll(0.01):
            if fleet["worker-2"].console.fatal:
                break
        with pytest.raises(KernelCrash, match=r"^worker-2: "):
            fleet.check_reports()
        fleet["worker-1"].check()


def test_a_group_that_panics_comes_back(tmp_path: Path) -> None:
    with fleet_of(tmp_path, {"worker": 2}) as fleet:
        workers = fleet.role("worker")
        workers.panic()
        workers.wait_for_reboot()
        workers.restart()
        assert workers.succeed("whoami")
        assert {len(machine.boot_ids) for machine in workers} == {3}
        fleet.check_reports()
    written = sorted(path.parent.name for path in (tmp_path / "e").rglob("result.json"))
    assert len(written) == 2


# ------------------------------------------------------------------------------------- its network


def test_a_cut_is_healed_however_it_ends(fleet: Fleet) -> None:
    network = network_of(fleet)
    with fleet.cut("worker") as cut:
        assert network.pulled == set(fleet.roles["worker"])
        assert cut.machines == fleet.roles["worker"]
        assert 0 <= cut.skew_s < 60
        assert not cut.plugged
    assert network.pulled == set()
    assert cut.plugged.keys() == set(cut.machines)
    with pytest.raises(AssertionError), fleet.cut("control-1"):
        assert network.pulled == set()
    assert network.pulled == set()


def test_a_cable_that_was_pulled_twice_is_plugged_in_once(fleet: Fleet) -> None:
    network = network_of(fleet)
    with fleet.cut("worker"):
        with fleet.cut("worker-1", "control"):
            assert network.pulled == set(fleet.names)
        assert network.pulled == set(fleet.roles["worker"])
    assert network.pulled == set()


def test_partitions_do_not_reach_each_other(fleet: Fleet) -> None:
    network = network_of(fleet)
    with fleet.partition({"control", "worker-1"}, {"worker-2", "worker-3"}):
        assert network.paths["control-1", "worker-3"] == LOST
        assert network.paths["worker-3", "control-1"] == LOST
        assert ("control-1", "worker-1") not in network.paths
        assert len(network.paths) == 8
    assert network.paths == {}


def test_who_is_on_two_sides_is_the_bridge_between_them(fleet: Fleet) -> None:
    network = network_of(fleet)
    with fleet.partition({"control", "worker-1"}, {"worker-1", "worker-2"}):
        assert set(network.paths) == {("control-1", "worker-2"), ("worker-2", "control-1")}
    with fleet.partition("control", "worker"):
        assert len(network.paths) == 6


def test_a_partition_that_parts_nobody_is_a_mistake(fleet: Fleet) -> None:
    for groups in ((), ({"control"},), ("worker", "worker-1")):
        with pytest.raises(ConfigError, match="part no machines"), fleet.partition(*groups):
            pass


def test_what_ended_a_cut_is_told_and_not_what_its_end_met(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(fleet)

    def fail(*_arguments: object, up: bool) -> dict[str, float]:
        raise InfraError("worker-1: the host is gone")

    def cut_and_fail() -> None:
        with fleet.cut("worker"):
            monkeypatch.setattr(network, "set_links", fail)
            raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine") as caught:
        cut_and_fail()
    assert caught.value.__notes__ == ["and worker-1: the host is gone"]
    monkeypatch.undo()
    # It is not taken for one that is cut still.
    with fleet.cut("worker"):
        pass
    assert network.pulled == set()


def test_one_direction_alone_is_impaired(fleet: Fleet) -> None:
    network = network_of(fleet)
    with fleet.impair("control", toward="worker", loss=1):
        assert set(network.paths) == {("control-1", name) for name in fleet.roles["worker"]}
    with fleet.impair("control", loss=0.5), fleet.impair("control-1", loss=0.5, delay=0.1):
        worse = PathCondition(loss=0.75, delay_s=0.1)
        assert network.paths["control-1", "worker-1"] == worse
        assert network.paths["worker-1", "control-1"] == worse
    assert network.paths == {}


def test_conditions_add_up() -> None:
    one, other = PathCondition(loss=0.5), PathCondition(delay_s=0.2)
    assert combined([{("a", "b"): one}, {("a", "b"): other, ("b", "a"): other}]) == {
        ("a", "b"): PathCondition(loss=0.5, delay_s=0.2),
        ("b", "a"): other,
    }


def test_mistakes_about_the_network_are_named(fleet: Fleet) -> None:
    with pytest.raises(ConfigError, match="say whose network"), fleet.cut():
        pass
    with pytest.raises(ConfigError, match="no role or machine wroker"), fleet.cut("wroker"):
        pass
    with pytest.raises(ConfigError, match=r"loss=1\.5"), fleet.impair("worker", loss=1.5):
        pass
    for delay in (-1, 601, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="delay="), fleet.impair("worker", delay=delay):
            pass


# ---------------------------------------------------------------------------------------- recovery


def test_waiting_says_how_long_it_took(fleet: Fleet) -> None:
    end = time.monotonic() + 0.2

    def recovered() -> bool:
        if time.monotonic() < end:
            raise GuestError("not yet")
        return True

    assert fleet.wait_until(recovered, timeout=20) > 0.1


def test_waiting_in_vain_says_what_was_wrong_last(fleet: Fleet) -> None:
    def leader_is_there() -> bool:
        raise GuestError("no leader")

    with pytest.raises(GuestTimeout, match=r"leader_is_there did not hold within 0\.1 s.*no lead"):
        fleet.wait_until(leader_is_there, timeout=0.1)


def test_waiting_ends_at_once_with_a_mistake_or_a_crash(tmp_path: Path, fleet: Fleet) -> None:
    with pytest.raises(ConfigError, match="no machine worker-9"):
        fleet.wait_until(lambda: fleet["worker-9"], timeout=600)
    with fleet_of(tmp_path, {"worker": 2}) as other:
        other["worker-2"].guest.run("crash")
        with pytest.raises(KernelCrash, match=r"^worker-2: "):
            other.wait_until(
                lambda: other["worker-1"].guest.run("false").exit_status == 0, timeout=600
            )


def test_a_condition_is_looked_at_once_and_named(fleet: Fleet) -> None:
    assert fleet.wait_until(lambda: True, timeout=0) >= 0
    with pytest.raises(GuestTimeout, match=r"the lambda in test_fleet\.py:\d+ did not hold"):
        fleet.wait_until(lambda: False, timeout=0)


def test_a_round_has_to_tell_a_time(fleet: Fleet) -> None:
    with pytest.raises(ConfigError, match="rounds=0"):
        fleet.measure(lambda: 1.0, rounds=0)
    with pytest.raises(ConfigError, match="returned None: it has to return seconds"):
        fleet.measure(lambda: None, rounds=1)  # type: ignore[arg-type, return-value]


def test_a_recovery_time_has_an_interval(fleet: Fleet) -> None:
    times = iter([3.0, 1.0, 2.0])
    found = fleet.measure(lambda: next(times), rounds=3)
    assert (found.low_s, found.median_s, found.high_s) == (1, 2, 3)
    assert str(found) == "2.00 s (95 %: 1.00 to 3.00 s, 3 rounds)"


def test_several_times_of_one_round_have_an_interval_each(fleet: Fleet) -> None:
    times = iter([3.0, 1.0, 2.0])
    found = fleet.measure(lambda: {"elected": next(times), "healed": 0.5}, rounds=3)
    assert {name: each.median_s for name, each in found.items()} == {"elected": 2, "healed": 0.5}


def test_the_interval_of_a_median_leaves_out_what_it_may() -> None:
    # By order statistics: of 10 values, the 2nd and the 9th; of 20, the 6th and the 15th.
    ten, twenty = median(range(1, 11)), median(range(1, 21))
    assert (ten.low_s, ten.high_s) == (2, 9)
    assert (twenty.low_s, twenty.high_s) == (6, 15)
    assert median([5.0]).low_s == 5.0
