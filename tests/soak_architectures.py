"""Kernels for other architectures: ``python -m tests.soak_architectures KERNEL...``.

The acceptance suite for each kernel; then, with each: the firmware's shortcut, a machine that is
saved and restored, a cable that is pulled, a watchdog that nobody feeds, the crashes of the zoo, a
persistent machine with a push and restarts. The tests have one such boot, saved and restored.

``--only NAME`` does one of them; with ``ZOO_RECORD`` in the environment, what each crash printed is
written to tests/data/zoo.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from kboot.cli import main as kboot
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import SecondCrash
from kboot.kernel import Kernel, read_kernel
from kboot.machine import Machine, MachineSettings, open_backend, power_on
from kboot.machine_spec import MachineSpec
from kboot.rootfs import module_initramfs, overlay_initramfs, tiny_initramfs
from tests import test_zoo
from tests.kubevirt.cluster import images, running_cluster
from tests.saved_machines import open_place
from tests.users import User
from tests.zoo.zoo import Zoo, module, open_zoo

_FETCHED = Path(__file__).parent.parent / "build" / "kernel"
_RESTORES = 5
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


def acceptance(kernel: Kernel) -> None:
    """kboot's own suite."""
    subprocess.run([sys.executable, "-m", "kboot", "test", str(kernel.source)], check=True)


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


def restored(kernel: Kernel) -> None:
    """Going on from a saved machine takes no more than a twentieth of its boot."""
    settings = _settings(kernel, "first")
    with tempfile.TemporaryDirectory() as folder, open_place(kernel.source, Path(folder)) as place:
        begin = time.monotonic()
        with place.machine(settings) as machine:
            booted_s = time.monotonic() - begin
            place.snapshots.save(machine, settings)
        answered = []
        for number in range(_RESTORES):
            begin = time.monotonic()
            with place.restored(settings, f"twin{number}") as machine:
                machine.guest.succeed("true")
                answered.append(time.monotonic() - begin)
    again_s = statistics.median(answered)
    times = ", ".join(f"{each:.2f}" for each in answered)
    print(f"   ready after {booted_s:.1f} s; restored after {times} s: 1/{booted_s / again_s:.0f}")
    assert again_s <= booted_s / 20


def zoo(kernel: Kernel) -> None:
    """Crashes of all kinds on a machine for arm64: each is read right, and the machine returns."""
    headers = _FETCHED / "arm64-headers"
    if (headers / "build").resolve().name != f"linux-headers-{kernel.release}":
        print("   there are no headers of this kernel here")
        return
    compiler = "aarch64-linux-gnu-gcc"
    assert shutil.which(compiler), f"no {compiler} here: apt-get install gcc-aarch64-linux-gnu"
    built = module(headers, cross=("ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"))
    with (
        tempfile.TemporaryDirectory() as folder,
        open_zoo(Path(folder), _made(folder, "store"), package=kernel.source, built=built) as cage,
    ):
        for animal in (*test_zoo.SURVIVED, *test_zoo.DEADLY):
            if animal.name not in _NO_CRASH_ON_ARM64:
                expected = replace(animal, **_ON_ARM64.get(animal.name, {}))
                meet(cage, expected, is_deadly=animal in test_zoo.DEADLY)


#: It divides by zero without a fault, and resets for none; and as its kernel has no count of
#: disabled preemption (CONFIG_PREEMPT_COUNT), nobody sees a sleep with it, nor a reader of RCU that
#: is preempted on purpose.
_NO_CRASH_ON_ARM64 = {"divide", "triple_fault", "atomic_sleep", "rcu_stall"}
_ON_ARM64: Mapping[str, Mapping[str, str]] = {
    "non_canonical": {"kind": "page-fault"},
    "soft_lockup": {"function": ""},
}
#: After these BUGs (6.1), the idle task warns once that a count of interrupts is wrong.
_SHAKEN_ON_ARM64 = {"bug", "list", "usercopy"}


def meet(cage: Zoo, animal: test_zoo.Animal, *, is_deadly: bool) -> None:
    """Provoke a crash, and see how it was read."""
    machine = cage.open()
    start = machine.console.mark()
    is_shaken = animal.name in _SHAKEN_ON_ARM64
    with contextlib.suppress(*((SecondCrash,) if is_shaken else ())):  # noqa: SIM117  of that
        with machine.expect_crash(animal.kind) as crash:
            cage.meet(animal.name, before=animal.before)
    report = crash.report
    print(f"   {animal.name}: {report.kind}, {report.title!r}", flush=True)
    if is_deadly:
        test_zoo.comes_back(machine)
    test_zoo.record(machine, f"arm64-{animal.name}", crash, start)
    assert (report.kind, report.function) == (animal.kind, animal.guilty)
    assert crash.fatal == is_deadly
    if is_shaken:
        cage.close()
    else:
        machine.check_reports()


def _made(folder: str, name: str) -> Path:
    path = Path(folder) / name
    path.mkdir()
    return path


def on_cluster(kernel: Kernel) -> None:
    """A boot on a cluster with a node for it, from the disk with iPXE that UEFI finds."""
    disk = _FETCHED.parent / "ipxe-arm64" / "ipxe-disk.tar"
    with tempfile.TemporaryDirectory() as folder, running_cluster() as cluster:
        os.environ["KUBECONFIG"] = str(cluster.write_kubeconfig(Path(folder, "kubeconfig")))
        cluster.virt.node_architecture = "arm64"
        image = images.reference(disk)
        cluster.virt.disks.images[image] = disk
        options = ["--backend", "kubevirt", "--cluster-ipxe-disk", image, "--timeout", "5m"]
        assert kboot(["boot", str(kernel.source), *options]) == 0


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


#: What is done with each kernel, by name.
ACTS: Mapping[str, Callable[[Kernel], None]] = {
    act.__name__: act for act in (acceptance, shortcut, restored, cable, watchdog, zoo, on_cluster)
}


def main(arguments: list[str]) -> None:
    """Do all of it with each kernel, or only what is asked for."""
    only = ""
    if arguments[:1] == ["--only"]:
        _, only, *arguments = arguments
    kernels = [read_kernel(Path(argument)) for argument in arguments]
    for number, kernel in enumerate(kernels):
        acts: dict[str, Callable[[Kernel], None]] = {**ACTS}
        acts["persistent"] = functools.partial(persistent, other=kernels[number - 1])
        for name, act in acts.items():
            if only in {"", name}:
                start = time.monotonic()
                print(f"== {kernel.release} ({kernel.architecture}): {name}", flush=True)
                act(kernel)
                print(f"   {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:])
