"""A machine that is stopped at iPXE's prompt, with the network up, and no kernel in sight."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kboot import __version__, ipxe, templates
from kboot.backend import (
    Backend,
    BootServer,
    SnapshotBackend,
    SnapshotVirtualMachine,
    VirtualMachine,
)
from kboot.boot_messages import IpxeBuild, Rows, ipxe_build, nothing_to_boot
from kboot.console import Console
from kboot.crash import Scanner
from kboot.deadline import Deadline
from kboot.errors import GuestError, InfraError, KbootError
from kboot.ipxe.errors import error_in
from kboot.ipxe.prompt import BIOS_COLUMNS, IpxePrompt
from kboot.ipxe.user_script import is_script
from kboot.log import logger, step
from kboot.machine import evidence, faults
from kboot.machine.publishing import booting
from kboot.machine_spec import MachineSpec
from kboot.snapshots import Entry, SnapshotStore

_CONSOLE = "console"
_START_LIMIT_S = 120.0


class IpxeMachine(IpxePrompt):
    """A machine at iPXE's prompt. Made by `power_on_ipxe`."""

    def __init__(
        self,
        spec: MachineSpec,
        vm: VirtualMachine,
        server: BootServer,
        console: Console,
        evidence_directory: Path,
    ) -> None:
        super().__init__(console, columns=BIOS_COLUMNS if spec.firmware == "bios" else None)
        self.spec = spec
        self.vm = vm
        self.server = server
        #: The serial line, for waits of one's own.
        self.console = console
        self.evidence_directory = evidence_directory
        #: The saved state that it went on from; None if it was started.
        self.restored_from: str | None = None
        #: Whether it has yet to come to its first prompt.
        self._is_starting = True
        self._numbers = itertools.count(1)

    @property
    def build(self) -> IpxeBuild | None:
        """The iPXE that runs, as it has introduced itself; None if it has not."""
        return ipxe_build(line.text for line in self.console.lines())

    @property
    def name(self) -> str:
        """Its name, unique among the machines of a run."""
        return self.spec.name

    def boot(self, script: str) -> None:
        """Have iPXE run a script; `wait` for its end, which is the prompt again.

        What it prints is waited for at `console`. The script's text is served as it is. ValueError
        if it does not begin as one.
        """
        if not is_script(script.encode()):
            raise ValueError(f"a script begins with a line #!ipxe, not with {script[:40]!r}")
        url = self.server.write(f"{self.name}/script{next(self._numbers)}.ipxe", script)
        self.leave(f"chain --autofree {url}")

    def reset(self, timeout: float | None = None) -> None:
        """Push the reset button, and wait for the prompt."""
        self.console.expect_reset()
        self.vm.reset()
        # The prompt that is there now is the last one's.
        self.console.expect("kboot: prompt", since=self.console.mark(), timeout=timeout)
        self.wait(timeout=timeout)

    def check_host(self) -> None:
        """What every wait on the console checks from time to time."""
        self.vm.check()
        self.server.check()
        if self.spec.tls != "off" and (fault := faults.no_https(self.build)):
            raise fault
        if self._is_starting:
            self._check_start()

    def _begin(self) -> None:
        self._is_starting = False
        super()._begin()

    def _check_start(self) -> None:
        """`InfraError` if the firmware has found nothing to boot, least of all our script."""
        error, rows = None, Rows()
        for line in self.console.lines():
            error = error_in(rows.take(line.text) or "") or error
            if last_words := nothing_to_boot(line.text):
                raise faults.nothing_to_boot(last_words, error)


def script_text() -> str:
    """The script that stops at the prompt."""
    return templates.render("ipxe/prompt.ipxe")


@contextlib.contextmanager
def power_on_ipxe(
    backend: Backend,
    server: BootServer,
    spec: MachineSpec,
    *,
    evidence_directory: Path,
    store: SnapshotStore | None = None,
) -> Iterator[IpxeMachine]:
    """A machine at iPXE's prompt; it is gone after the ``with``.

    With a `store`, and where the backend can, it goes on from one that was saved there at its
    prompt, or is saved. `InfraError` if it does not come to its prompt.
    """
    evidence.prepare(evidence_directory)
    url = server.write(f"{spec.name}/{ipxe.SCRIPT_NAME}", script_text())
    spec = booting(backend, server, spec, url.removeprefix(server.url("")))
    with contextlib.ExitStack() as stack:
        if store is None or not isinstance(backend, SnapshotBackend):
            saver = None
        else:
            saver = _Saver(backend, spec, store)
        machine: IpxeMachine | None = None
        if saver and (entry := saver.find()):
            machine = _restore(stack, backend, server, spec, evidence_directory, saver, entry)
        if machine is None:
            savable = saver is not None and saver.works
            attached = _attached(backend, server, spec, evidence_directory, savable=savable)
            machine = stack.enter_context(attached)
            _wait_for_prompt(machine)
            if saver and saver.works:
                saver.save(machine)
        yield machine


class _Saver:
    """The saved machines at iPXE's prompt that are like one."""

    def __init__(self, backend: SnapshotBackend, spec: MachineSpec, store: SnapshotStore) -> None:
        self._store = store
        #: Whether such a machine can be saved.
        self.works = backend.snapshot_fault(spec) is None
        self._key = _key(backend, spec) if self.works else {}

    def find(self) -> Entry | None:
        """One that was saved."""
        return self._store.find(self._key) if self.works else None

    def discard(self, entry: Entry) -> None:
        """Remove one that does not run."""
        self._store.discard(entry.key)

    def save(self, machine: IpxeMachine) -> None:
        """Save one at its prompt; if that fails, it is said."""
        vm = machine.vm
        if not isinstance(vm, SnapshotVirtualMachine):
            return

        def fill(directory: Path) -> Mapping[str, Any]:
            (directory / _CONSOLE).write_bytes(machine.console.raw(0))
            vm.snapshot(directory)
            return {"about": f"iPXE's prompt, {machine.spec.firmware}, {vm.description}"}

        try:
            self._store.add(self._key, fill)
        except (KbootError, OSError) as error:
            machine.check_host()
            logger.warning("iPXE's prompt cannot be saved: %s", error)


def _key(backend: SnapshotBackend, spec: MachineSpec) -> Mapping[str, str]:
    return {
        "state": "iPXE's prompt",
        "script": script_text(),
        "kboot": __version__,
        **backend.snapshot_identity(spec),
    }


@contextlib.contextmanager
def _attached(
    backend: Backend,
    server: BootServer,
    spec: MachineSpec,
    evidence_directory: Path,
    *,
    saved: Entry | None = None,
    savable: bool = False,
) -> Iterator[IpxeMachine]:
    deadline = Deadline(_START_LIMIT_S)
    if isinstance(backend, SnapshotBackend):
        power: contextlib.AbstractContextManager[VirtualMachine] = backend.power_on(
            spec, deadline, saved=saved.directory if saved else None, savable=savable
        )
    else:
        power = backend.power_on(spec, deadline)
    with power as vm:
        console = Console(
            vm.stream,
            record=evidence_directory,
            scanner=Scanner(),
            check=lambda: machine.check_host(),
            past=(saved.directory / _CONSOLE).read_bytes() if saved else b"",
        )
        machine = IpxeMachine(spec, vm, server, console, evidence_directory)
        with console:
            try:
                yield machine
            finally:
                for part in (server, vm):
                    with contextlib.suppress(KbootError, OSError):
                        part.evidence(evidence_directory)


def _wait_for_prompt(machine: IpxeMachine) -> None:
    with step("iPXE's prompt"):
        try:
            machine.wait(timeout=_START_LIMIT_S)
        except GuestError as error:
            raise InfraError(f"the machine does not come to iPXE's prompt: {error}") from error


def _restore(
    stack: contextlib.ExitStack,
    backend: Backend,
    server: BootServer,
    spec: MachineSpec,
    evidence_directory: Path,
    saver: _Saver,
    entry: Entry,
) -> IpxeMachine | None:
    """A machine that goes on from a saved one; None if that does not run, and is removed."""
    with contextlib.ExitStack() as attempt:
        try:
            machine = attempt.enter_context(
                _attached(backend, server, spec, evidence_directory, saved=entry)
            )
            machine.wake()
        except (GuestError, InfraError) as error:
            server.check()
            logger.warning("the saved iPXE %s does not run and is removed: %s", entry.key, error)
            saver.discard(entry)
            return None
        machine.restored_from = entry.key
        stack.push(attempt.pop_all())
        return machine
