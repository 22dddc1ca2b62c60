"""Machines that stay: real supervisors, a real QEMU, and the commands as a user types them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot import state
from tests.soak_machines import kill_a_supervisor_that_reads, large_image
from tests.users import User


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    someone = User(tmp_path_factory.mktemp("home"))
    yield someone
    with contextlib.suppress(AssertionError):
        someone.type("down", "--all")


@pytest.fixture(scope="module")
def machine(user: User, debian_kernel: Path) -> Iterator[str]:
    """A machine that is up."""
    user.type("up", "mine", "--kernel", str(debian_kernel))
    yield "mine"
    user.type("down", "mine")


def test_a_machine_outlives_the_command_that_started_it(user: User, machine: str) -> None:
    (found,) = user.ask("list")
    assert (found["name"], found["state"], found["boots"]) == (machine, "ready", 1)
    assert user.type("run", "-n", machine, "--", "uname", "-r").strip() == found["release"]


def test_a_command_ends_as_it_did_in_the_guest(user: User, machine: str) -> None:
    done = user.try_("run", "-n", machine, "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_the_log_begins_at_power_on_and_ends_at_the_prompt(user: User, machine: str) -> None:
    log = user.type("logs", machine)
    assert log.index("kboot: script") < log.index("Linux version") < log.index("login:")


def test_a_name_is_taken_once(user: User, machine: str, debian_kernel: Path) -> None:
    done = user.try_("up", machine, "--kernel", str(debian_kernel))
    assert done.returncode == 2
    assert f"there is a machine called {machine} already" in done.stderr


def test_nobody_of_that_name(user: User) -> None:
    done = user.try_("status", "nobody")
    assert done.returncode == 2
    assert "there is no machine called nobody" in done.stderr


def test_a_name_may_stand_before_or_behind(user: User, machine: str) -> None:
    assert user.ask("status", "-n", machine)["name"] == machine
    assert user.type("logs", "--name", machine) == user.type("logs", machine)
    done = user.try_("status", machine, "-n", "other")
    assert (done.returncode, "two machines" in done.stderr) == (2, True)


def test_a_mistake_is_told_before_anything_is_started(user: User) -> None:
    done = user.try_("up", "broken", "--kernel", "/etc/hostname")
    assert done.returncode == 2
    assert not (user.home / "state" / "kboot" / "machines" / "broken").exists()


def test_a_supervisor_that_cannot_start_tells_why(user: User, debian_kernel: Path) -> None:
    done = user.try_("up", "broken", "--kernel", str(debian_kernel), "--nginx", "no-such-nginx")
    assert done.returncode == 3
    assert "no-such-nginx not found" in done.stderr
    assert "broken" not in user.type("list")


def test_a_killed_supervisor_takes_its_machine_with_it(user: User, debian_kernel: Path) -> None:
    user.type("up", "doomed", "--kernel", str(debian_kernel))
    pid = user.ask("status", "doomed")["pid"]
    # In the middle of a push, which is where it hurts most.
    said = kill_a_supervisor_that_reads(user, "doomed", large_image(user), 0.5)
    assert "doomed" in said
    done = user.try_("run", "-n", "doomed", "--", "true")
    assert (done.returncode, done.stderr.count("\n")) in {(2, 1), (3, 1)}
    assert "kboot up" in done.stderr
    assert "doomed" not in user.type("list")
    assert not (user.home / "state" / "kboot" / "machines" / "doomed").exists()
    left = [run for run in state.stale_runs() if str(pid) in map(str, run.pids)]
    assert left == []
    user.type("up", "doomed", "--kernel", str(debian_kernel))
    assert user.type("run", "-n", "doomed", "echo back") == "back\n"
