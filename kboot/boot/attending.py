"""A machine that is on, with its console attached and its evidence seen to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from kboot.artifacts import Kernel
from kboot.backend import BootServer, Machine
from kboot.boot import evidence
from kboot.boot.attempt import Boot
from kboot.boot.follower import OnPhase
from kboot.boot.phases import Expected
from kboot.boot.settings import BootSettings
from kboot.console import Console
from kboot.crash import Scanner
from kboot.errors import KernelCrash


@contextlib.contextmanager
def attended(
    machine: Machine,
    server: BootServer,
    *,
    kernel: Kernel,
    settings: BootSettings,
    expected: Expected,
    evidence_directory: Path,
    on_phase: OnPhase,
    start: float,
    past: bytes = b"",
    forgiven: int = 0,
) -> Iterator[Boot]:
    """The boot of a machine for the length of the ``with``, however that ends.

    `past` is what it has printed already, of which `forgiven` bytes are of boots that are over.
    """
    with contextlib.ExitStack() as stack:
        console = stack.enter_context(
            Console(
                machine.stream,
                record=evidence_directory,
                scanner=Scanner(),
                check=lambda: attempt.check_host(),
                past=past,
                forgiven=forgiven,
            )
        )
        attempt = Boot(
            kernel=kernel,
            settings=settings,
            expected=expected,
            machine=machine,
            server=server,
            console=console,
            evidence_directory=evidence_directory,
            start=start,
            on_phase=on_phase,
        )
        stack.callback(attempt.channels.hang_up)
        try:
            yield attempt
        except BaseException as error:
            evidence.write(evidence_directory, attempt, error, duration_s=time.monotonic() - start)
            raise
        # Nobody may have looked at the machine after it died.
        fatal = console.fatal
        crash = KernelCrash(fatal.title, fatal) if fatal else None
        evidence.write(evidence_directory, attempt, crash, duration_s=time.monotonic() - start)
