"""Where a saved machine keeps its memory: in a file of its own, or in QEMU's migration stream.

The same machine is saved in both ways, and restored from both in turn, by the same few lines; not
by kboot's own machine, which knows one way only. (The third one, QEMU's ``mapped-ram``, is of
QEMU 9.0; Debian 12 has 7.2.)
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figure import Figure, interleaved, median_ratio, proportional_mib
from kboot import process
from kboot.backend import SnapshotVirtualMachine
from kboot.config import Config
from kboot.console import Console
from kboot.crash import Scanner
from kboot.deadline import Deadline
from kboot.guest.saved import prepare, resume
from kboot.kernel import read_kernel
from kboot.machine import MachineSettings, open_backend, power_on
from kboot.machine_spec import MachineSpec
from kboot.qemu import snapshot
from kboot.qemu.argv import Memory, Wiring, argv
from kboot.qemu.qmp import Qmp
from kboot.qemu.snapshot import GuestMemory
from kboot.qemu.virtual_machine import SocketStream
from kboot.rootfs import tiny_initramfs

_LIMIT_S = 120

_Load = Callable[[Qmp, Deadline], None]
_Start = Callable[[], contextlib.AbstractContextManager["_Running"]]


def run(*, quick: bool) -> dict[str, Figure]:
    """``stream_*_ratio``: with the memory in the stream, over with the memory in a file.

    To save a tiny machine of 512 MiB, and to restore it until it answers a command. ``*_mib``: one
    of three restored machines, its part of what they have in common counted once for all.
    """
    rounds = 1 if quick else 20
    with tempfile.TemporaryDirectory(prefix="kboot-bench-") as folder:
        bench = _booted(Path(folder))
        saves = interleaved(bench.save_into_stream, bench.save_into_file, rounds=rounds)
        restores = interleaved(bench.restore_from_stream, bench.restore_from_file, rounds=rounds)
        return {
            "stream_save_ratio": median_ratio(saves),
            "stream_restore_ratio": median_ratio(restores),
            "save_into_stream_s": _median([stream for stream, _ in saves]),
            "save_into_file_s": _median([file for _, file in saves]),
            "restore_from_stream_s": _median([stream for stream, _ in restores]),
            "restore_from_file_s": _median([file for _, file in restores]),
            "machine_from_stream_mib": bench.memory_mib(bench.from_stream),
            "machine_from_file_mib": bench.memory_mib(bench.from_file),
        }


def _median(seconds: list[float]) -> Figure:
    return Figure(value=statistics.median(seconds), unit="s", runs=tuple(seconds))


@dataclass(frozen=True, kw_only=True)
class _Running:
    """A machine that goes on from where it was saved."""

    qmp: Qmp
    memory: GuestMemory | None
    pid: int


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """A machine that was booted, and saved with its memory in a file."""

    directory: Path
    spec: MachineSpec
    agent: Mapping[str, Any]

    @property
    def file(self) -> Path:
        return self.directory / "saved"

    @property
    def stream(self) -> Path:
        return self.directory / "stream"

    # ---------------------------------------------------------------------------------- saving

    def save_into_file(self) -> float:
        """Seconds until a running machine is saved, as kboot does it, and runs on."""
        with (
            self.started(self._copy(), self._load) as running,
            tempfile.TemporaryDirectory(dir=self.directory) as folder,
        ):
            deadline = Deadline(_LIMIT_S)
            begin = time.monotonic()
            snapshot.save_devices(running.qmp, Path(folder, snapshot.DEVICES), deadline)
            if running.memory:
                running.memory.save(Path(folder))
            running.qmp.execute("cont", deadline)
            return time.monotonic() - begin

    def save_into_stream(self) -> float:
        """The same by QEMU alone."""
        with self.started(self._copy(), self._load) as running:
            deadline = Deadline(_LIMIT_S)
            begin = time.monotonic()
            _all_in_the_stream(running.qmp, deadline)
            target = shlex.quote(str(self.stream))
            running.qmp.execute("migrate", deadline, uri=f"exec:cat >{target}")
            for _ in deadline.poll(0.002):
                if running.qmp.execute("query-migrate", deadline).get("status") == "completed":
                    break
            running.qmp.execute("cont", deadline)
            return time.monotonic() - begin

    def _copy(self) -> GuestMemory:
        return GuestMemory.copied(self.file, self.spec.memory_mib)

    # ------------------------------------------------------------------------------- restoring

    def restore_from_file(self) -> float:
        """Seconds from nothing until the guest answers."""
        begin = time.monotonic()
        with self.from_file():
            return time.monotonic() - begin

    def restore_from_stream(self) -> float:
        """The same."""
        begin = time.monotonic()
        with self.from_stream():
            return time.monotonic() - begin

    def from_file(self) -> contextlib.AbstractContextManager[_Running]:
        """A machine that has answered; its memory is mapped."""
        return self.started(GuestMemory.saved(self.file), self._load)

    def from_stream(self) -> contextlib.AbstractContextManager[_Running]:
        """A machine that has answered; its memory is its own."""
        return self.started(None, self._load_stream)

    def _load(self, qmp: Qmp, deadline: Deadline) -> None:
        snapshot.load_devices(qmp, self.file / snapshot.DEVICES, deadline)

    def _load_stream(self, qmp: Qmp, deadline: Deadline) -> None:
        _all_in_the_stream(qmp, deadline)
        source = shlex.quote(str(self.stream))
        qmp.execute("migrate-incoming", deadline, uri=f"exec:cat {source}")
        for _ in deadline.poll(0.002):
            if qmp.execute("query-status", deadline)["status"] != "inmigrate":
                return

    # ------------------------------------------------------------------------------------ both

    def memory_mib(self, start: _Start) -> Figure:
        """Proportional set size of one of three machines."""
        with contextlib.ExitStack() as stack:
            machines = [stack.enter_context(start()) for _ in range(3)]
            return Figure(
                value=statistics.mean(proportional_mib(vm.pid) for vm in machines),
                unit="MiB",
            )

    @contextlib.contextmanager
    def started(self, memory: GuestMemory | None, load: _Load) -> Iterator[_Running]:
        """A QEMU that has loaded its state, and whose guest has answered.

        Without `memory`, it is QEMU's own.
        """
        deadline = Deadline(_LIMIT_S)
        with contextlib.ExitStack() as stack:
            serial, serial_far = socket.socketpair()
            control, control_far = socket.socketpair()
            stack.callback(control.close)
            with serial_far, control_far:
                fds = [serial_far.fileno(), control_far.fileno()]
                wiring = Wiring.inherited(serial_fd=fds[0], control_fd=fds[1])
                if memory:
                    stack.callback(memory.close)
                    fds.append(memory.descriptor)
                command, log = self._command(wiring, memory), self.directory / "qemu.log"
                qemu = stack.enter_context(process.spawn(command, log=log, pass_fds=fds))
            qmp = Qmp(control, deadline)
            load(qmp, deadline)
            stream = SocketStream(serial)
            console = Console(stream, record=None, scanner=Scanner(), check=lambda: None)
            resume(stack.enter_context(console), self.agent, deadline)
            yield _Running(qmp=qmp, memory=memory, pid=qemu.pid)

    def _command(self, wiring: Wiring, memory: GuestMemory | None) -> list[str]:
        command = argv(
            self.spec,
            program=process.find_program("qemu-system-x86_64"),
            accelerator="tcg",
            wiring=wiring,
            flash=None,
            memory=memory.option() if memory else Memory(path="", shared=False),
            incoming=True,
        )
        if memory is None:
            # The same block of memory as the stream calls it, but without a file behind it.
            plain = f"memory-backend-ram,id=ram,size={self.spec.memory_mib}M"
            return [plain if word.startswith("memory-backend-file,") else word for word in command]
        return command


def _all_in_the_stream(qmp: Qmp, deadline: Deadline) -> None:
    capability = {"capability": "x-ignore-shared", "state": False}
    qmp.execute("migrate-set-capabilities", deadline, capabilities=[capability])
    # As fast as it goes; QEMU's own limit is for networks.
    qmp.execute("migrate-set-parameters", deadline, **{"max-bandwidth": 1 << 40})


def _booted(directory: Path) -> _Bench:
    """Boot a tiny machine, and save it with its memory in a file."""
    settings = MachineSettings(initrds=(tiny_initramfs(),))
    with (
        open_backend(Config(accel="tcg")) as backend,
        backend.serve(Deadline(_LIMIT_S)) as server,
        power_on(
            backend,
            server,
            read_kernel(Path(os.environ["KBOOT_TEST_KERNEL"])),
            settings,
            evidence_directory=directory / "evidence",
            savable=True,
        ) as machine,
    ):
        machine.wait_until_ready()
        agent = prepare(
            machine.console_guest, Deadline(_LIMIT_S), architecture=settings.spec.architecture
        )
        bench = _Bench(directory=directory, spec=settings.spec, agent=agent)
        bench.file.mkdir()
        if not isinstance(machine.vm, SnapshotVirtualMachine):
            raise TypeError("local machines can be saved")
        machine.vm.snapshot(bench.file)
    return bench
