"""Expected crashes on a real machine, and each way in which they do not go as expected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kboot.errors import (
    GuestError,
    HungAfterPanic,
    KernelCrash,
    NoCrash,
    NoReboot,
    RebootLoop,
    SecondCrash,
    WrongCrash,
    WrongKernel,
)
from kboot.rootfs import overlay_initramfs
from tests.zoo.zoo import KERNEL, RESETTING_INIT, SHORT_INIT, Zoo, module


def test_no_crash(zoo: Zoo) -> None:
    machine = zoo.open()
    with (
        pytest.raises(NoCrash, match="expected a crash of kind panic; none came in 1 s"),
        machine.expect_crash("panic", timeout=1),
    ):
        pass


def test_a_wrong_crash(zoo: Zoo) -> None:
    machine = zoo.open()
    with (
        pytest.raises(WrongCrash, match="of kind divide-error; what came is kernel BUG") as caught,
        machine.expect_crash("divide-error", timeout=2),
    ):
        zoo.meet("bug")
    assert caught.value.report.function == "zoo_bug"


def test_a_crash_of_the_right_kind_in_the_wrong_place(zoo: Zoo) -> None:
    machine = zoo.open()
    with (
        pytest.raises(WrongCrash, match="that matches 'elsewhere'; what came is kernel BUG"),
        machine.expect_crash("bug", match="elsewhere", timeout=2),
    ):
        zoo.meet("bug")


def test_a_second_crash(zoo: Zoo) -> None:
    machine = zoo.open()
    with (
        pytest.raises(SecondCrash, match=r"after .*zoo_bug\) came another: divide error"),
        machine.expect_crash("bug"),
    ):
        zoo.meet("bug", "divide")


def test_the_same_crash_twice_is_one(zoo: Zoo) -> None:
    machine = zoo.open()
    with machine.expect_crash("bug") as crash:
        zoo.meet("bug", "bug")
    assert len(crash.reports) == 2


def test_a_command_that_ends_in_a_death_ends_the_block(zoo: Zoo) -> None:
    machine = zoo.open()
    kept = machine.guest
    background = kept.spawn("sleep 1")
    went_on = []
    with machine.expect_crash("stack-corruption"):
        zoo.meet("stack_corruption")
        went_on.append(True)
    machine.wait_for_reboot()
    assert went_on == []
    for use in (lambda: kept.run("true"), background.wait, background.kill):
        with pytest.raises(GuestError, match=r"left that boot; machine\.guest is"):
            use()
    machine.guest.run("echo back; exit 5")
    *_, fatal, last = machine.commands
    assert ("zoo" in fatal.command, fatal.exit_status) == (True, None)
    assert (last.command, last.exit_status, last.output_tail) == ("echo back; exit 5", 5, "back\n")


def test_a_crash_and_no_reboot(zoo: Zoo) -> None:
    machine = zoo.open()
    with machine.expect_crash("oops"):
        zoo.meet("null")
    with pytest.raises(NoReboot, match="its kernel went on after NULL pointer dereference"):
        machine.wait_for_reboot(3)


def test_a_hang_after_the_panic(zoo: Zoo) -> None:
    machine = zoo.open()
    with machine.expect_crash("panic"):
        zoo.meet("stack_corruption", before="echo 0 > /proc/sys/kernel/panic")
    with pytest.raises(HungAfterPanic, match=r"hung after its crash .*zoo_stack_corruption"):
        machine.wait_for_reboot(3)


def test_a_reboot_into_another_kernel(zoo: Zoo) -> None:
    machine = zoo.open()
    # What a machine does that falls back to the kernel on its disk.
    zoo.change_script("kboot.nonce=", "other.nonce=")
    with machine.expect_crash("panic"):
        machine.panic()
    with pytest.raises(WrongKernel, match="was not started by this boot"):
        machine.wait_for_reboot()


def test_a_second_crash_on_the_way_back(zoo: Zoo) -> None:
    machine = zoo.open()
    zoo.change_script("panic=-1", f"panic=-1 rdinit={SHORT_INIT}")
    with machine.expect_crash("panic"):
        machine.panic()
    with pytest.raises(SecondCrash, match=r"on its way back .*attempted to kill init") as caught:
        machine.wait_for_reboot()
    assert caught.value.report.kind == "init-killed"


def test_a_reboot_loop(zoo: Zoo) -> None:
    machine = zoo.open()
    zoo.change_script("panic=-1", f"panic=-1 rdinit={RESETTING_INIT}")
    with machine.expect_crash("panic"):
        machine.panic()
    with pytest.raises(RebootLoop, match=r"reboot loop: .* before it was ready"):
        machine.wait_for_reboot()


def test_a_report_that_nobody_wanted(zoo: Zoo) -> None:
    machine = zoo.open()
    zoo.meet("warn")
    with pytest.raises(KernelCrash, match="the kernel reported: WARNING in zoo_warn"):
        machine.check_reports()
    assert not machine.pristine


# ------------------------------------------------------------------------------- under pytest

_SUITE = """
import pytest

def visit(guest):
    guest.succeed("insmod /lib/kboot_zoo.ko")  # Fails where it is there: each test has a new guest.
    guest.succeed("echo warn > /proc/kboot_zoo")

@pytest.mark.kboot_allow_warning("warning", match="zoo_warn")
def test_allowed(guest):
    visit(guest)

@pytest.mark.kboot_allow_warning(match="elsewhere")
def test_not_allowed(guest):
    visit(guest)

@pytest.mark.kboot(warnings="report")
def test_only_reported(guest):
    visit(guest)
"""


def test_a_warning_fails_its_test_unless_it_is_allowed(tmp_path: Path) -> None:
    overlay = overlay_initramfs({"/lib/kboot_zoo.ko": module()})
    (tmp_path / "test_it.py").write_text(_SUITE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", "test_it.py"]
    done = subprocess.run(
        [
            *(*command, f"--kernel={KERNEL}", f"--kboot-initrd={overlay}"),
            "--kboot-firmware-start=saved",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "KernelCrash: the kernel reported: WARNING in zoo_warn" in done.stdout
    summary = done.stdout.partition("reports of the kernel that tests allow")[2]
    assert "::test_allowed: WARNING in zoo_warn (a crash of kind warning that matches" in summary
    assert "::test_not_allowed: WARNING" not in summary


@pytest.mark.parametrize("arguments", ["", "1, 2, 3", "'wrning'", "text='x'"])
def test_a_marker_that_cannot_be_meant_ends_the_run(tmp_path: Path, arguments: str) -> None:
    (tmp_path / "test_it.py").write_text(
        f"import pytest\n@pytest.mark.kboot_allow_warning({arguments})\ndef test_it():\n    pass\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "ERROR: kboot: test_it.py::test_it: " in done.stderr
