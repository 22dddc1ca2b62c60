"""For tests of machines that are saved and restored: a place for them, and one that has booted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kboot.backend import BootServer
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.isolation import Snapshots
from kboot.kernel import Kernel, read_kernel
from kboot.machine import Machine, MachineSettings, open_backend, power_on
from kboot.machine.saved import SavedMachine
from kboot.machine_spec import MachineSpec
from kboot.qemu import QemuBackend
from kboot.rootfs import module_initramfs, overlay_initramfs, tiny_initramfs
from kboot.snapshots import SnapshotStore

Restore = Callable[[], contextlib.AbstractContextManager[Machine]]

#: How long others wait for the worker that boots a machine for all.
_BOOT_LIMIT_S = 180.0
_BOOTS = 3


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where machines boot, are saved, and go on."""

    backend: QemuBackend
    server: BootServer
    kernel: Kernel
    snapshots: Snapshots
    directory: Path

    @contextlib.contextmanager
    def machine(self, settings: MachineSettings) -> Iterator[Machine]:
        """A machine that has booted and can be saved."""
        with self._on(settings, savable=True) as machine:
            machine.wait_until_ready()
            yield machine

    @contextlib.contextmanager
    def saved(
        self,
        settings: MachineSettings,
        prepare: Callable[[Machine], object] = lambda _machine: None,
    ) -> Iterator[Machine]:
        """A machine that was saved when it had booted and was prepared, and goes on."""
        for _ in range(_BOOTS):
            with self.machine(settings) as machine:
                prepare(machine)
                # A busy host has kernels report stalls: such a boot is not saved.
                if self.snapshots.save(machine, settings):
                    yield machine
                    return
        raise AssertionError(f"{_BOOTS} boots, and none could be saved")

    def save_once(self, settings: MachineSettings) -> None:
        """See to it that there is such a machine to restore: booted by whoever comes first."""
        with self.snapshots.making(settings, Deadline(_BOOT_LIMIT_S)):
            if self.snapshots.find(settings) is None:
                with self.saved(settings):
                    pass

    def restored(
        self, settings: MachineSettings, name: str
    ) -> contextlib.AbstractContextManager[Machine]:
        """A machine that goes on from the saved one."""
        saved = self.snapshots.find(settings)
        assert saved
        return self._on(settings.named(name), saved=saved)

    def _on(
        self, settings: MachineSettings, *, saved: SavedMachine | None = None, savable: bool = False
    ) -> contextlib.AbstractContextManager[Machine]:
        return power_on(
            self.backend,
            self.server,
            self.kernel,
            settings,
            evidence_directory=self.directory / settings.spec.name,
            saved=saved,
            savable=savable,
        )


@contextlib.contextmanager
def open_place(package: Path, directory: Path, *, store: Path | None = None) -> Iterator[Place]:
    """A place for the kernel in `package`, with a store of its own unless one is given."""
    kernel = read_kernel(package)
    store = store or directory / "store"
    store.mkdir(exist_ok=True)
    with (
        open_backend(Config(accel="tcg")) as backend,
        backend.serve(Deadline(60)) as server,
        SnapshotStore(store, limit_mib=4096) as opened,
    ):
        assert isinstance(backend, QemuBackend)
        yield Place(
            backend=backend,
            server=server,
            kernel=kernel,
            snapshots=Snapshots(backend, kernel, opened),
            directory=directory,
        )


def networked(kernel: Kernel, spec: MachineSpec | None = None) -> MachineSettings:
    """The tiny system with an address from DHCP."""
    return MachineSettings(
        spec=spec or MachineSpec(),
        initrds=(
            tiny_initramfs(),
            module_initramfs(kernel, ["e1000e"]),
            overlay_initramfs({"/etc/kboot/network": b""}),
        ),
    )
