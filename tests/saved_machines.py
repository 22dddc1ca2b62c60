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
from kboot.qemu import QemuBackend
from kboot.rootfs import module_initramfs, overlay_initramfs, tiny_initramfs
from kboot.snapshots import SnapshotStore

Restore = Callable[[], contextlib.AbstractContextManager[Machine]]


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
def open_place(package: Path, directory: Path) -> Iterator[Place]:
    """A place with a store of its own, for the kernel in `package`."""
    kernel = read_kernel(package)
    store = directory / "store"
    store.mkdir()
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


def networked(kernel: Kernel) -> MachineSettings:
    """The tiny system with an address from DHCP."""
    return MachineSettings(
        initrds=(
            tiny_initramfs(),
            module_initramfs(kernel, ["e1000e"]),
            overlay_initramfs({"/etc/kboot/network": b""}),
        )
    )
