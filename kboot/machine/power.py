"""Power a machine on, or take over one that runs: console attached, evidence written at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kboot import boot_messages
from kboot.backend import BootServer, ExistingVirtualMachine, PersistentBackend, VirtualMachine
from kboot.console import Console
from kboot.console.text import normalise
from kboot.crash import Scanner
from kboot.deadline import Deadline
from kboot.errors import InfraError, KernelCrash
from kboot.kernel import Kernel
from kboot.machine import evidence
from kboot.machine.follower import OnPhase
from kboot.machine.machine import Machine
from kboot.machine.phases import Expected
from kboot.machine.publishing import Load, script_for
from kboot.machine.settings import MachineSettings, machine_spec


@contextlib.contextmanager
def attended(
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
) -> Iterator[Machine]:
    """The boot of a machine for the length of the ``with``, however that ends.

    `past` is what it has printed already, of which `forgiven` bytes are of boots that are over.
    """
    with contextlib.ExitStack() as stack:
        console = Console(
            vm.stream,
            record=evidence_directory,
            scanner=Scanner(),
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
        )
        # It reads from here on: whoever follows the boot is told of the first line as well.
        stack.enter_context(console)
        stack.callback(machine.channels.hang_up)
        try:
            yield machine
        except BaseException as error:
            evidence.write(evidence_directory, machine, error, duration_s=time.monotonic() - start)
            raise
        # Nobody may have looked at the machine after it died.
        fatal = console.fatal
        crash = KernelCrash(fatal.title, fatal) if fatal else None
        evidence.write(evidence_directory, machine, crash, duration_s=time.monotonic() - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenOver:
    """A machine that was there before we came."""

    machine: Machine
    #: Where the present boot begins in its console's record.
    begin: int

    def wait_until_ready(self) -> None:
        """Wait until it is ready, and have it prove that it is what it should be."""
        self.machine.meet(self.machine.console.lines(since=self.begin))


@contextlib.contextmanager
def meet(
    backend: PersistentBackend,
    server: BootServer,
    loads: Mapping[str, Load],
    *,
    evidence_directory: Path,
    on_phase: OnPhase,
) -> Iterator[TakenOver]:
    """A machine that may be in any of the boots in `loads`, by their nonces, the likeliest last.

    `InfraError` if what it says last is that it booted by another script.
    """
    evidence.prepare(evidence_directory)
    start = time.monotonic()
    nonce, load = list(loads.items())[-1]
    expected, text = script_for(server, load, nonce)
    spec = machine_spec(load.settings, server.url(expected.script_path))
    with backend.power_on(spec, Deadline(load.settings.timeout_s)) as vm:
        past = vm.past() if isinstance(vm, ExistingVirtualMachine) else b""
        begin = present_boot(past)
        if said := first_script_nonce(past[begin:]):
            nonce = said
            if nonce not in loads:
                raise InfraError(f"the machine runs a boot script that is not ours: {nonce}")
            load = loads[nonce]
            expected, text = script_for(server, load, nonce)
        (evidence_directory / "boot.ipxe").write_text(text, encoding="utf-8")
        with attended(
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
                machine.follower.knows(other)
            yield TakenOver(machine=machine, begin=begin)


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
        elif candidate is not None and _runs_on(line):
            candidate = None
        kernel = kernel or started
        position += len(raw) + 1
    return begin if candidate is None else candidate


def _runs_on(line: str) -> bool:
    """Whether this is of a system that runs."""
    return bool(boot_messages.kernel_message(line) or boot_messages.begins_with_prompt(line))


def first_script_nonce(said: bytes) -> str | None:
    """The nonce of the first boot script that says its own."""
    lines = (normalise(raw) for raw in said.split(b"\n") if boot_messages.may_be_of_a_boot(raw))
    nonces = map(boot_messages.script_nonce, lines)
    return next(filter(None, nonces), None)
