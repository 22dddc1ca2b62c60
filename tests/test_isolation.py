"""What one test does to its machine, the next one never sees."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kboot.config import Config, Isolation
from kboot.isolation import Snapshots, User, may_share, resolve
from kboot.kernel import read_kernel
from kboot.rootfs import overlay_initramfs
from kboot.session import open_session
from kboot.snapshots import SnapshotStore
from kboot.state import cache_directory
from kboot.testing import RECORDED_BOOT, FakeBackend, write_kernel

FIRST = User(test="a.py::one", module="a.py")
SECOND = User(test="a.py::two", module="a.py")
STRANGER = User(test="b.py::one", module="b.py")


@pytest.mark.parametrize(
    ("isolation", "neighbours", "strangers"),
    [
        ("test", False, False),
        ("module", True, False),
        ("session", True, True),
        ("none", True, True),
    ],
)
def test_who_may_share_a_machine(isolation: Isolation, neighbours: bool, strangers: bool) -> None:
    assert may_share(isolation, FIRST, SECOND) is neighbours
    assert may_share(isolation, FIRST, STRANGER) is strangers
    # One test that asks twice means one machine.
    assert may_share(isolation, FIRST, FIRST)


def test_auto_is_for_every_test_where_that_is_quick() -> None:
    assert resolve("auto", restores=True) == "test"
    assert resolve("auto", restores=False) == "session"
    assert resolve("module", restores=True) == "module"


STALL = b"""\
[    1.812345] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\r
[    1.812399] rcu: \t1-...!: (0 ticks this GP) idle=9/1/0x4 softirq=5/6 fqs=1\r
[    1.812410] \t(detected by 0, t=5252 jiffies, g=-1011, q=2 ncpus=2)\r
"""


def test_a_boot_that_was_too_slow_for_its_own_kernel_is_not_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A busy host is enough for a stall, which every run that restores the machine would have."""
    recording = tmp_path / "recording"
    shutil.copytree(RECORDED_BOOT, recording)
    console = (recording / "serial.log").read_bytes()
    at = console.index(b"\n", console.index(b"Run /init as init process")) + 1
    (recording / "serial.log").write_bytes(console[:at] + STALL + console[at:])
    kernel = write_kernel(tmp_path / "vmlinuz", "6.99.1-mine")
    config = Config(kernel=str(kernel), isolation="none")
    (tmp_path / "store").mkdir()
    with (
        SnapshotStore(tmp_path / "store", limit_mib=1) as store,
        open_session(config, evidence=tmp_path, backend=FakeBackend(recording)) as session,
    ):
        settings = session.settings(config)
        machine = session.machine(settings, name="slow")
        Snapshots(session.backend, session.kernel, store).save(machine, settings)
        assert store.entries() == []
    assert "this boot is not saved, the next one may be: RCU stall" in caplog.text


# --------------------------------------------------------------------------------- real machines

VANDALS = """
def clean(machine):
    assert not machine.console.reports
    assert len(machine.boot_ids) == 1
    guest = machine.guest
    assert guest.succeed("cat /proc/sys/kernel/tainted").strip() == "0"
    assert guest.run("test -e /root/mark").exit_status == 1
    assert "127.0.0.1" in guest.succeed("ip addr show dev lo")
    assert guest.run("grep -q /mnt /proc/mounts").exit_status == 1
    guest.succeed("echo mine >/root/mark")


def test_begins(machine):
    clean(machine)


def test_panics(machine):
    clean(machine)
    with machine.expect_crash("panic"):
        machine.panic()


def test_fills_the_memory(machine):
    clean(machine)
    # How much memory a kernel leaves free is its own affair: all but 100 MB of it goes.
    free = "awk '/^MemAvailable/ {print int($2 / 1024)}' /proc/meminfo"
    before_mib = int(machine.guest.succeed(free))
    fill = f"dd if=/dev/zero of=/mnt/x bs=1M count={before_mib - 100}"
    machine.guest.succeed(f"mount -t tmpfs -o size=100% none /mnt && {fill}")
    assert int(machine.guest.succeed(free)) < before_mib / 2


def test_breaks_the_network(machine):
    clean(machine)
    machine.vm.set_link(up=False)
    machine.guest.succeed("ip addr flush dev lo && ip link set lo down")


def test_taints_the_kernel(machine):
    clean(machine)
    machine.guest.succeed("echo 64 >/proc/sys/kernel/tainted")


def test_dies_unexpectedly(machine):
    clean(machine)
    machine.panic()
    machine.guest.run("sleep 30")


def test_hangs(machine):
    clean(machine)
    machine.guest.run("sleep 100", timeout_s=1)


def test_ends(machine):
    clean(machine)
    assert machine.restored_from
"""


def run_pytest(directory: Path, suite: str, kernel: Path, *arguments: str) -> str:
    """Run a suite on the kernel; what pytest printed. The JUnit file is junit.xml."""
    (directory / "test_suite.py").write_text(suite)
    (directory / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio"),
            *(f"--kernel={kernel}", "--kboot-accel=tcg", "--kboot-firmware-start=saved"),
            *("--junitxml=junit.xml", *arguments),
            "test_suite.py",
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout + done.stderr


def outcomes(directory: Path) -> dict[str, str]:
    """Test -> passed, failure or error, as JUnit has it."""
    cases = ET.parse(directory / "junit.xml").iter("testcase")  # noqa: S314  ours
    return {
        case.attrib["name"]: next(
            (child.tag for child in case if child.tag in {"failure", "error"}), "passed"
        )
        for case in cases
    }


def properties(directory: Path, name: str) -> list[str]:
    """The values of one property of all test cases that have it."""
    found = ET.parse(directory / "junit.xml").iter("property")  # noqa: S314  ours
    return [each.attrib["value"] for each in found if each.attrib["name"] == name]


def test_no_test_sees_what_another_did_to_its_machine(quick_kernel: Path, tmp_path: Path) -> None:
    output = run_pytest(tmp_path, VANDALS, quick_kernel)
    found = outcomes(tmp_path)
    guilty = {"test_dies_unexpectedly", "test_hangs"}
    assert {name for name, outcome in found.items() if outcome != "passed"} == guilty, output
    assert len(found) == 8


WORKERS = """
import os
import pytest

@pytest.mark.parametrize("number", range(8))
def test_own_machine(machine, number, record_property):
    guest = machine.guest
    assert guest.run("test -e /root/mark").exit_status == 1
    guest.succeed(f"echo {number} >/root/mark; sleep 0.3")
    assert guest.succeed("cat /root/mark").strip() == str(number)
    record_property("worker", os.environ["PYTEST_XDIST_WORKER"])
    record_property("machine", machine.name)
    record_property("server", machine.server.url(""))
    record_property("boot_id", machine.boot_id)


def test_boots_again(machine):
    machine.reset()
    assert machine.boot.contradiction() is None
"""


def test_workers_share_saved_machines_and_the_boot_server(
    quick_kernel: Path, tmp_path: Path
) -> None:
    output = run_pytest(tmp_path, WORKERS, quick_kernel, "-n2", "--kboot-evidence=evidence")
    assert set(outcomes(tmp_path).values()) == {"passed"}, output
    assert len(outcomes(tmp_path)) == 9
    assert set(properties(tmp_path, "worker")) == {"gw0", "gw1"}
    machines = properties(tmp_path, "machine")
    assert len(set(machines)) == len(machines) == 8
    assert len(set(properties(tmp_path, "server"))) == 1
    # All but the one that was saved, at most, have gone on from it.
    assert len(set(properties(tmp_path, "boot_id"))) == 1
    assert len(properties(tmp_path, "kboot.restored_from")) >= 8
    evidence = [Path(path) for path in properties(tmp_path, "kboot.evidence")]
    assert {path.parent.parent for path in evidence} == {tmp_path / "evidence"}
    assert all((path / "serial.log").stat().st_size for path in evidence)
    assert all((path / "result.json").is_file() for path in evidence)
    assert re.search(r"9 passed", output)


NEIGHBOURS = """
import pytest

def test_first(machine):
    machine.guest.succeed("echo mine >/root/mark")


def test_shares(machine):
    machine.guest.succeed("test -e /root/mark")
    machine.guest.succeed("echo 64 >/proc/sys/kernel/tainted")


def test_gets_another_one(machine):
    assert machine.guest.run("test -e /root/mark").exit_status == 1
    assert machine.guest.succeed("cat /proc/sys/kernel/tainted").strip() == "0"
    machine.guest.succeed("echo mine >/root/mark")


@pytest.mark.kboot(isolation="test")
def test_wants_one_for_itself(machine):
    assert machine.guest.run("test -e /root/mark").exit_status == 1
    machine.guest.succeed("echo mine >/root/mark")


@pytest.mark.kboot(isolation="none")
def test_takes_any(machine):
    machine.guest.succeed("test -e /root/mark")


def test_does_not_get_what_was_for_another_alone(machine):
    assert machine.guest.run("test -e /root/mark").exit_status == 1


@pytest.mark.kboot(fresh=True, firmware_start="saved")
def test_was_booted_for_itself(machine):
    assert machine.restored_from is None
    assert machine.machine_description.endswith("saved firmware")
"""


def test_a_module_shares_a_machine_until_something_happens_to_it(
    quick_kernel: Path, tmp_path: Path
) -> None:
    output = run_pytest(tmp_path, NEIGHBOURS, quick_kernel, "--kboot-isolation=module")
    assert set(outcomes(tmp_path).values()) == {"passed"}, output


def test_a_saved_machine_that_does_not_run_is_made_anew(
    quick_kernel: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # From the cache that all tests have; unpacking it takes a while, and so does a boot.
    image = read_kernel(quick_kernel).image
    config = Config(kernel=str(image), accel="tcg", firmware_start="saved")
    with open_session(config, evidence=tmp_path / "first") as session:
        saved = session.saved(session.settings(config))
        assert saved
        entries = SnapshotStore(cache_directory("snapshots"), limit_mib=4096).entries()
        (good,) = (each for each in entries if each.key == saved.key)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        own = cache_directory("snapshots")
        for entry in entries:
            if str(entry.note["about"]).startswith("bios firmware"):
                subprocess.run(["cp", "-a", "--sparse=always", entry.directory, own], check=True)

    def fill(directory: Path) -> Mapping[str, Any]:
        with (directory / "memory").open("wb") as memory:
            memory.truncate(config.memory_mib << 20)
        (directory / "console").write_bytes(b"")
        (directory / "devices").write_bytes(b"not what QEMU wrote")
        return good.note

    with SnapshotStore(own, limit_mib=4096) as store:
        store.add(good.parts, fill)
    with open_session(config, evidence=tmp_path / "second") as session:
        settings = session.settings(config)
        machine = session.machine(settings, name="second")
        assert machine.restored_from is None
        assert machine.boot_id != saved.boot_id
        assert "does not run and is removed" in caplog.text
        assert session.machine(settings, name="third").restored_from == good.key


def test_a_guest_that_cannot_be_woken_up_is_not_restored(
    quick_kernel: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who is not root can set neither the clock nor the random numbers."""
    nobody = overlay_initramfs({"/etc/passwd": b"root:x:1000:1000:root:/tmp:/bin/sh\n"})
    config = Config(kernel=str(quick_kernel), accel="tcg", firmware_start="saved", initrd=(nobody,))
    with open_session(config, evidence=tmp_path) as session:
        settings = session.settings(config)
        assert session.isolation(settings) == "test"
        machine = session.machine(settings, name="first")
        assert "cannot be saved" in caplog.text
        assert session.isolation(settings) == "session"
        assert session.machine(settings, name="second", user=User(test="second")) is machine


CONFTEST = """
from pathlib import Path

import pytest

from kboot import Config, open_session
from kboot.testing import FakeBackend, write_kernel


class Saving(FakeBackend):
    def snapshot_fault(self, spec):
        return "QEMU cannot save the NVMe disk d" if spec.memory_mib == 1024 else None

    def snapshot_identity(self, spec):
        return {}


@pytest.fixture(scope="session")
def kboot_session(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = Config(kernel=str(write_kernel(folder / "vmlinuz", "6.99.1")), memory_mib=1024)
    with open_session(config, evidence=folder / "e", backend=Saving()) as session:
        yield session
"""


def test_a_machine_that_cannot_be_saved_is_told_at_the_end_of_the_run(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeini("[pytest]\n")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.kboot(memory="1G")
        def test_one(machine): pass

        @pytest.mark.kboot(memory="1G")
        def test_two(guest): pass

        @pytest.mark.kboot(memory="1G", isolation="none")
        def test_that_does_not_ask_for_a_pristine_one(machine): pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "*kboot: machines that are not saved, but boot*",
            "QEMU cannot save the NVMe disk d (of 2 tests)",
        ]
    )
