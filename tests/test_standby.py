"""The machine that is restored while another one is in use."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kboot import state
from kboot.deadline import Deadline
from kboot.errors import GuestError
from kboot.kernel import read_kernel
from kboot.machine import Machine, MachineSettings, power_on
from kboot.standby import Restored, Slots, Standby
from kboot.testing import FakeBackend, Script, write_kernel
from tests.test_isolation import properties
from tests.test_workers import command, wait_until_all_are_gone

SETTINGS = MachineSettings()
OTHER = replace(SETTINGS, command_line="quiet")


class Machines:
    """Replayed machines, and which of them are on."""

    def __init__(self, directory: Path, commands: Script | None = None) -> None:
        self._directory = directory
        self._kernel = read_kernel(write_kernel(directory / "vmlinuz", "6.99.1-mine"))
        self._backend = FakeBackend(commands=commands)
        self.on: list[Machine] = []
        self.count = 0
        self._counting = threading.Lock()
        #: Held up until this is set.
        self.may_begin = threading.Event()
        self.may_begin.set()

    @contextlib.contextmanager
    def restore(self) -> Iterator[Machine]:
        self.may_begin.wait(60)
        with self._counting:
            self.count += 1
            number = self.count
        with (
            self._backend.serve(Deadline(5)) as server,
            power_on(
                self._backend,
                server,
                self._kernel,
                SETTINGS.named(f"m{number}"),
                evidence_directory=self._directory / str(number),
            ) as machine,
        ):
            machine.wait_until_ready()
            self.on.append(machine)
            try:
                yield machine
            finally:
                self.on.remove(machine)


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path)


@contextlib.contextmanager
def standby_with(directory: Path | None = None) -> Iterator[Standby]:
    with contextlib.closing(Standby(Slots(directory))) as standby:
        yield standby


def taken(standby: Standby) -> Restored:
    restored = standby.take(SETTINGS)
    assert restored
    return restored


def test_the_machine_that_was_prepared_is_handed_out_once(machines: Machines) -> None:
    with standby_with() as standby:
        standby.prepare(SETTINGS, machines.restore, limit=1)
        # It is there already, or on its way.
        standby.prepare(SETTINGS, machines.restore, limit=1)
        restored = taken(standby)
        assert machines.on == [restored.machine]
        assert machines.count == 1
        assert standby.take(SETTINGS) is None
        standby.power_off(restored.power).result()
        assert machines.on == []


def test_what_nobody_has_taken_is_powered_off_in_the_end(machines: Machines) -> None:
    with standby_with() as standby:
        standby.prepare(SETTINGS, machines.restore, limit=1)
        assert standby.take(OTHER) is None
    assert machines.on == []


def test_a_machine_of_other_settings_takes_its_place(machines: Machines) -> None:
    with standby_with() as standby:
        standby.prepare(OTHER, machines.restore, limit=1)
        standby.prepare(SETTINGS, machines.restore, limit=1)
        restored = taken(standby)
        assert machines.on == [restored.machine]


def test_one_that_broke_meanwhile_is_not_handed_out(machines: Machines) -> None:
    with standby_with() as standby:
        standby.prepare(SETTINGS, machines.restore, limit=1)
        restored = taken(standby)
        standby.prepare(SETTINGS, machines.restore, limit=1)
        for _ in Deadline(20).poll(0.01):
            if len(machines.on) == 2:
                break
        broken = machines.on[1]
        broken.panic()
        for _ in Deadline(20).poll(0.01):
            if broken.console.fatal:
                break
        assert standby.take(SETTINGS) is None
    assert machines.on == [restored.machine]


def test_one_that_cannot_be_restored_is_nobodys_fault_yet(machines: Machines) -> None:
    @contextlib.contextmanager
    def fails() -> Iterator[Machine]:
        with machines.restore() as machine:
            if machine.boot.ready:
                raise GuestError("it does not answer")
            yield machine

    with standby_with() as standby:
        standby.prepare(SETTINGS, fails, limit=1)
        assert standby.take(SETTINGS) is None
        assert machines.on == []
        standby.prepare(SETTINGS, machines.restore, limit=1)
        assert taken(standby)


def test_all_that_share_a_directory_share_a_limit(machines: Machines, tmp_path: Path) -> None:
    with standby_with(tmp_path) as first, standby_with(tmp_path) as second:
        first.prepare(SETTINGS, machines.restore, limit=1)
        second.prepare(SETTINGS, machines.restore, limit=1)
        assert second.take(SETTINGS) is None
        # What is in use does not stand by any more.
        assert taken(first)
        second.prepare(SETTINGS, machines.restore, limit=1)
        assert taken(second)


def test_while_one_is_waited_for_the_next_is_begun(machines: Machines) -> None:
    machines.may_begin.clear()

    def next_one() -> None:
        standby.prepare(SETTINGS, machines.restore, limit=1)
        machines.may_begin.set()

    with standby_with() as standby:
        standby.prepare(SETTINGS, machines.restore, limit=1)
        first = standby.take(SETTINGS, meanwhile=next_one)
        second = standby.take(SETTINGS)
        assert first
        assert second
        assert {first.machine, second.machine} == set(machines.on)
        first.power.close()
        second.power.close()


def test_one_that_is_waited_for_in_vain_is_powered_off(machines: Machines) -> None:
    def interrupts() -> None:
        raise KeyboardInterrupt

    with standby_with() as standby:
        standby.prepare(SETTINGS, machines.restore, limit=1)
        with pytest.raises(KeyboardInterrupt):
            standby.take(SETTINGS, meanwhile=interrupts)
    assert machines.on == []


def test_without_a_processor_to_spare_none_stands_by(machines: Machines) -> None:
    with standby_with() as standby:
        standby.prepare(SETTINGS, machines.restore, limit=0)
        assert standby.take(SETTINGS) is None
    assert machines.count == 0


def test_one_that_was_not_begun_is_not_waited_for_in_the_end(machines: Machines) -> None:
    machines.may_begin.clear()
    with standby_with() as standby:
        for settings in (SETTINGS, OTHER, SETTINGS):
            standby.prepare(settings, machines.restore, limit=1)
        standby.discard()
        machines.may_begin.set()
    assert machines.count <= 2
    assert machines.on == []


# --------------------------------------------------------------------------------- real machines

SUITE = """
import os
import time
from pathlib import Path
import pytest


def pristine(machine):
    assert machine.guest.run("test -e /root/mark").exit_status == 1
    machine.guest.succeed("echo mine >/root/mark; sleep 0.3")
    assert "-test_" in machine.evidence_directory.name


def test_first(machine):
    pristine(machine)


def test_second(machine):
    pristine(machine)


def test_has_no_machine():
    pass


@pytest.mark.kboot(isolation="none")
def test_takes_any(machine):
    assert machine.guest.run("test -e /root/mark").exit_status == 0


def test_panics(machine):
    pristine(machine)
    with machine.expect_crash("panic"):
        machine.panic()


def test_after_a_panic(machine):
    pristine(machine)


@pytest.mark.skip(reason="its machine is for the one after it")
def test_skipped(machine):
    pass


def test_last(machine):
    pristine(machine)
"""


@pytest.mark.usefixtures("runs_apart")
def test_tests_find_their_machines_restored(quick_kernel: Path, tmp_path: Path) -> None:
    output = run_pytest(quick_kernel, tmp_path, "--kboot-evidence=evidence")
    assert re.search(r"7 passed, 1 skipped", output), output
    names = {Path(each).name for each in properties(tmp_path, "kboot.evidence")}
    assert len(names) == 5
    assert names == {path.parent.name for path in (tmp_path / "evidence").glob("*/result.json")}
    stood_by = re.findall(r"(m-\d+) stood by", (tmp_path / "log").read_text())
    # All but the first test's: that one was not in use yet, or even booted.
    assert len(stood_by) == 4
    assert list(state.runs_directory().iterdir()) == []


def run_pytest(kernel: Path, directory: Path, *arguments: str) -> str:
    (directory / "test_suite.py").write_text(SUITE)
    (directory / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *command(kernel, "--kboot-standby=on", "--log-file=log", "--log-file-level=DEBUG"),
            "test_suite.py",
            *arguments,
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout + done.stderr


WAITS = """
import logging
import time
from pathlib import Path


def test_waits(machine):
    log = Path("log")
    while log.read_text().count("wake the guest: done") < 2:
        time.sleep(0.05)
    Path("began").touch()
    machine.guest.run("sleep 60", timeout=120)


def test_never(machine):
    pass
"""


@pytest.mark.usefixtures("runs_apart")
@pytest.mark.parametrize(
    ("end", "leaves"),
    [
        (lambda pytest_: pytest_.send_signal(signal.SIGINT), False),
        (lambda pytest_: pytest_.kill(), True),
    ],
    ids=["SIGINT", "SIGKILL"],
)
def test_a_run_that_is_ended_leaves_no_machine_that_stood_by(
    quick_kernel: Path,
    tmp_path: Path,
    end: Callable[[subprocess.Popen[bytes]], None],
    leaves: bool,
) -> None:
    (tmp_path / "test_waits.py").write_text(WAITS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ("--kboot-standby=on", "--log-file=log", "--log-file-level=DEBUG")
    with (
        (tmp_path / "output").open("w") as output,
        subprocess.Popen(
            command(quick_kernel, *options, "test_waits.py"),
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        ) as run,
    ):
        for _ in Deadline(120).poll(0.05):
            if (tmp_path / "began").exists() or run.poll() is not None:
                break
        assert (tmp_path / "began").exists(), (tmp_path / "output").read_text()
        end(run)
        run.wait(60)
        wait_until_all_are_gone(tmp_path)
    if leaves:
        assert state.sweep()
    assert list(state.runs_directory().iterdir()) == []
