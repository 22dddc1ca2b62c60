"""pytest-xdist: workers whose machines do not hear of each other, and what a dead one leaves."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot import state
from kboot.deadline import Deadline
from tests.test_isolation import outcomes, properties

pytestmark = pytest.mark.usefixtures("runs_apart")

#: The same name in two folders, each with a kernel command line of its own.
TWINS = """
import pytest

pytestmark = pytest.mark.kboot(cmdline="twin={twin}")

@pytest.mark.parametrize("number", range(2))
def test_twin(machine, number, record_property):
    assert "twin={twin}" in machine.command_line.split()
    guest = machine.guest
    assert "twin={twin}" in guest.succeed("cat /proc/cmdline").split()
    assert guest.run("test -e /root/mark").exit_status == 1
    guest.succeed("touch /root/mark")
    record_property("server", machine.server.url(""))
    record_property("worker", machine.name.partition("-")[0])


def test_reboots(machine):
    machine.reset()
    scripts = [fetch.path for fetch in machine.fetches if fetch.path.startswith("scripts/")]
    assert scripts[-1] == f"scripts/{{machine.name}}/boot.ipxe"
    assert "twin={twin}" in machine.guest.succeed("cat /proc/cmdline").split()
"""


def command(kernel: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio", "-v"),
        *(f"--kernel={kernel}", "--kboot-accel=tcg", "--kboot-firmware-start=saved"),
        *("--junitxml=junit.xml", *arguments),
    ]


def test_two_workers_with_two_kernels_do_not_mix_them_up(
    quick_kernel: Path, tmp_path: Path
) -> None:
    for twin in ("a", "b"):
        folder = tmp_path / twin
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "test_twin.py").write_text(TWINS.format(twin=twin))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        command(quick_kernel, "-n2", "--dist=loadscope", "--kboot-evidence=evidence", "a/", "b/"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(properties(tmp_path, "worker")) == 4
    assert set(properties(tmp_path, "worker")) == {"gw0", "gw1"}
    assert len(set(properties(tmp_path, "server"))) == 1
    evidence = {Path(path) for path in properties(tmp_path, "kboot.evidence")}
    assert len(evidence) == 6
    assert {path.parent.parent for path in evidence} == {tmp_path / "evidence"}
    asked: dict[str, set[str]] = {"a": set(), "b": set()}
    for path in evidence:
        (twin,) = re.findall(r"twin=(\w)", (path / "boot.ipxe").read_text())
        asked[twin] |= set(re.findall(r"b=(\w+)", (path / "access.jsonl").read_text()))
        # The server is the controller's; what it has to say is with each machine all the same.
        assert "listen 127.0.0.1" in (path / "nginx.conf").read_text()
    # A restored machine has the nonce of the one that was saved, and another one when it reboots.
    assert len(asked["a"]) == len(asked["b"]) == 2
    assert not asked["a"] & asked["b"]


DEADLY = """
import os
import signal
import pytest

@pytest.mark.parametrize("number", range(4))
def test_lives(machine, number):
    machine.guest.succeed("true")


def test_kills_its_worker(machine):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_that_dies_is_replaced_and_leaves_no_machine(
    quick_kernel: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_deadly.py").write_text(DEADLY)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        command(quick_kernel, "-n2", "test_deadly.py"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = outcomes(tmp_path)
    lively = {name: outcome for name, outcome in found.items() if name.startswith("test_lives")}
    assert len(lively) == 4
    assert set(lively.values()) == {"passed"}, done.stdout
    assert re.search(r"worker 'gw\d' crashed", done.stdout)
    assert not processes_in(tmp_path)


SLOW = """
import os
import time
from pathlib import Path

def test_takes_long(machine):
    Path("began-" + os.environ["PYTEST_XDIST_WORKER"]).touch()
    machine.guest.run("sleep 60", timeout=120)


def test_takes_as_long(machine):
    test_takes_long(machine)
"""


def test_when_the_controller_is_killed_everything_ends(quick_kernel: Path, tmp_path: Path) -> None:
    with two_at_work(quick_kernel, tmp_path) as controller:
        controller.kill()
        controller.wait()
        wait_until_all_are_gone(tmp_path)
    # Their directories go with the next run.
    assert state.sweep()
    assert list(state.runs_directory().iterdir()) == []


def test_ctrl_c_ends_everything_in_good_order(quick_kernel: Path, tmp_path: Path) -> None:
    with two_at_work(quick_kernel, tmp_path) as controller:
        # As a terminal does it: to all processes in the foreground.
        os.killpg(controller.pid, signal.SIGINT)
        assert controller.wait(60) == pytest.ExitCode.INTERRUPTED
        wait_until_all_are_gone(tmp_path)
    assert list(state.runs_directory().iterdir()) == []


@contextlib.contextmanager
def two_at_work(quick_kernel: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """pytest with two workers, each of which is in the middle of a test."""
    (tmp_path / "test_slow.py").write_text(SLOW)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    with (
        (tmp_path / "output").open("w") as output,
        subprocess.Popen(
            command(quick_kernel, "-n2", "test_slow.py"),
            cwd=tmp_path,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as controller,
    ):
        for _ in Deadline(120).poll(0.1):
            if len(list(tmp_path.glob("began-*"))) == 2:
                break
        assert len(list(tmp_path.glob("began-*"))) == 2, (tmp_path / "output").read_text()
        yield controller


def wait_until_all_are_gone(directory: Path) -> None:
    for _ in Deadline(20).poll(0.1):
        if not processes_in(directory):
            return
    assert not processes_in(directory)


def processes_in(directory: Path) -> set[str]:
    """What runs in this working directory, or for a run that was begun there."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            at, name = (entry / "cwd").readlink(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if at == directory and int(entry.name) != os.getpid():
            found.add(f"{entry.name}: {name.replace(bytes(1), b' ').decode()[:200]}")
    return found
