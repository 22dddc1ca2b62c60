"""Real crashes of a real kernel: what the console showed is read right, and the machine returns.

With ``ZOO_RECORD`` in the environment, what each crash printed is written to tests/data/zoo.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import RebootLoop
from kboot.kernel import Kernel, read_kernel
from kboot.machine import ExpectedCrash, Machine, MachineSettings, open_backend, power_on
from kboot.machine_spec import MachineSpec
from kboot.rootfs import module_initramfs, tiny_initramfs
from tests.zoo.records import EXPECTED, LOGS
from tests.zoo.zoo import KERNEL, Zoo


@dataclass(frozen=True, slots=True, kw_only=True)
class Animal:
    """A crash, how it is provoked, and how it must be read."""

    name: str
    kind: str
    #: The guilty function, if it is not zoo_<name>.
    function: str | None = ""
    #: Run in the guest first.
    before: str = ":"

    @property
    def guilty(self) -> str | None:
        return f"zoo_{self.name}" if self.function == "" else self.function


def sysctl(name: str, value: int) -> str:
    return f"echo {value} > /proc/sys/{name}"


def stall(name: str, value: int) -> str:
    return f"echo {value} > /sys/module/rcupdate/parameters/rcu_cpu_stall_{name}"


#: After these the kernel goes on. The hung task comes first: after an oops nobody looks for any.
SURVIVED = (
    Animal(name="hung_task", kind="hung-task", before=sysctl("kernel/hung_task_timeout_secs", 1)),
    Animal(name="warn", kind="warning", before=sysctl("kernel/hung_task_timeout_secs", 0)),
    Animal(name="warn_text", kind="warning"),
    Animal(name="refcount", kind="refcount"),
    Animal(name="null", kind="null-dereference"),
    Animal(name="call_null", kind="null-dereference"),
    Animal(name="bad_address", kind="page-fault"),
    Animal(name="non_canonical", kind="general-protection"),
    Animal(name="bug", kind="bug"),
    Animal(name="list", kind="data-corruption"),
    Animal(name="usercopy", kind="usercopy"),
    Animal(name="divide", kind="divide-error"),
    Animal(name="invalid_opcode", kind="invalid-opcode"),
    Animal(name="atomic_sleep", kind="atomic-sleep"),
    Animal(
        name="soft_lockup",
        kind="soft-lockup",
        function="visit",
        before=f"{stall('suppress', 1)}; {sysctl('kernel/watchdog_thresh', 1)}",
    ),
    Animal(
        name="rcu_stall",
        kind="rcu-stall",
        function="visit",
        before=f"{sysctl('kernel/watchdog_thresh', 60)}; {stall('suppress', 0)}; "
        + stall("timeout", 3),
    ),
)

#: Of these it dies.
DEADLY = (
    Animal(name="stack_overflow", kind="stack-overflow"),
    Animal(name="stack_corruption", kind="stack-corruption"),
    Animal(
        name="exhaust_memory",
        kind="oom-panic",
        function="out_of_memory",
        before=sysctl("vm/panic_on_oom", 1),
    ),
    Animal(name="triple_fault", kind="unexpected-reset", function=None),
)


def names(animals: tuple[Animal, ...]) -> list[str]:
    return [animal.name for animal in animals]


@pytest.mark.parametrize("animal", SURVIVED, ids=names(SURVIVED))
def test_a_crash_that_the_kernel_survives(zoo: Zoo, animal: Animal) -> None:
    machine = zoo.open()
    start = machine.console.mark()
    with machine.expect_crash(animal.kind) as crash:
        zoo.meet(animal.name, before=animal.before)
    record(machine, animal.name, crash, start)
    report = crash.report
    assert (report.kind, report.function) == (animal.kind, animal.guilty)
    assert (crash.fatal, report.truncated) == (False, False)
    # A stall is the machine's: its first line names no task.
    assert report.task == ("sh" if animal.kind != "rcu-stall" else None)
    # It is as alive as before, and nobody has to answer for what was expected.
    assert machine.guest.succeed("echo alive") == "alive\n"
    machine.check_reports()


@pytest.mark.parametrize("animal", DEADLY, ids=names(DEADLY))
def test_a_crash_that_the_machine_recovers_from(zoo: Zoo, animal: Animal) -> None:
    machine = zoo.open()
    start = machine.console.mark()
    with machine.expect_crash(animal.kind) as crash:
        zoo.meet(animal.name, before=animal.before)
    comes_back(machine)
    record(machine, animal.name, crash, start)
    assert (crash.report.kind, crash.report.function) == (animal.kind, animal.guilty)
    assert crash.fatal


def test_an_oops_that_escalates_is_expected_by_its_kind(zoo: Zoo) -> None:
    machine = zoo.open()
    start = machine.console.mark()
    with machine.expect_crash("null-dereference", match="zoo_null") as crash:
        zoo.meet("null", before=sysctl("kernel/panic_on_oops", 1))
    comes_back(machine)
    record(machine, "null_panic", crash, start)
    assert crash.report.function == "zoo_null"
    assert crash.fatal
    assert crash.reports[-1].caused_by is crash.report


def test_an_oops_that_escalates_is_expected_as_a_panic(zoo: Zoo) -> None:
    machine = zoo.open()
    start = machine.console.mark()
    with machine.expect_crash("panic") as crash:
        zoo.meet("warn", before=sysctl("kernel/panic_on_warn", 1))
    comes_back(machine)
    record(machine, "warn_panic", crash, start)
    machine.check_reports()


def test_a_panic_by_sysrq(zoo: Zoo) -> None:
    machine = zoo.open()
    start = machine.console.mark()
    with machine.expect_crash("panic", match="sysrq triggered crash") as crash:
        machine.panic()
    comes_back(machine)
    record(machine, "sysrq", crash, start)
    assert crash.report.title == "panic: sysrq triggered crash"
    assert crash.fatal


def test_a_watchdog_that_nobody_feeds(debian_kernel: Path, tmp_path: Path) -> None:
    # Debian's kernel for clouds has no driver of a watchdog in hardware.
    kernel = read_kernel(debian_kernel)
    settings = MachineSettings(
        spec=MachineSpec(
            name="watchdog",
            firmware_start="saved",
            extra_arguments=("-device", "i6300esb"),
        ),
        initrds=(tiny_initramfs(), module_initramfs(kernel, ["i6300esb"])),
    )
    with on(kernel, settings, tmp_path) as machine:
        machine.wait_until_ready()
        start = machine.console.mark()
        with machine.expect_crash("unexpected-reset") as crash:
            # Three seconds of patience, and no food for an hour.
            machine.guest.succeed("watchdog -T 3 -t 3600 /dev/watchdog")
        comes_back(machine)
        record(machine, "watchdog", crash, start)
    assert crash.report.function is None
    assert crash.fatal


def test_a_corrupt_initramfs(tmp_path: Path) -> None:
    kernel = read_kernel(KERNEL)
    image = tiny_initramfs().read_bytes()
    corrupt = tmp_path / "corrupt.cpio.gz"
    corrupt.write_bytes(image[:64] + bytes(1000) + image[1064:])
    settings = MachineSettings(spec=MachineSpec(firmware_start="saved"), initrds=(corrupt,))
    with on(kernel, settings, tmp_path) as machine:
        with machine.expect_crash("panic") as crash:
            machine.wait_until_ready()
        record(machine, "corrupt_initramfs", crash, 0)
        assert (crash.report.kind, crash.report.fatal) == ("no-root", True)
        machine.wait_for_line("Initramfs unpacking failed", timeout=1)
        # It will not do better the next time, however often it tries.
        with pytest.raises(RebootLoop, match="unable to mount root fs"):
            machine.wait_for_reboot()


@contextlib.contextmanager
def on(kernel: Kernel, settings: MachineSettings, folder: Path) -> Iterator[Machine]:
    """Such a machine, on its way up."""
    with (
        open_backend(Config(accel="tcg")) as backend,
        backend.serve(Deadline(60)) as server,
        power_on(
            backend, server, kernel, settings, evidence_directory=folder / "evidence"
        ) as machine,
    ):
        yield machine


def comes_back(machine: Machine) -> None:
    """The machine returns by itself, and nothing is left to complain about."""
    before = machine.boot_id
    machine.wait_for_reboot()
    assert machine.boot_id != before
    assert machine.guest.succeed("echo back") == "back\n"


def record(machine: Machine, name: str, crash: ExpectedCrash, start: int) -> None:
    """If asked to, keep what the machine printed since `start`, and how it was read."""
    if "ZOO_RECORD" not in os.environ:
        return
    report = crash.report
    if report.kind == "unexpected-reset":
        # Which only who saw the boot before it can tell.
        start = machine.console.raw(0, start).rindex(b"Linux version ")
    end = max(each.end_offset for each in crash.reports)
    LOGS.mkdir(exist_ok=True)
    (LOGS / f"{name}.log").write_bytes(machine.console.raw(start, end))
    known = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    known[name] = [
        {"kind": each.kind, "function": each.function, "title": each.title, "fatal": each.fatal}
        for each in crash.reports
    ]
    EXPECTED.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
