"""Power a machine on, or take over one that runs: console attached, evidence written at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kboot import boot_messages
from kboot.backend import (
    Backend,
    BootServer,
    ExistingVirtualMachine,
    PersistentBackend,
    SnapshotBackend,
    VirtualMachine,
)
from kboot.console import Console
from kboot.console.text import normalise
from kboot.crash import AddressNames, Scanner
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError, KernelCrash
from kboot.kernel import Kernel
from kboot.kernel.symbols import SymbolsOfKernel
from kboot.machine import evidence
from kboot.machine.follower import OnPhase
from kboot.machine.machine import Machine
from kboot.machine.phases import Expected
from kboot.machine.publishing import Load, booting, publish_script, script_for, upload
from kboot.machine.saved import SavedMachine
from kboot.machine.settings import MachineSettings
from kboot.machine_spec import MachineSpec
from kboot.state import disk_faults_named


@contextlib.contextmanager
def power_on(
    backend: Backend,
    server: BootServer,
    kernel: Kernel,
    settings: MachineSettings,
    *,
    evidence_directory: Path,
    on_phase: OnPhase = lambda _milestone, _seconds: None,
    saved: SavedMachine | None = None,
    savable: bool = False,
    nonce: str | None = None,
) -> Iterator[Machine]:
    """Power a machine on that boots `kernel` from `server`; it is gone after the ``with``.

    Inside, `Machine.wait_until_ready` follows the boot. `on_phase` is called with each milestone
    and the seconds since power-on. However the block ends, `evidence_directory` then tells of it.

    With `saved`, the machine does not boot but goes on from there, and is ready. With `savable`, it
    can be saved. Both need a `SnapshotBackend`.

    The boot's `nonce` is a new one unless it is given. Who gives one gives those of the following
    boots as well, see `Machine.load_next`; else each that is asked for has a new one.
    """
    start = time.monotonic()
    _require_possible(backend, settings.spec)
    with disk_faults_named(evidence_directory), contextlib.ExitStack() as stack:
        with _nothing_left_of_mistakes(evidence_directory):
            evidence.prepare(evidence_directory)
            load = upload(server, kernel, settings)
            expected = publish_script(
                server,
                load,
                evidence_directory=evidence_directory,
                nonce=saved.expected.nonce if saved else nonce,
            )
            spec = booting(backend, server, settings.spec, expected.script_path)
            vm = stack.enter_context(_start(backend, spec, settings, saved, savable=savable))
        machine = stack.enter_context(
            _attached(
                vm,
                server,
                kernel=kernel,
                settings=settings,
                expected=expected,
                evidence_directory=evidence_directory,
                on_phase=on_phase,
                start=start,
                past=saved.past() if saved else b"",
                load=load if nonce is None else None,
            )
        )
        if saved:
            machine.resume(saved)
        yield machine


@contextlib.contextmanager
def _nothing_left_of_mistakes(evidence_directory: Path) -> Iterator[None]:
    """A user's mistake that leaves no machine leaves no evidence of one."""
    try:
        yield
    except ConfigError:
        evidence.discard_script(evidence_directory)
        raise


def _require_possible(backend: Backend, spec: MachineSpec) -> None:
    """`ConfigError` if the backend has no such machine."""
    for disk in spec.disks:
        if fault := backend.disk_fault(disk):
            raise ConfigError(f"disk {disk.name}: {fault}")
    if spec.shares and (fault := backend.share_fault()):
        raise ConfigError(f"share {spec.shares[0].path}: {fault}")
    if fault := backend.processor_fault(spec):
        raise ConfigError(f"machine {spec.name}: {fault}")


def _start(
    backend: Backend,
    spec: MachineSpec,
    settings: MachineSettings,
    saved: SavedMachine | None,
    *,
    savable: bool,
) -> contextlib.AbstractContextManager[VirtualMachine]:
    deadline = Deadline(settings.timeout_s)
    if saved is None and not savable:
        return backend.power_on(spec, deadline)
    if not isinstance(backend, SnapshotBackend):
        raise TypeError(f"the backend {backend.name} has no machines that can be saved")
    return backend.power_on(
        spec, deadline, saved=saved.directory if saved else None, savable=savable
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """A machine that was there before we came."""

    machine: Machine
    #: Where the present boot begins in its console's record.
    begin: int

    def wait_until_ready(self) -> None:
        """Wait until it is ready, and verify that it runs the right kernel."""
        self.machine.take_over(self.machine.console.lines(since=self.begin))


@contextlib.contextmanager
def take_over(
    backend: PersistentBackend,
    server: BootServer,
    loads: Mapping[str, Load],
    *,
    evidence_directory: Path,
    on_phase: OnPhase,
) -> Iterator[TakenOver]:
    """Take over a machine in any of the boots in `loads`, by their nonces, the likeliest last.

    `InfraError` if what it says last is that it booted by another script.
    """
    evidence.prepare(evidence_directory)
    start = time.monotonic()
    nonce, load = list(loads.items())[-1]
    expected, text = script_for(server, load, nonce)
    # What its DHCP names is in the machine already.
    spec = replace(load.settings.spec, boot_file=server.url(expected.script_path))
    with backend.power_on(spec, Deadline(load.settings.timeout_s)) as vm:
        past = vm.past() if isinstance(vm, ExistingVirtualMachine) else b""
        begin = present_boot(past)
        if said := first_script_nonce(past[begin:]):
            nonce = said
            if nonce not in loads:
                raise InfraError(f"the machine runs a boot script that is not ours: {nonce}")
            load = loads[nonce]
            expected, text = script_for(server, load, nonce)
        if text:
            (evidence_directory / "boot.ipxe").write_text(text, encoding="utf-8")
        with _attached(
            vm,
            server,
            kernel=load.kernel,
            settings=load.settings,
            expected=expected,
            evidence_directory=evidence_directory,
            on_phase=on_phase,
            start=start,
            past=past,
            forgiven=begin,
        ) as machine:
            for other in loads:
                machine.follower.accept_nonce(other)
            yield TakenOver(machine=machine, begin=begin)


#: For the first words of a machine whose console was just attached.
_FIRST_WORDS_S = 10.0


@contextlib.contextmanager
def join(
    vm: VirtualMachine,
    server: BootServer,
    load: Load,
    nonce: str,
    *,
    name: str,
    evidence_directory: Path,
) -> Iterator[Machine]:
    """A machine that boots, or has booted, by a script for several: ready, and proved.

    It is called `name` in what is told of it. What has fetched the script cannot be told apart; the
    guest itself proves what it runs.
    """
    evidence.prepare(evidence_directory)
    expected, text = script_for(server, load, nonce)
    (evidence_directory / "boot.ipxe").write_text(text, encoding="utf-8")
    past = vm.past() if isinstance(vm, ExistingVirtualMachine) else b""
    begin = present_boot(past)
    with _attached(
        vm,
        server,
        kernel=load.kernel,
        settings=load.settings.named(name),
        expected=expected,
        evidence_directory=evidence_directory,
        on_phase=lambda _milestone, _seconds: None,
        start=time.monotonic(),
        past=past,
        forgiven=begin,
    ) as machine:
        # One that has just been started is not woken: its firmware would take that for a key.
        for _ in Deadline(_FIRST_WORDS_S).poll(0.1):
            if machine.console.lines(since=begin):
                break
        machine.take_over(machine.console.lines(since=begin))
        yield machine


@contextlib.contextmanager
def _attached(
    vm: VirtualMachine,
    server: BootServer,
    *,
    kernel: Kernel,
    settings: MachineSettings,
    expected: Expected,
    evidence_directory: Path,
    on_phase: OnPhase,
    start: float,
    past: bytes = b"",
    forgiven: int = 0,
    load: Load | None = None,
) -> Iterator[Machine]:
    """The machine with its console; at the end of the ``with``, its evidence is written.

    `past` is what it has printed already, of which `forgiven` bytes are of boots that are over.
    """
    with contextlib.ExitStack() as stack:
        machines: list[Machine] = []
        # The console reads what the machine has printed already before there is a machine.
        symbols = SymbolsOfKernel(lambda: machines[0].kernel if machines else kernel)
        console = Console(
            vm.stream,
            record=evidence_directory,
            scanner=Scanner(AddressNames(symbols)),
            check=lambda: machine.check_host(),
            past=past,
            forgiven=forgiven,
        )
        machine = Machine(
            kernel=kernel,
            settings=settings,
            expected=expected,
            vm=vm,
            server=server,
            console=console,
            evidence_directory=evidence_directory,
            start=start,
            on_phase=on_phase,
            load=load,
        )
        machines.append(machine)
        # It reads from here on: whoever follows the boot sees the first line as well.
        stack.enter_context(console)
        stack.callback(machine.channels.disconnect)
        try:
            yield machine
        except BaseException as error:
            evidence.write(machine, error, duration_s=time.monotonic() - start)
            raise
        # Nobody may have looked at the machine after it died.
        fatal = console.fatal
        crash = KernelCrash(fatal.title, fatal) if fatal else None
        evidence.write(machine, crash, duration_s=time.monotonic() - start)


def present_boot(said: bytes) -> int:
    """Where the last boot begins in what a machine has said: with its firmware's first words.

    A firmware's words that a program has printed are followed by a prompt, or by the same kernel.
    """
    begin, position = 0, 0
    kernel = False
    candidate: int | None = None
    for raw in said.split(b"\n"):
        looked_at = candidate is not None or boot_messages.may_be_of_a_boot(raw)
        line = normalise(raw) if looked_at else ""
        started = bool(boot_messages.handoff_nonce(line) or boot_messages.has_banner(line))
        loads = bool(boot_messages.is_loader(line) or boot_messages.script_nonce(line))
        if candidate is None and kernel and (loads or boot_messages.begins_boot(line)):
            candidate = position
        if candidate is not None and (started or loads):
            begin, candidate, kernel = candidate, None, False
        elif candidate is not None and _is_system(line):
            candidate = None
        kernel = kernel or started
        position += len(raw) + 1
    return begin if candidate is None else candidate


def _is_system(line: str) -> bool:
    """Whether this is of a system that runs."""
    return bool(boot_messages.kernel_message(line) or boot_messages.begins_with_prompt(line))


def first_script_nonce(said: bytes) -> str | None:
    """The nonce of the first boot script that says its own."""
    lines = (normalise(raw) for raw in said.split(b"\n") if boot_messages.may_be_of_a_boot(raw))
    nonces = map(boot_messages.script_nonce, lines)
    return next(filter(None, nonces), None)
