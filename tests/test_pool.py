"""A pool of replayed machines: who gets which, and what becomes of them."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.machine import Machine
from kboot.pool import Pool, State, open_pool
from kboot.testing import GuestAction
from kboot.testing.guest import Answer
from tests.test_standby import Machines


class Broken:
    """What a pool has told of machines that it took out."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def __call__(self, machine: Machine, why: str) -> None:
        if why:
            self.told[machine.name] = why


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


@pytest.fixture
def broken() -> Broken:
    return Broken()


@pytest.fixture
def pool(machines: Machines, broken: Broken) -> Iterator[Pool]:
    with open_pool(machines.restore, replicas=2, on_ended=broken) as pool:
        eventually(lambda: ready(pool) == 2)
        yield pool
    assert machines.on == []


def eventually(condition: Callable[[], object]) -> None:
    for _ in Deadline(30).poll(0.01):
        if condition():
            return
    assert condition()


def ready(pool: Pool) -> int:
    return sum(each.state is State.READY for each in pool.machines)


def test_a_machine_is_handed_out_once_and_replaced(pool: Pool) -> None:
    names = set()
    for number in range(6):
        lease = pool.acquire(f"user {number}", ttl=60, timeout=30)
        assert lease.machine.pristine
        names.add(lease.machine.name)
        pool.release(lease.identifier)
    assert len(names) == 6
    eventually(lambda: ready(pool) == 2 and len(pool.machines) == 2)


def test_nobody_gets_a_machine_that_somebody_has(pool: Pool) -> None:
    one, other = (pool.acquire(who, ttl=60, timeout=30) for who in ("one", "other"))
    assert one.machine is not other.machine
    with pytest.raises(InfraError, match=r"free after 0\.1 s: all are in use"):
        pool.acquire("third", ttl=60, timeout=0.1)
    pool.release(one.identifier)
    # Twice is no mistake.
    pool.release(one.identifier)
    assert pool.acquire("third", ttl=60, timeout=30).machine not in {one.machine, other.machine}


def test_who_has_given_up_waiting_gets_no_machine(pool: Pool) -> None:
    leases = [pool.acquire("user", ttl=60, timeout=30) for _ in range(2)]
    looks = itertools.count()

    def gives_up() -> None:
        if next(looks) == 2:
            pool.release(leases[0].identifier)
            raise InfraError("cancelled")

    with pytest.raises(InfraError, match="cancelled"):
        pool.acquire("impatient", ttl=60, timeout=30, still_wanted=gives_up)
    eventually(lambda: ready(pool) == 1)


def test_all_who_come_at_once_get_different_machines(pool: Pool) -> None:
    names: list[str] = []

    def use() -> None:
        lease = pool.acquire("one of many", ttl=60, timeout=30)
        names.append(lease.machine.name)
        pool.release(lease.identifier)

    threads = [threading.Thread(target=use) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == len(set(names)) == 12


def test_a_lease_ends_by_itself(pool: Pool) -> None:
    lease = pool.acquire("forgets it", ttl=0.05, timeout=30)
    eventually(lambda: lease.machine not in [each.machine for each in pool.machines])
    with pytest.raises(ConfigError, match="this lease has ended"):
        pool.run(lease.identifier, "true", timeout=5)
    with pytest.raises(ConfigError, match="longer than 0 s"):
        pool.acquire("wants none", ttl=0, timeout=1)


def test_a_command_whose_lease_ends_meanwhile_is_told_so(tmp_path: Path) -> None:
    machines = Machines(tmp_path, commands={"true": "", "hang": GuestAction.HANG})
    with ThreadPoolExecutor() as threads:
        with open_pool(machines.restore, replicas=1) as pool:
            for ttl in (0.3, 600):
                lease = pool.acquire("user", ttl=ttl, timeout=30)
                run = threads.submit(pool.run, lease.identifier, "hang", timeout=600)
                if ttl < 600:
                    with pytest.raises(ConfigError, match="this lease has ended"):
                        run.result()
        # The last one was under way when the pool was closed.
        with pytest.raises(InfraError, match="the pool was stopped"):
            run.result()


def test_a_machine_that_crashed_while_it_waited_is_not_handed_out(
    pool: Pool, broken: Broken
) -> None:
    victim = pool.machines[0].machine
    victim.panic()
    eventually(lambda: victim.name in broken.told)
    assert "sysrq" in broken.told[victim.name]
    leases = [pool.acquire("user", ttl=60, timeout=30) for _ in range(2)]
    assert victim not in {lease.machine for lease in leases}


def test_what_crashed_in_somebodys_hands_is_told_of(pool: Pool, broken: Broken) -> None:
    lease = pool.acquire("breaks it", ttl=60, timeout=30)
    lease.machine.panic()
    eventually(lambda: lease.machine.console.fatal)
    pool.release(lease.identifier)
    eventually(lambda: lease.machine.name in broken.told)


def test_it_grows_and_shrinks(pool: Pool) -> None:
    pool.scale(3)
    eventually(lambda: ready(pool) == 3)
    lease = pool.acquire("stays", ttl=60, timeout=30)
    pool.scale(1)
    eventually(lambda: len(pool.machines) == 1)
    # It is not taken from who has it.
    assert pool.machines[0].machine is lease.machine
    with pytest.raises(ConfigError, match="0 or more"):
        pool.scale(-1)
    pool.scale(0)
    with pytest.raises(InfraError, match=r"free after 0\.1 s: it was scaled to 0"):
        pool.acquire("late", ttl=60, timeout=0.1)


def test_a_drained_pool_ends_what_nobody_has(pool: Pool) -> None:
    lease = pool.acquire("stays", ttl=60, timeout=30)
    pool.drain()
    eventually(lambda: len(pool.machines) == 1)
    with pytest.raises(InfraError, match="drained"):
        pool.acquire("late", ttl=60, timeout=5)
    pool.release(lease.identifier)
    eventually(lambda: pool.machines == ())


def test_old_machines_are_replaced(machines: Machines) -> None:
    with open_pool(machines.restore, replicas=1, max_age_s=0.1) as pool:
        eventually(lambda: machines.count >= 3)
        lease = pool.acquire("user", ttl=60, timeout=30)
        count = machines.count
        eventually(lambda: lease.machine.console.silent_s > 0.3)
        # Not while somebody has it.
        assert machines.count == count
    assert machines.on == []


def test_machines_of_one_age_are_replaced_at_different_moments(machines: Machines) -> None:
    with open_pool(machines.restore, replicas=3, max_age_s=100) as pool:
        eventually(lambda: ready(pool) == 3)
        ages = {each.max_age_s for each in pool.machines}
    assert len(ages) == 3
    assert all(90 <= age <= 100 for age in ages)


def test_machines_that_break_one_after_the_other_are_not_replaced_without_end(
    machines: Machines,
) -> None:
    bad = threading.Event()
    bad.set()

    @contextlib.contextmanager
    def start() -> Iterator[Machine]:
        with machines.restore() as machine:
            if bad.is_set():
                machine.panic()
                eventually(lambda: machine.console.fatal)
            yield machine

    with open_pool(start, replicas=2) as pool:
        eventually(lambda: "machines break before they are used: panic" in pool.trouble)
        bad.clear()
        assert pool.acquire("patient", ttl=60, timeout=30).machine.pristine


def test_a_machine_that_fails_its_check_is_not_handed_out(tmp_path: Path, broken: Broken) -> None:
    answers: list[Answer] = [(1, "docker is down"), ""]
    machines = Machines(tmp_path, commands=lambda text: answers[0] if text == "up" else None)
    with open_pool(
        machines.restore, replicas=1, heartbeat_s=0.05, check="up", on_ended=broken
    ) as pool:
        with pytest.raises(InfraError, match="'up' exited with 1: docker is down"):
            pool.acquire("early", ttl=60, timeout=0.3)
        answers.reverse()
        eventually(lambda: ready(pool))
        # Nor one that passed, and does not any more.
        answers.reverse()
        eventually(lambda: broken.told)
    assert next(iter(broken.told.values())) == "its check: 'up' exited with 1: docker is down"
    assert machines.on == []


def test_a_machine_that_does_not_answer_is_taken_out(tmp_path: Path, broken: Broken) -> None:
    machines = Machines(tmp_path, commands={"true": (1, "out of memory")})
    with open_pool(machines.restore, replicas=1, heartbeat_s=0.05, on_ended=broken):
        eventually(lambda: broken.told)
    assert next(iter(broken.told.values())) == "no heartbeat: 'true' exited with 1: out of memory"
    assert machines.on == []


def test_a_machine_that_cannot_be_started_is_tried_again(machines: Machines) -> None:
    failures = [InfraError("no memory"), InfraError("no memory")]

    @contextlib.contextmanager
    def start() -> Iterator[Machine]:
        if failures:
            raise failures.pop()
        with machines.restore() as machine:
            yield machine

    with open_pool(start, replicas=1) as pool:
        with pytest.raises(InfraError, match="no memory"):
            pool.acquire("early", ttl=60, timeout=0.3)
        assert pool.acquire("patient", ttl=60, timeout=30)
