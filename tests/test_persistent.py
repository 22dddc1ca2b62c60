"""Machines that stay: real supervisors, a real QEMU, and the commands as a user types them."""

from __future__ import annotations

import contextlib
import re
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
def machine(user: User, quick_kernel: Path) -> Iterator[str]:
    """A machine that is up."""
    user.type("up", "mine", "--kernel", str(quick_kernel))
    yield "mine"
    user.type("down", "mine")


def test_a_machine_outlives_the_command_that_started_it(user: User, machine: str) -> None:
    (found,) = user.ask("list")
    assert (found["name"], found["state"], found["boots"]) == (machine, "ready", 1)
    assert user.type("exec", machine, "--", "uname", "-r").strip() == found["release"]


def test_a_command_ends_as_it_did_in_the_guest(user: User, machine: str) -> None:
    done = user.try_("exec", machine, "--", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 7)


def test_the_log_begins_at_power_on_and_ends_at_the_prompt(user: User, machine: str) -> None:
    log = user.type("logs", machine)
    assert log.index("kboot: script") < log.index("Linux version") < log.index("login:")


def test_a_name_is_taken_once(user: User, machine: str, quick_kernel: Path) -> None:
    done = user.try_("up", machine, "--kernel", str(quick_kernel))
    assert done.returncode == 2
    assert f"there is a machine called {machine} already" in done.stderr


@pytest.mark.parametrize("command", ["status", "console", "logs", "restart", "ssh"])
def test_a_machine_that_does_not_exist_is_told_first(user: User, command: str) -> None:
    done = user.try_(command, "nobody")
    assert done.returncode == 2
    assert done.stderr.startswith("kboot: error: there is no machine called nobody")


def test_the_only_machine_needs_no_name(user: User, machine: str) -> None:
    assert user.ask("status")["name"] == machine
    assert user.type("exec", "--", "echo here") == "here\n"
    (user.home / "file").write_text("text")
    user.type("put", "file", "/root/file")
    user.type("get", "/root/file", "back")
    assert (user.home / "back").read_text() == "text"
    (only,) = user.ask("pushes")
    assert user.ask("pushes", "list", machine) == [only]


def test_a_command_without_dashes_is_told_where_it_goes(user: User, machine: str) -> None:
    done = user.try_("exec", machine, "uname", "-a")
    assert done.returncode == 2
    assert "kboot exec NAME -- uname -a" in done.stderr


def test_the_log_shows_no_frames_of_commands(user: User, machine: str) -> None:
    user.type("exec", machine, "--", "echo once")
    frame = re.compile(r"~\d+:\d+:\d")
    assert frame.search(user.type("logs", machine, "--raw"))
    assert frame.search(user.type("console", machine, "--log", "--raw"))
    for words in (("logs", machine), ("console", machine, "--log")):
        assert not frame.search(user.type(*words))


def test_a_mistake_is_told_before_anything_is_started(user: User) -> None:
    done = user.try_("up", "broken", "--kernel", "/etc/hostname")
    assert done.returncode == 2
    assert not (user.home / "state" / "kboot" / "machines" / "broken").exists()


def test_a_supervisor_that_cannot_start_tells_why(user: User, quick_kernel: Path) -> None:
    done = user.try_("up", "broken", "--kernel", str(quick_kernel), "--nginx", "no-such-nginx")
    assert done.returncode == 3
    assert "no-such-nginx not found" in done.stderr
    assert "broken" not in user.type("list")


def test_a_killed_supervisor_takes_its_machine_with_it(
    user: User, machine: str, quick_kernel: Path
) -> None:
    user.type("up", "doomed", "--kernel", str(quick_kernel))
    several = user.try_("status")
    assert several.returncode == 2
    assert "more than one machine: doomed, mine; name one: kboot status doomed" in several.stderr
    pid = user.ask("status", "doomed")["pid"]
    # In the middle of a push, which is where it hurts most.
    said = kill_a_supervisor_that_reads(user, "doomed", large_image(user), 0.5)
    assert "doomed" in said
    done = user.try_("exec", "doomed", "--", "true")
    assert (done.returncode, done.stderr.count("\n")) in {(2, 1), (3, 1)}
    assert "kboot up" in done.stderr
    assert "doomed" not in user.type("list")
    assert not (user.home / "state" / "kboot" / "machines" / "doomed").exists()
    left = [run for run in state.stale_runs() if str(pid) in map(str, run.pids)]
    assert left == []
    user.type("up", "doomed", "--kernel", str(quick_kernel))
    assert user.type("exec", "doomed", "--", "echo back") == "back\n"
