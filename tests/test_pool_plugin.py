"""The fixture ``pool`` and its marker, as a user sees them."""

from __future__ import annotations

import pytest

from tests.test_fleet_plugin import CONFTEST

SUITE = """
import time
import pytest
from kboot import ConfigError

seen = set()

def fresh(lease):
    assert lease.name not in seen, "somebody has had it"
    seen.add(lease.name)
    return lease


@pytest.mark.kboot_pool(replicas=2, ttl="5m")
def test_has_two(pool):
    one, other = fresh(pool.acquire()), fresh(pool.acquire())
    assert one.machine is not other.machine
    assert one.succeed("whoami") == "root\\n"
    assert one.holder.endswith("::test_has_two")
    assert 200 < one.remaining_s <= 300
    with pytest.raises(ConfigError, match="has all 2 machines of its pool.*replicas=3"):
        pool.acquire()
    other.release()
    with pytest.raises(ConfigError, match="was given back"):
        other.run("true")
    with fresh(pool.acquire()) as third:
        assert len(pool.held) == 2
        assert third.machine.evidence_directory.name.endswith("-test_has_two")
    assert pool.held == (one,)


def test_has_one_that_nobody_had(pool):
    fresh(pool.acquire())


def test_its_machine_crashes(pool):
    lease = fresh(pool.acquire())
    lease.run("crash")
    while not lease.machine.console.fatal:
        time.sleep(0.01)


def test_it_crashes_before_it_is_given_back(pool):
    with fresh(pool.acquire()) as lease:
        lease.run("crash")
        while not lease.machine.console.fatal:
            time.sleep(0.01)


def test_a_command_fails(pool):
    fresh(pool.acquire()).succeed("false")


@pytest.mark.kboot_pool(ttl=0.2)
def test_takes_too_long(pool):
    lease = fresh(pool.acquire())
    while lease.remaining_s:
        time.sleep(0.01)
    lease.run("true")


@pytest.mark.kboot_pool(ttl=0.2)
def test_takes_too_long_and_does_not_look(pool):
    lease = fresh(pool.acquire())
    while lease.remaining_s:
        time.sleep(0.01)


def test_the_next_one_has_its_machine(pool):
    fresh(pool.acquire()).succeed("true")


@pytest.mark.kboot_pool(check="false", wait=0.3)
def test_no_machine_passes_its_check(pool):
    pool.acquire()


@pytest.mark.kboot_pool("absent")
def test_asks_for_a_pool_that_is_not_there(pool):
    pool.acquire()
"""


def test_a_pool_is_a_fixture(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=6, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*kboot crash: *",
            "*kboot evidence*",
            "E *KernelCrash: *",
            "E *CommandFailed: *'false' exited with 1*",
            "E *ConfigError: the lease of m* ended after 0.2 s, before it was given back*ttl=*",
            "E *InfraError: no machine of the pool is free after 0.3 s: 'false' exited with 1*",
            "E *ConfigError: there is no pool called absent*kboot pool up absent",
        ]
    )
    assert str(result.stdout).count("_ ERROR at teardown") == 0


@pytest.mark.parametrize(
    ("marker", "complaint"),
    [
        ("'ci', replicas=3", "the pool ci was started with its own"),
        ("'Ci'", "cannot be a pool's name"),
        ("3", "takes the name of a pool that stays"),
        ("size=3", "has no setting size; it has replicas"),
        ("replicas=0", "a number of machines, 1 or more"),
        ("check=3", "check=3: a command for the guest"),
        ("ttl='long'", "ttl='long': not a time above 0"),
    ],
)
def test_a_mistake_in_the_marker_ends_the_run_before_it_starts(
    pytester: pytest.Pytester, marker: str, complaint: str
) -> None:
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.kboot_pool({marker})\ndef test_it(pool):\n    pass\n"
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: kboot: *test_it: *{complaint}*"])
