"""Kernels for other architectures: ``python -m tests.soak_architectures KERNEL...``.

The acceptance suite for each kernel; then, with each: the firmware's shortcut, a cable that is
pulled, a watchdog that nobody feeds, a persistent machine with a push and restarts. The tests have
one such boot, saved and restored.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kboot.backend import MachineSpec
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.kernel import Kernel, read_kernel
from kboot.machine import Machine, MachineSettings, open_backend, power_on
from kboot.rootfs import module_initramfs, overlay_initramfs, tiny_initramfs
from tests.users import User

#: For a boot under emulation on a busy host.
_BOOT_LIMIT_S = 300


def _settings(kernel: Kernel, name: str, *modules: str, **spec: object) -> MachineSettings:
    images = [tiny_initramfs(architecture=kernel.architecture)]
    if modules:
        images += [
            module_initramfs(kernel, list(modules)),
            overlay_initramfs({"/etc/kboot/network": b""}),
        ]
    return MachineSettings(
        spec=MachineSpec(
            name=name,
            architecture=kernel.architecture,
            firmware="uefi",
            **spec,  # type: ignore[arg-type]
        ),
        initrds=tuple(images),
        timeout_s=_BOOT_LIMIT_S,
    )


def _with_machine(
    kernel: Kernel, settings: MachineSettings, act: Callable[[Machine], None]
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        open_backend(Config(accel="tcg")) as backend,
        backend.serve(Deadline(60)) as server,
        power_on(
            backend, server, kernel, settings, evidence_directory=Path(folder) / "evidence"
        ) as machine,
    ):
        machine.wait_until_ready()
        phases = {str(name): round(value, 1) for name, value in machine.boot.durations_s().items()}
        print(f"   {settings.spec.name}: ready after {sum(phases.values()):.1f} s: {phases}")
        act(machine)


def shortcut(kernel: Kernel) -> None:
    """Start twice from a state in which the firmware is up."""
    settings = _settings(kernel, "shortcut", firmware_start="saved")

    def act(machine: Machine) -> None:
        before = machine.boot_id
        machine.restart()
        assert machine.boot_id != before
        assert machine.machine_description.endswith("saved firmware")

    _with_machine(kernel, settings, act)


def cable(kernel: Kernel) -> None:
    """Pull the cable and plug it in again."""

    def act(machine: Machine) -> None:
        # QEMU 7.2's e1000e does not tell its guest of a cut cable: it only loses what is sent.
        reaches = "ping -c 1 -W 3 10.0.2.2"
        machine.guest.wait_until_succeeds(reaches, timeout=60)
        machine.vm.set_link(up=False)
        assert machine.guest.run(reaches).exit_status != 0
        machine.vm.set_link(up=True)
        machine.guest.wait_until_succeeds(reaches, timeout=60)

    if _has_module(kernel, "e1000e"):
        _with_machine(kernel, _settings(kernel, "cable", "e1000e"), act)


def _has_module(kernel: Kernel, name: str) -> bool:
    """Debian's kernels for clouds lack drivers for most of what QEMU's machines have."""
    assert kernel.modules
    found = any(kernel.modules.rglob(f"{name}.ko*"))
    if not found:
        print(f"   this kernel has no {name}")
    return found


def watchdog(kernel: Kernel) -> None:
    """A watchdog that nobody feeds resets the machine."""
    if not _has_module(kernel, "i6300esb"):
        return
    settings = _settings(kernel, "watchdog", "i6300esb", extra_arguments=("-device", "i6300esb"))

    def act(machine: Machine) -> None:
        before = machine.boot_id
        with machine.expect_crash("unexpected-reset", timeout=60):
            machine.guest.succeed("watchdog -T 3 -t 3600 /dev/watchdog")
        machine.wait_for_reboot()
        assert machine.boot_id != before

    _with_machine(kernel, settings, act)


def persistent(kernel: Kernel, other: Kernel) -> None:
    """``kboot up``, ``push`` of another kernel, ``restart`` in a loop, ``down``."""
    with tempfile.TemporaryDirectory() as home:
        user = User(Path(home))
        try:
            user.type("up", "lab", "--kernel", str(kernel.source.resolve()), "--timeout", "5m")
            assert user.type("exec", "lab", "--", "uname", "-r").strip() == kernel.release
            user.type("push", "lab", str(other.source.resolve()), "--restart")
            assert user.type("exec", "lab", "--", "uname", "-r").strip() == other.release
            user.type("restart", "lab", "--count", "3")
            user.type("panic", "lab")
        finally:
            user.try_("down", "lab")


def main(paths: list[Path]) -> None:
    """Do all of it with each kernel."""
    kernels = [read_kernel(path) for path in paths]
    for number, kernel in enumerate(kernels):
        print(f"== {kernel.release} ({kernel.architecture}): the acceptance suite", flush=True)
        subprocess.run([sys.executable, "-m", "kboot", "test", str(kernel.source)], check=True)
        for act in (shortcut, cable, watchdog):
            start = time.monotonic()
            print(f"== {kernel.release}: {act.__name__}", flush=True)
            act(kernel)
            print(f"   {time.monotonic() - start:.0f} s", flush=True)
        print(f"== {kernel.release}: a persistent machine", flush=True)
        persistent(kernel, kernels[number - 1])


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main([Path(argument) for argument in sys.argv[1:]])
