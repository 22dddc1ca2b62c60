"""A kernel that comes up is ready, whatever its command line, its programs and its line print.

Real boots of a real kernel: the short form of the command lines that kernel developers use daily.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kboot.backend import Stream, VirtualMachine
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.kernel import Kernel, read_kernel
from kboot.machine import Machine, MachineSettings, Phase, open_backend, power_on
from kboot.machine_spec import MachineSpec
from kboot.rootfs import overlay_initramfs, tiny, tiny_initramfs

#: What programs have printed before a login prompt, and test suites do.
WORDS = (
    "Welcome to ACME Linux version 3.2",
    "Linux version 3.2.1 (root@acme) (gcc version 9) #1 SMP",
    "tdevd: Command line: x",
    "Kernel command line: kboot.nonce=0123456789abcdef",
    "SeaBIOS (version",
    "SeaBIOS (version 1.16.2-debian-1.16.2-1)",
    "U-Boot 2023.10 (Jan 01 2024 - 00:00:00 +0000)",
    "Decompressing Linux... Parsing ELF... done.",
    "Booting the kernel.",
    "kboot: script 0123456789abcdef",
    "kboot: stopped boot 0x2e008081",
    "[    0.000000] Linux version 5.10.0 (root@acme) (gcc version 9) #1 SMP",
    "No bootable device.",
    "waiting for user login: none",
)

Filter = Callable[[bytes], bytes]


class LossyStream:
    """A machine's serial line that loses what `lose` takes away, a whole line at a time."""

    def __init__(self, stream: Stream, lose: Filter) -> None:
        self._stream = stream
        self._lose = lose
        self._held = b""

    def recv(self, size: int, /) -> bytes:
        """Lines as they are completed; what is no line of a kernel's passes at once."""
        while data := self._stream.recv(size):
            *lines, rest = (self._held + data).split(b"\n")
            # A line of the kernel's is held until it is whole; a prompt is not, nor is what a shell
            # asks of its terminal (an escape sequence).
            is_line = b"[ " in rest or b"EDD" in rest or rest.endswith(b"[")
            self._held = rest if is_line else b""
            passed = b"".join(self._lose(line) + b"\n" for line in lines)
            if passed := passed + rest.removeprefix(self._held):
                return passed
        held, self._held = self._held, b""
        return held

    def sendall(self, data: bytes, /) -> None:
        """As it is."""
        self._stream.sendall(data)

    def close(self) -> None:
        """As it is."""
        self._stream.close()


class LossyMachine:
    """A machine with such a line; all else is the machine's."""

    def __init__(self, vm: VirtualMachine, lose: Filter) -> None:
        self._machine = vm
        self.stream = LossyStream(vm.stream, lose)

    def __getattr__(self, name: str) -> object:
        return getattr(self._machine, name)


class LossyBackend:
    """A backend with such machines."""

    def __init__(self, backend: object, lose: Filter) -> None:
        self._backend = backend
        self._lose = lose

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    @contextlib.contextmanager
    def power_on(self, spec: MachineSpec, deadline: Deadline) -> Iterator[LossyMachine]:
        """Switch a machine on."""
        with self._backend.power_on(spec, deadline) as vm:  # type: ignore[attr-defined]
            yield LossyMachine(vm, self._lose)


@pytest.fixture(scope="session")
def real_kernel(quick_kernel: Path) -> Kernel:
    return read_kernel(quick_kernel)


@pytest.fixture
def boots(real_kernel: Kernel, tmp_path: Path) -> Callable[..., Machine]:
    """Boot with a command line until it is ready; the boot, when it is over."""

    def machine(
        command_line: str,
        *images: Path,
        lose: Filter | None = None,
        kernel: Kernel = real_kernel,
    ) -> Machine:
        settings = MachineSettings(
            spec=MachineSpec(firmware_start="saved"),
            command_line=command_line,
            initrds=(tiny_initramfs(), *images),
        )
        with (
            open_backend(Config(accel="tcg")) as backend,
            backend.serve(Deadline(60)) as server,
            power_on(
                LossyBackend(backend, lose) if lose else backend,  # type: ignore[arg-type]
                server,
                kernel,
                settings,
                evidence_directory=tmp_path / "evidence",
            ) as machine,
        ):
            machine.wait_until_ready()
            assert machine.guest.succeed("uname -r").strip() == kernel.release
            machine.check_reports()
            return machine

    return machine


def chatty_init() -> Path:
    """The tiny system's first program, which says all those words before its login prompt."""
    text = (Path(tiny.__file__).parent / "tiny_files" / "init").read_text()
    words = "".join(f"echo '{line}'\n" for line in WORDS)
    changed = text.replace("exec /usr/sbin/init", f"{words}exec /usr/sbin/init")
    assert changed != text
    return overlay_initramfs({"init": changed.encode()})


def test_a_log_that_is_printed_twice_and_programs_that_quote_are_no_reset_and_no_other_kernel(
    boots: Callable[..., Machine], debian_kernel: Path
) -> None:
    # Debian 13's kernel for clouds does not print it twice.
    kernel = read_kernel(debian_kernel)
    machine = boots("earlyprintk=ttyS0,115200,keep", chatty_init(), kernel=kernel)
    assert machine.console.reports == ()
    text = machine.console.raw(0)
    assert text.count(f"Linux version {machine.kernel.release}".encode()) == 2
    assert all(words.encode() in text for words in WORDS)


def test_a_quiet_kernel_whose_programs_quote_is_ready(boots: Callable[..., Machine]) -> None:
    assert boots("quiet", chatty_init()).console.reports == ()


def test_a_kernel_that_prints_no_times_and_a_shell_as_first_program(
    boots: Callable[..., Machine],
) -> None:
    machine = boots("printk.time=0 rdinit=/bin/sh")
    assert {Phase.LINUX, Phase.INIT} <= machine.boot.reached.keys()
    assert machine.console.reports == ()


def test_lines_that_lost_characters_are_proven_from_inside(boots: Callable[..., Machine]) -> None:
    lost: list[bytes] = []

    def lose(line: bytes) -> bytes:
        """One character of the banner, and six across the nonce's end, of both lines with it."""
        if b"] Linux version " in line:
            kept = line.replace(b"-amd64 (", b"-amd64(", 1)
        elif b"ommand line: " in line and b" console=" in line:
            cut = line.index(b" console=") - 3
            kept = line[:cut] + line[cut + 6 :]
        else:
            return line
        lost.append(kept)
        return kept

    machine = boots("", lose=lose)
    # Of both command lines, a busy host may lose more by itself.
    assert len(lost) in {2, 3}
    assert machine.boot.doubt is not None
