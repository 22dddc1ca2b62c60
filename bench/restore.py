"""What a saved machine saves: against a boot of the same one, and in memory."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.debian import debian_initramfs
from bench.figure import Figure, interleaved, median_ratio, proportional_mib
from kboot.backend import Backend, BootServer
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.isolation import Snapshots
from kboot.kernel import Kernel, read_kernel
from kboot.machine import Machine, MachineSettings, open_backend, power_on
from kboot.machine.saved import SavedMachine
from kboot.machine_spec import MachineSpec
from kboot.qemu.virtual_machine import QemuVirtualMachine
from kboot.rootfs import tiny_initramfs
from kboot.snapshots import SnapshotStore

_ROUNDS = 20


def run(*, quick: bool) -> dict[str, Figure]:
    """``restore_speedup_*``: power-on to a command's answer, booted over restored.

    ``restore_*_s``: the restore alone. ``machine_*_mib``: a machine's share of the host's memory,
    its part of what several of them have in common counted once for all.
    """
    rounds = 1 if quick else _ROUNDS
    kernel = read_kernel(Path(os.environ["KBOOT_TEST_KERNEL"]))
    figures: dict[str, Figure] = {}
    systems = {
        "tiny": MachineSettings(initrds=(tiny_initramfs(),)),
        "debian": MachineSettings(
            initrds=(debian_initramfs(),), spec=MachineSpec(memory_mib=1536), timeout_s=400
        ),
    }
    for name, settings in systems.items():
        with opened(kernel, settings) as bench:
            pairs = interleaved(bench.boot_s, bench.restore_s, rounds=rounds)
            figures[f"restore_speedup_{name}"] = median_ratio(pairs)
            restores = tuple(restored for _, restored in pairs)
            figures[f"restore_{name}_s"] = Figure(
                value=statistics.median(restores), unit="s", runs=restores
            )
            figures[f"machine_{name}_mib"] = Figure(value=bench.memory_mib(), unit="MiB")
    return figures


@dataclass
class _Bench:
    backend: Backend
    server: BootServer
    kernel: Kernel
    settings: MachineSettings
    directory: Path
    saved: SavedMachine | None = None
    count: int = 0

    def boot_s(self) -> float:
        """Seconds from nothing to the answer to a command, in a machine that boots."""
        begin = time.monotonic()
        with self.on(saved=None) as machine:
            machine.wait_until_ready()
            machine.guest.succeed("echo up")
            return time.monotonic() - begin

    def restore_s(self) -> float:
        """The same in a machine that goes on from where it was saved."""
        begin = time.monotonic()
        with self.on(saved=self.saved) as machine:
            machine.guest.succeed("echo up")
            return time.monotonic() - begin

    def memory_mib(self) -> float:
        """What one of three restored machines has, by proportional set size, after a command."""
        with contextlib.ExitStack() as stack:
            boots = [stack.enter_context(self.on(saved=self.saved)) for _ in range(3)]
            for machine in boots:
                machine.guest.succeed("echo up")
            return statistics.mean(_proportional_mib(machine) for machine in boots)

    def on(self, *, saved: SavedMachine | None) -> contextlib.AbstractContextManager[Machine]:
        """A machine of its own name and evidence."""
        self.count += 1
        name = f"bench{self.count}"
        return power_on(
            self.backend,
            self.server,
            self.kernel,
            self.settings.named(name),
            evidence_directory=self.directory / name,
            saved=saved,
        )


@contextlib.contextmanager
def opened(kernel: Kernel, settings: MachineSettings, prepare: str = "true") -> Iterator[_Bench]:
    """A backend, a server, and a machine that has been saved after a command in it."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kboot-bench-")))
        backend = stack.enter_context(open_backend(Config(accel="tcg")))
        server = stack.enter_context(backend.serve(Deadline(60)))
        store = directory / "store"
        store.mkdir()
        kept = stack.enter_context(SnapshotStore(store, limit_mib=8192))
        snapshots = Snapshots(backend, kernel, kept)
        with power_on(
            backend,
            server,
            kernel,
            settings,
            evidence_directory=directory / "first",
            savable=True,
        ) as machine:
            machine.wait_until_ready()
            machine.guest.succeed(prepare)
            snapshots.save(machine, settings)
        saved = snapshots.find(settings)
        if saved is None:
            raise RuntimeError("the machine was not saved")
        yield _Bench(backend, server, kernel, settings, directory, saved)


def _proportional_mib(machine: Machine) -> float:
    if not isinstance(machine.vm, QemuVirtualMachine):
        raise TypeError("memory is measured of local machines")
    return proportional_mib(machine.vm.pid)
