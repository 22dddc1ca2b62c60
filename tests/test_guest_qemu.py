from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot.console import Console
from kboot.crash import CrashKind
from kboot.deadline import Deadline
from kboot.errors import GuestError, KernelCrash
from kboot.guest import Guest, log_in
from kboot.kernel import read_kernel
from tests.soak_console import FLOOD, KMSG_UNLIMITED, machine, soak


@pytest.fixture(scope="module")
def serial_line(quick_kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A real kernel under emulation, which boots."""
    record = tmp_path_factory.mktemp("machine")
    with machine(quick_kernel, record, command_line=KMSG_UNLIMITED) as console:
        yield console


@pytest.fixture(scope="module")
def vm(serial_line: Console) -> tuple[Console, Guest]:
    """The same at root's shell."""
    return serial_line, log_in(serial_line, "root", "kboot", Deadline(120))


def test_the_pexpect_script_of_the_documentation_runs(
    serial_line: Console, quick_kernel: Path
) -> None:
    text = (Path(__file__).parent.parent / "docs" / "console.md").read_text(encoding="utf-8")
    script = text.partition("runs this -->\n```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"console": serial_line}
    exec(script, names)  # noqa: S102  our own documentation
    assert names["release"] == read_kernel(quick_kernel).release


def test_commands_in_a_real_guest_are_exact(vm: tuple[Console, Guest]) -> None:
    _, guest = vm
    assert guest.succeed("uname -s") == "Linux\n"
    for number in range(15):
        assert guest.succeed(f"echo {number}") == f"{number}\n"
    text = "x" * 20_000
    assert guest.run(f"printf %s {text}; exit 7").stdout == text


def test_commands_under_a_flood_of_kernel_messages_are_exact(
    vm: tuple[Console, Guest],
) -> None:
    console, guest = vm
    before = console.mark()
    flood = guest.spawn(FLOOD)
    assert soak(guest, 30, seed=1) == {"exact": 30, "wrong": 0, "refused": 0}
    flood.kill(timeout=20)
    flood.wait(timeout=20)
    assert console.raw(before).count(b"flood\r\n") > 100


def test_files_travel_into_a_real_guest_and_back(vm: tuple[Console, Guest], tmp_path: Path) -> None:
    _, guest = vm
    local, back = tmp_path / "local", tmp_path / "back"
    local.write_bytes(bytes(range(256)) * 20)
    guest.put(local, "/tmp/file", timeout=60)
    guest.get("/tmp/file", back, timeout=60)
    assert back.read_bytes() == local.read_bytes()


def test_the_guests_serial_port_takes_more_at_once_while_it_is_ours(
    vm: tuple[Console, Guest], tmp_path: Path
) -> None:
    _, guest = vm
    assert guest.succeed("cat /sys/class/tty/ttyS0/rx_trig_bytes") == "14\n"
    large = tmp_path / "large"
    large.write_bytes(random.Random(5).randbytes(60_000))
    guest.put(large, "/tmp/large", timeout=120)
    sent = hashlib.sha256(large.read_bytes()).hexdigest()
    assert guest.succeed("sha256sum </tmp/large").split()[0] == sent


def test_a_full_disk_in_the_guest_is_named_and_passes(vm: tuple[Console, Guest]) -> None:
    _, guest = vm
    guest.spawn("sleep 6; rm $KBOOT_DIR/fill")
    filled = guest.run("dd if=/dev/zero of=$KBOOT_DIR/fill bs=1M", timeout=60)
    assert filled.exit_status == 1
    with pytest.raises(GuestError, match="cannot write temporary files"):
        guest.run("true " + "x" * 60_000)
    for _ in Deadline(30).poll(0.5):
        with contextlib.suppress(GuestError):
            guest.run("true " + "x" * 60_000)
            break
    assert guest.succeed("echo on") == "on\n"


def test_a_command_in_a_guest_that_crashes_raises_the_crash(
    vm: tuple[Console, Guest],
) -> None:
    console, guest = vm
    with console.expecting(lambda report: report.kind is CrashKind.PANIC) as box:
        guest.spawn("sleep 0.5; echo c > /proc/sysrq-trigger")
        assert console.wait_for_crash(box, timeout=60).fatal
    console.expect_reset()
    guest = log_in(console, "root", "kboot", Deadline(120))
    with pytest.raises(KernelCrash) as caught:
        guest.run("echo c > /proc/sysrq-trigger", timeout=60)
    assert "sysrq" in caught.value.report.title
