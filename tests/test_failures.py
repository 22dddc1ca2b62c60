"""What goes wrong ends in the right class, soon, with one clear line, and leaves nothing behind.

Real boots of a real kernel; each case is a user's, or a host's, bad day.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kboot import state
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import GuestError, GuestTimeout, InfraError, KernelCrash
from kboot.kernel import Kernel, read_kernel
from kboot.machine import (
    Machine,
    MachineSettings,
    Milestone,
    Phase,
    open_backend,
    phases,
    power_on,
)
from kboot.machine_spec import MachineSpec
from kboot.rootfs import overlay_initramfs, tiny_initramfs
from tests.saved_machines import open_place

KBOOT = [sys.executable, "-m", "kboot"]

#: Where the firmware is not what goes wrong.
SAVED = ("--accel=tcg", "--firmware-start=saved")
PYTEST_SAVED = tuple(word.replace("--", "--kboot-") for word in SAVED)


def pytest_on(kernel: Path, *arguments: str) -> list[str]:
    """The command that runs test_it.py on a kernel."""
    return [sys.executable, "-m", "pytest", *arguments, f"--kernel={kernel}", "test_it.py"]


@pytest.fixture(scope="session")
def real_kernel(quick_kernel: Path) -> Kernel:
    return read_kernel(quick_kernel)


def _processes() -> set[int]:
    """The processes, alive, that were started on behalf of a run below our runs directory."""
    ours = f"{state.RUN_VARIABLE}={state.runs_directory()}/".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and ours in (entry / "environ").read_bytes():
                found.add(int(entry.name))
    return found


@pytest.fixture(autouse=True)
def nothing_left(runs_apart: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """At the end of each test, whatever went wrong in it."""
    # The evidence of these boots is nobody's to keep.
    monkeypatch.setenv("XDG_STATE_HOME", str(runs_apart / "state"))
    yield
    assert _processes() == set()
    assert list(state.runs_directory().iterdir()) == []


# ----------------------------------------------------------------- the user's: exit code 2, at once


#: Root may read everything, unless it gives that up.
_WITHOUT_PRIVILEGE = (
    ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--")
    if os.geteuid() == 0
    else ()
)


def kboot(
    *arguments: str | Path, path: str | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    environ = dict(os.environ)
    if path is not None:
        environ["PATH"] = path
    return subprocess.run(
        [*prefix, *KBOOT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environ,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """What it said on stderr: one line, or the test fails."""
    (line,) = [each for each in done.stderr.splitlines() if not each.startswith("kboot: KVM")]
    return line


def test_a_missing_kernel(tmp_path: Path) -> None:
    done = kboot("boot", tmp_path / "vmlinuz")
    assert done.returncode == 2
    assert f"{tmp_path}/vmlinuz" in the_error(done)


def test_a_file_that_is_no_kernel(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_text("#!/bin/sh\necho hello\n")
    done = kboot("boot", tmp_path / "vmlinuz")
    assert done.returncode == 2
    assert "vmlinuz" in the_error(done)


def test_a_truncated_kernel(tmp_path: Path, real_kernel: Kernel) -> None:
    (tmp_path / "vmlinuz").write_bytes(real_kernel.image.read_bytes()[:5_000_000])
    done = kboot("boot", tmp_path / "vmlinuz")
    assert done.returncode == 2
    assert "truncated" in the_error(done)


def test_a_kernel_for_another_architecture(tmp_path: Path, real_kernel: Kernel) -> None:
    image = bytearray(real_kernel.image.read_bytes())
    # XLF_KERNEL_64, that it has a 64-bit entry: Documentation/arch/x86/boot.rst.
    image[0x236] &= ~1
    (tmp_path / "vmlinuz").write_bytes(image)
    done = kboot("boot", tmp_path / "vmlinuz")
    assert done.returncode == 2
    assert "vmlinuz: a kernel for i686: kboot has no machine for i686; it has: " in the_error(done)


def arm64_image(*, flags: int = 0xA) -> bytes:
    """The header of an arm64 Image, and a version: Documentation/arch/arm64/booting.rst."""
    header = struct.pack("<IIQQQQQQ4sI", 0, 0, 0, 1 << 20, flags, 0, 0, 0, b"ARM\x64", 0)
    banner = b"Linux version 6.6.0 (a@b) (gcc) #1 SMP\n\0"
    return (header + banner).ljust(1 << 20, b"\0")


@pytest.mark.parametrize(
    ("image", "arguments", "words"),
    [
        (
            arm64_image(),
            (),
            "without an EFI stub, which UEFI cannot start; build it with CONFIG_EFI",
        ),
        (arm64_image(), ("--firmware", "bios"), "for aarch64, whose machines have no BIOS"),
        (arm64_image(flags=0xB), (), "a big-endian kernel for aarch64"),
        (bytes(0x24) + b"\x18\x28\x6f\x01".ljust(1000, b"\0"), (), "no machine for 32-bit arm"),
    ],
    ids=["no stub", "bios", "big-endian", "32-bit"],
)
def test_an_arm_kernel_that_no_machine_starts(
    tmp_path: Path, image: bytes, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "Image").write_bytes(image)
    done = kboot("boot", tmp_path / "Image", *arguments)
    assert done.returncode == 2
    assert words in the_error(done)


def test_a_directory_without_a_kernel(tmp_path: Path) -> None:
    done = kboot("boot", tmp_path)
    assert done.returncode == 2
    assert str(tmp_path) in the_error(done)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "an empty file"),
        (b"#!/bin/sh\n", "a script"),
        (b"hello\n", "text"),
    ],
)
def test_an_initrd_that_is_none_is_refused_before_anything_starts(
    content: bytes | None, words: str, tmp_path: Path, quick_kernel: Path
) -> None:
    image = tmp_path / "extra.cpio"
    if content is not None:
        image.write_bytes(content)
    done = kboot("boot", "--initrd", image, quick_kernel)
    assert done.returncode == 2
    assert f"initrd {image}: " in the_error(done)
    assert words in the_error(done)
    assert "scheduled" not in done.stdout


def test_no_room_for_the_evidence_is_the_hosts_fault_with_its_place(
    tmp_path: Path, quick_kernel: Path
) -> None:
    (tmp_path / "boot.ipxe").symlink_to("/dev/full")
    done = kboot("boot", *SAVED, f"--evidence={tmp_path}", quick_kernel)
    assert done.returncode == 3
    assert re.search(f"{tmp_path}.*: No space left on device; make room there", the_error(done))


def test_no_room_for_the_console_leaves_the_boot_alone_and_is_told(
    tmp_path: Path, quick_kernel: Path
) -> None:
    (tmp_path / "serial.log").symlink_to("/dev/full")
    done = kboot("boot", *SAVED, f"--evidence={tmp_path}", quick_kernel)
    assert done.returncode == 0
    assert re.search(rf"{tmp_path}/serial.log: bytes 0 to \d+ are missing: disk full", done.stderr)


def test_no_room_for_a_run_is_the_hosts_fault_with_its_place() -> None:
    program = (
        "import resource\n"
        "from kboot import Config, open_backend\n"
        "from kboot.deadline import Deadline\n"
        "from kboot.errors import InfraError\n"
        "with open_backend(Config(accel='tcg')) as backend:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
        "    try: backend.serve(Deadline(20)).__enter__()\n"
        "    except InfraError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert re.fullmatch(
        f"{state.runs_directory()}/run-[^/]*: File too large; make room there\n", done.stdout
    )


def test_an_unreadable_directory(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir(mode=0o000)
    done = kboot("boot", secret / "vmlinuz", prefix=_WITHOUT_PRIVILEGE)
    assert done.returncode == 2
    assert str(secret / "vmlinuz") in the_error(done)
    assert "ermission" in the_error(done)


def test_a_root_file_system_that_may_not_be_read(tmp_path: Path, real_kernel: Kernel) -> None:
    secret, closed = tmp_path / "secret.img", tmp_path / "closed"
    secret.write_bytes(bytes(4096))
    secret.chmod(0o000)
    closed.mkdir(mode=0o000)
    for words, culprit in (
        (("--rootfs", secret), f"rootfs {secret}: {secret}"),
        (("--initrd", closed / "x"), f"initrd {closed}/x: {closed}/x"),
    ):
        done = kboot("boot", real_kernel.image, *words, prefix=_WITHOUT_PRIVILEGE)
        assert done.returncode == 2
        assert f"{culprit}: permission denied; make it readable for who" in the_error(done)


def test_evidence_that_cannot_be_kept(tmp_path: Path, real_kernel: Kernel) -> None:
    (tmp_path / "file").write_text("in the way")
    done = kboot("boot", real_kernel.image, "--evidence", tmp_path / "file/evidence")
    assert done.returncode == 2
    assert "evidence" in the_error(done)


def test_a_pattern_that_is_none(real_kernel: Kernel) -> None:
    done = kboot("boot", real_kernel.image, "--expect", "(")
    assert done.returncode == 2
    assert "'('" in the_error(done)


# -------------------------------------------------------------------------- the host's: exit code 3


@pytest.fixture
def only(tmp_path: Path) -> Callable[..., str]:
    """A PATH with these programs and no others."""

    def path(*programs: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir()
        for program in programs:
            (folder / program).symlink_to(f"/usr/bin/{program}")
        return str(folder)

    return path


def test_no_qemu(real_kernel: Kernel, only: Callable[..., str]) -> None:
    done = kboot("boot", real_kernel.image, path=only("setpriv", "busybox"))
    assert done.returncode == 3
    assert "apt-get install qemu-system-x86" in the_error(done)


def test_no_nginx(real_kernel: Kernel) -> None:
    done = kboot("boot", real_kernel.image, "--nginx", "no-such-nginx")
    assert done.returncode == 3
    assert "no-such-nginx not found" in the_error(done)


def test_a_qemu_that_refuses_its_arguments(real_kernel: Kernel) -> None:
    done = kboot("boot", real_kernel.image, "--qemu-arguments", "-device no-such-device")
    assert done.returncode == 3
    assert "no-such-device" in the_error(done)


def test_under_git_bisect_bad_input_and_a_broken_host_are_to_be_skipped(tmp_path: Path) -> None:
    assert kboot("boot", "--git-bisect", tmp_path / "vmlinuz").returncode == 125


# --------------------------------------------------------------------------- in the midst of a boot


@pytest.fixture
def settings() -> MachineSettings:
    return MachineSettings(spec=MachineSpec(firmware_start="saved"), initrds=(tiny_initramfs(),))


Starter = Callable[..., contextlib.AbstractContextManager[Machine]]


@pytest.fixture
def start(real_kernel: Kernel, tmp_path: Path) -> Starter:
    """Switch a machine on; `at` maps phases to what is done to the boot when they are reached."""

    @contextlib.contextmanager
    def power(
        settings: MachineSettings, at: dict[Phase, Callable[[Machine], None]] | None = None
    ) -> Iterator[Machine]:
        machines: list[Machine] = []

        def on_phase(milestone: Milestone, _seconds: float) -> None:
            if at and milestone.phase in at:
                at.pop(milestone.phase)(machines[0])

        with (
            open_backend(Config(accel="tcg")) as backend,
            backend.serve(Deadline(60)) as server,
            power_on(
                backend,
                server,
                real_kernel,
                settings,
                evidence_directory=tmp_path / "evidence",
                on_phase=on_phase,
            ) as machine,
        ):
            machines.append(machine)
            yield machine

    return power


def test_qemu_killed_in_mid_boot(start: Starter, settings: MachineSettings) -> None:
    def kill(machine: Machine) -> None:
        os.kill(machine.vm.pid, signal.SIGKILL)  # type: ignore[attr-defined]

    with (
        start(settings, {Phase.SCRIPT: kill}) as machine,
        pytest.raises(InfraError, match="QEMU was killed by signal 9"),
    ):
        machine.wait_until_ready()
    # Sooner than a guest would be blamed for saying nothing.
    assert not machine.boot.overdue(time.monotonic())


def test_nginx_killed_in_mid_boot(start: Starter) -> None:
    through_its_firmware = MachineSettings(initrds=(tiny_initramfs(),))

    def kill(machine: Machine) -> None:
        os.kill(machine.server.pid, signal.SIGKILL)  # type: ignore[attr-defined]

    with (
        start(through_its_firmware, {Phase.FIRMWARE: kill}) as machine,
        pytest.raises(InfraError, match="nginx was killed by signal 9"),
    ):
        machine.wait_until_ready()
    # Sooner than a guest would be blamed for saying nothing.
    assert not machine.boot.overdue(time.monotonic())


def test_an_initramfs_that_is_gone_from_the_server(
    start: Starter, settings: MachineSettings
) -> None:
    def remove(machine: Machine) -> None:
        (name,) = machine.boot.expected.initrd_paths
        (machine.server.prefix / "files" / name).unlink()  # type: ignore[attr-defined]

    with (
        start(settings, {Phase.SCHEDULED: remove}) as machine,
        pytest.raises(InfraError, match=r"the boot server has no initrd tiny.*\(404\)"),
    ):
        machine.wait_until_ready()


def test_a_kernel_without_a_root_file_system(start: Starter, settings: MachineSettings) -> None:
    bare = dataclasses.replace(settings, initrds=())
    with start(bare) as machine, pytest.raises(KernelCrash) as caught:
        machine.wait_until_ready()
    assert caught.value.report.kind == "no-root"
    assert caught.value.report.fatal


def test_an_init_that_exits_is_told_with_what_kboots_own_says_last(
    start: Starter, settings: MachineSettings
) -> None:
    says = b"mount -t devtmpfs dev /dev\necho 'kboot: nothing to go on with' > /dev/kmsg\n"
    short = overlay_initramfs({"init": b"#!/bin/sh\n" + says + b"exit 3\n"})
    with (
        start(dataclasses.replace(settings, initrds=(*settings.initrds, short))) as machine,
        pytest.raises(KernelCrash) as caught,
    ):
        machine.wait_until_ready()
    assert caught.value.report.kind == "init-killed"
    assert str(caught.value).startswith("nothing to go on with; panic: attempted to kill init")


def test_a_kernel_that_is_silent_on_the_serial_line(
    start: Starter, settings: MachineSettings
) -> None:
    silent = dataclasses.replace(settings, command_line="console=tty0")
    with (
        start(silent) as machine,
        pytest.raises(GuestError, match=r"no console=ttyS0 \(it has only console=tty0\)"),
    ):
        machine.wait_until_ready()


def test_a_kernel_that_stays_silent_is_given_up_soon(
    start: Starter, settings: MachineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real kernel that cannot be heard is not waited for longer than the test needs.
    monkeypatch.setattr(phases, "BUDGETS_S", {**phases.BUDGETS_S, Phase.LINUX: 3})
    mute = overlay_initramfs({"init": b"#!/bin/sh\nexec sleep 1000\n"})
    silent = dataclasses.replace(
        settings, command_line="console=ttyS1", initrds=(*settings.initrds, mute)
    )
    with (
        start(silent) as machine,
        pytest.raises(
            GuestTimeout,
            match=r"printed nothing in \d+ s; its console is ttyS1, another line than ttyS0",
        ),
    ):
        machine.wait_until_ready()


@pytest.fixture
def ready(
    debian_kernel: Path, settings: MachineSettings, tmp_path: Path, saved_machines: Path
) -> Iterator[Machine]:
    """A machine that goes on from one that was booted for these tests. It has /dev/port."""
    with open_place(debian_kernel, tmp_path, store=saved_machines) as place:
        place.save_once(settings)
        with place.restored(settings, "ready") as machine:
            yield machine


def test_a_machine_that_resets_without_a_word(ready: Machine) -> None:
    # As by a triple fault, which tests/zoo provokes for real: the keyboard controller's reset line.
    with pytest.raises(KernelCrash) as caught:
        ready.guest.run(r"printf '\376' | dd of=/dev/port bs=1 seek=100; sleep 60")
    assert caught.value.report.kind == "unexpected-reset"


def test_a_guest_that_switches_itself_off(ready: Machine) -> None:
    with pytest.raises(GuestError, match="switched the machine off"):
        ready.guest.run("poweroff -f; sleep 60")


# ------------------------------------------------------------------------- Ctrl-C, SIGTERM, SIGKILL


#: A shell starts what it puts in the background with Ctrl-C ignored, and so do its descendants.
_HEARS_SIGNALS = ("env", "--default-signal=INT,TERM")


@contextlib.contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*_HEARS_SIGNALS, *KBOOT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def wait_for_phase(child: subprocess.Popen[str], phase: str) -> None:
    assert child.stdout
    for line in child.stdout:
        if line.split()[:1] == [phase]:
            return
    pytest.fail(f"it ended before {phase}")


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_a_signal_during_the_boot(
    real_kernel: Kernel, number: signal.Signals, exit_code: int
) -> None:
    with running("boot", real_kernel.image) as child:
        wait_for_phase(child, "firmware")
        child.send_signal(number)
        output, _ = child.communicate(timeout=20)
    assert child.returncode == exit_code
    assert "Traceback" not in output


def test_ctrl_c_of_pytest_during_the_boot(quick_kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(machine):\n    pass\n")
    with subprocess.Popen(
        [*_HEARS_SIGNALS, *pytest_on(quick_kernel)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        for _ in Deadline(30).poll(0.05):
            if len(_processes()) >= 2:  # nginx and QEMU
                break
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=20)
    assert child.returncode == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in output


IT_IS_UP = """
import time

def test_it(machine):
    print("it is", "up", flush=True)
    time.sleep(60)
"""


def wait_until_it_is_up(child: subprocess.Popen[str]) -> None:
    assert child.stdout
    said = []
    for line in child.stdout:
        said.append(line)
        if "it is up" in line:
            return
    pytest.fail("".join(said))


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_sigterm_of_pytest_ends_it_in_good_order(
    quick_kernel: Path, tmp_path: Path, runs_apart: Path, workers: tuple[str, ...]
) -> None:
    """Every CI job that is cancelled gets one."""
    up = tmp_path / "up"
    (tmp_path / "test_it.py").write_text(
        f"import pathlib, time\n\ndef test_it(machine):\n"
        f"    pathlib.Path({str(up)!r}).touch()\n    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [*_HEARS_SIGNALS, *pytest_on(quick_kernel, *workers, *PYTEST_SAVED)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        for _ in Deadline(120).poll(0.05):
            if up.exists():
                break
        child.send_signal(signal.SIGTERM)
        # The workers' tests are not waited for.
        output, _ = child.communicate(timeout=120)
    assert child.returncode == 128 + signal.SIGTERM, output
    assert "ended by SIGTERM" in output
    assert list((runs_apart / "kboot").iterdir()) == []
    assert _processes() == set()


def test_sigterm_of_kboot_test_ends_it_in_good_order(
    quick_kernel: Path, tmp_path: Path, runs_apart: Path
) -> None:
    (tmp_path / "test_it.py").write_text(IT_IS_UP)
    with running("test", *SAVED, quick_kernel, "--", "-s", "-k", "test_it", tmp_path) as child:
        wait_until_it_is_up(child)
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=20)
    assert child.returncode == 128 + signal.SIGTERM, output
    assert list((runs_apart / "kboot").iterdir()) == []


def test_sigkill_of_pytest_leaves_no_process_and_the_next_run_sweeps(
    quick_kernel: Path, tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(IT_IS_UP)
    with subprocess.Popen(
        pytest_on(quick_kernel, "-s", *PYTEST_SAVED),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        wait_until_it_is_up(child)
        ours = _processes()
        assert len(ours) >= 2  # QEMU and nginx
        child.kill()
    for _ in Deadline(5).poll(0.05):
        if not _processes() & ours:
            break
    else:
        pytest.fail(f"still running: {_processes() & ours}")
    assert len(state.stale_runs()) == 1
    assert len(state.sweep()) == 1
