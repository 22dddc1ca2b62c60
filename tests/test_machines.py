"""Machines that stay: real supervisors, a real QEMU, and the commands as a user types them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot import state


class User:
    """Types commands, in a home of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environ = {
            **os.environ,
            "XDG_STATE_HOME": str(home / "state"),
            # A boot costs 3 s less without the firmware's part of it.
            "KBOOT_FIRMWARE_START": "saved",
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "kboot", *words]

    def try_(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            cwd=self.home,
            env=self.environ,
            check=False,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def type(self, *words: str) -> str:
        done = self.try_(*words)
        assert done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def report(self, name: str) -> Any:
        return json.loads((self.home / name).read_text())

    def ask(self, *words: str) -> Any:
        return json.loads(self.type(*words, "--json"))


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
    status = user.ask("status", "doomed")
    os.kill(status["pid"], signal.SIGKILL)
    done = user.try_("run", "-n", "doomed", "--", "true")
    assert done.returncode in {2, 3}
    assert "doomed" in done.stderr
    assert "doomed" not in user.type("list")
    assert not (user.home / "state" / "kboot" / "machines" / "doomed").exists()
    left = [run for run in state.stale_runs() if str(status["pid"]) in map(str, run.pids)]
    assert left == []
