"""A recorded boot that is replayed: what kboot sees of it, and how users test their tests."""

from __future__ import annotations

import contextlib
import hashlib
import re
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.errors import (
    ConfigError,
    GuestTimeout,
    HungAfterPanic,
    InfraError,
    KbootError,
    KernelCrash,
    WrongCrash,
    WrongKernel,
)
from kboot.machine import Machine, phases
from kboot.machine.phases import Phase
from kboot.session import Session, open_session
from kboot.testing import RECORDED_BOOT, FakeBackend, GuestAction, Recording, Script, write_kernel
from kboot.testing.backend import FakeVirtualMachine

DOCS = Path(__file__).parent.parent / "docs"


@contextlib.contextmanager
def session_on(
    directory: Path, backend: FakeBackend, *, release: str = "6.99.1-mine", cmdline: str = ""
) -> Iterator[Session]:
    kernel = write_kernel(directory / "vmlinuz", release)
    config = Config(kernel=str(kernel), cmdline=cmdline, isolation="none")
    with open_session(config, evidence=directory / "evidence", backend=backend) as session:
        yield session


@contextlib.contextmanager
def machine_on(
    directory: Path,
    *,
    commands: Script | None = None,
    recording: Path = RECORDED_BOOT,
    cmdline: str = "",
) -> Iterator[Machine]:
    backend = FakeBackend(recording, commands=commands)
    with session_on(directory, backend, cmdline=cmdline) as session:
        yield session.machine(session.settings(session.config), name="replayed")


def recording_without_login(directory: Path) -> Path:
    """The recorded boot, as if the kernel had died before it started init."""
    copy = directory / "recording"
    copy.mkdir()
    for name in ("boot.ipxe", "access.jsonl"):
        (copy / name).write_bytes((RECORDED_BOOT / name).read_bytes())
    console = (RECORDED_BOOT / "serial.log").read_bytes()
    booting = console[: console.index(b"Run /init as init process")]
    (copy / "serial.log").write_bytes(booting + b"\r\n" + Recording(RECORDED_BOOT).crash)
    return copy


def test_a_replayed_boot_has_every_phase_from_its_witness(tmp_path: Path) -> None:
    with machine_on(tmp_path) as machine:
        witnesses = {phase: each.witness for phase, each in machine.boot.reached.items()}
    assert set(witnesses) == set(Phase)
    server = {Phase.SCRIPT, Phase.KERNEL, Phase.INITRD, Phase.HANDOFF}
    assert {phase for phase, witness in witnesses.items() if witness == "server"} == server


def test_identity_is_that_of_the_kernel_under_test(tmp_path: Path) -> None:
    with machine_on(tmp_path, cmdline="quirk=1") as machine:
        assert machine.guest.succeed("uname -r") == "6.99.1-mine\n"
        line = machine.guest.succeed("cat /proc/cmdline")
        console = machine.console.raw(0).decode(errors="replace")
    assert f"kboot.nonce={machine.boot.expected.nonce}" in line.split()
    assert "quirk=1" in line.split()
    assert f"Command line: {line.strip()}" in console
    assert "Linux version 6.99.1-mine " in console


def test_a_recording_of_another_kernel_is_a_wrong_kernel(tmp_path: Path) -> None:
    with session_on(tmp_path, FakeBackend()) as session:
        # As if the file had been replaced after it was read.
        other = replace(session.kernel, release="5.5.5")
        session.__dict__["kernel"] = other
        with pytest.raises(WrongKernel, match=re.escape("Linux 6.99.1-mine came up")):
            session.machine(session.settings(session.config), name="other")


def test_commands_have_the_status_and_the_output_that_they_were_given(tmp_path: Path) -> None:
    def answer(command: str) -> str | tuple[int, str] | None:
        if command.startswith("cat /sys/"):
            return f"{command.rpartition('/')[2]}\n"
        return (3, "no such device") if command == "fail" else None

    with machine_on(tmp_path, commands=answer) as machine:
        assert machine.guest.succeed("cat /sys/kernel/mm") == "mm\n"
        failed = machine.guest.run("fail")
        assert (failed.exit_status, failed.stdout, failed.stderr) == (3, "", "no such device")
        unknown = machine.guest.run("lspci")
        assert unknown.exit_status == 127
        assert "not in the script" in unknown.stderr


def test_outputs_and_commands_may_be_long(tmp_path: Path) -> None:
    lines = "".join(f"line {number}\n" for number in range(20_000))
    long_command = f"echo '{'x' * 5000}'"
    with machine_on(tmp_path, commands={"seq": lines, long_command: "long\n"}) as machine:
        assert machine.guest.succeed("seq") == lines
        assert machine.guest.succeed(long_command) == "long\n"
        background = machine.guest.spawn("seq")
        assert background.wait(timeout=10).stdout == lines


def test_files_come_back_as_they_were_put(tmp_path: Path) -> None:
    content = b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(2000))
    (tmp_path / "there").write_bytes(content)
    with machine_on(tmp_path) as machine:
        machine.guest.put(tmp_path / "there", "/root/a file", timeout=10)
        machine.guest.get("/root/a file", tmp_path / "back", timeout=10)
    assert (tmp_path / "back").read_bytes() == content


@pytest.mark.parametrize("way", ["reboot", "reset", "restart"])
def test_it_boots_again_in_each_way(tmp_path: Path, way: str) -> None:
    with machine_on(tmp_path) as machine:
        getattr(machine, way)()
        assert len(set(machine.boot_ids)) == len(machine.boots) == 2
        assert machine.guest.succeed("uname -r") == "6.99.1-mine\n"
        scripts = [each for each in machine.fetches if each.path.startswith("scripts/")]
        assert len(scripts) == 2
        # What the first boot has fetched does not vouch for the second.
        first, second = (boot.expected for boot in machine.boots)
        assert first.nonce != second.nonce
        kernels = [each for each in machine.fetches if each.path == first.kernel_path]
        assert [each.query for each in kernels] == [first.query, second.query]


def test_it_panics_as_recorded_and_comes_back(tmp_path: Path) -> None:
    with machine_on(tmp_path) as machine:
        with machine.expect_crash("panic", match="sysrq triggered") as crash:
            machine.panic()
        machine.wait_for_reboot()
        assert crash.report.fatal
        assert len(machine.boots) == 2


def test_a_panic_nobody_expected_fails(tmp_path: Path) -> None:
    with machine_on(tmp_path) as machine:
        machine.panic()
        with pytest.raises(KernelCrash, match="sysrq triggered crash"):
            machine.check_reports()


def test_a_command_of_the_script_can_kill_the_kernel(tmp_path: Path) -> None:
    commands = {"insmod bad.ko": GuestAction.PANIC}
    with (
        machine_on(tmp_path, commands=commands) as machine,
        pytest.raises(WrongCrash, match="expected a crash of kind warning"),
        machine.expect_crash("warning"),
    ):
        machine.guest.run("insmod bad.ko")


def test_with_panic_0_it_stays_dead(tmp_path: Path) -> None:
    with machine_on(tmp_path, cmdline="panic=0") as machine:
        with machine.expect_crash("panic"):
            machine.panic()
        with pytest.raises(HungAfterPanic, match="panic=0"):
            machine.wait_for_reboot(timeout=0.2)


def test_a_command_can_hang_and_is_killed(tmp_path: Path) -> None:
    with machine_on(tmp_path, commands={"dd": GuestAction.HANG}) as machine:
        with pytest.raises(GuestTimeout, match=r"'dd' did not end in 0\.1 s"):
            machine.guest.run("dd", timeout=0.1)
        assert machine.guest.succeed("true") == ""


def test_a_boot_that_was_recorded_to_crash_crashes_again(tmp_path: Path) -> None:
    recording = recording_without_login(tmp_path)
    with (
        pytest.raises(KernelCrash, match="sysrq triggered crash"),
        machine_on(tmp_path, recording=recording),
    ):
        pass


def recording_that_hangs(directory: Path) -> Path:
    """The recorded boot, as if the kernel had hung before it started init."""
    recording = recording_without_login(directory)
    log = recording / "serial.log"
    log.write_bytes(log.read_bytes().removesuffix(Recording(RECORDED_BOOT).crash))
    return recording


@pytest.mark.parametrize("is_starved", [False, True])
def test_a_phase_has_its_time_whatever_else_the_host_does(
    is_starved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "BUDGETS_S", dict.fromkeys(Phase, 0.3))
    overloaded = "this host is overloaded"
    monkeypatch.setattr(
        FakeVirtualMachine,
        "overload_fault",
        lambda _: overloaded,
        raising=False,
    )
    monkeypatch.setattr(FakeVirtualMachine, "speed_fault", lambda _: None, raising=False)
    # Either always, from its first moment on, or never.
    starved_s = time.monotonic if is_starved else float
    monkeypatch.setattr(FakeVirtualMachine, "starved_s", lambda _: starved_s(), raising=False)
    monkeypatch.setattr(FakeVirtualMachine, "silence_s", lambda _: None, raising=False)
    with session_on(tmp_path, FakeBackend(recording_that_hangs(tmp_path))) as session:
        settings = session.settings(session.config)
        with pytest.raises(KbootError) as caught:
            session.machine(settings, name="hung", timeout=1.5)
    error = caught.value
    assert isinstance(error, InfraError if is_starved else GuestTimeout)
    assert ("time limit (timeout 1.5 s)" in str(error)) == is_starved
    assert (overloaded in str(error)) == is_starved


@pytest.mark.parametrize("name", ["serial.log", "boot.ipxe", "access.jsonl"])
def test_a_recording_that_lacks_a_file_says_which(tmp_path: Path, name: str) -> None:
    recording = recording_without_login(tmp_path)
    (recording / name).unlink()
    with (
        pytest.raises(ConfigError, match=f"{re.escape(name)}: No such file.*evidence directory"),
        machine_on(tmp_path, recording=recording),
    ):
        pass


def test_one_run_leaves_evidence_as_a_real_one(tmp_path: Path) -> None:
    with machine_on(tmp_path) as machine:
        pass
    names = {path.name for path in machine.evidence_directory.iterdir()}
    assert {"serial.log", "access.jsonl", "boot.ipxe", "result.json"} <= names
    # It is a recording itself.
    again = tmp_path / "again"
    again.mkdir()
    with machine_on(again, recording=machine.evidence_directory) as replayed:
        assert replayed.boot.ready


def test_the_recording_that_comes_with_kboot_is_small() -> None:
    assert sum(path.stat().st_size for path in RECORDED_BOOT.iterdir()) < 40_000


def test_the_example_in_the_docs_works(pytester: pytest.Pytester) -> None:
    page = (DOCS / "testing.md").read_text(encoding="utf-8")
    section = page.partition("## Test your tests")[2].partition("\n## ")[0]
    conftest, tests = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]
    pytester.makeini("[pytest]\n")
    pytester.makeconftest(textwrap.dedent(conftest))
    pytester.makepyfile(textwrap.dedent(tests))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)
