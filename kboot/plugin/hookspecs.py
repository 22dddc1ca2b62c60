"""Hooks that kboot calls, for a ``conftest.py`` or a plugin to implement.

All arguments are optional, as with every hook of pytest: an implementation names those it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kboot.crash import CrashReport
    from kboot.machine import Machine


def pytest_kboot_machine_ready(item: pytest.Item, machine: Machine) -> None:
    """The fixture ``machine`` of a test is set up: the kernel is up, and commands can be run.

    Called for every test that uses it, also where the machine was restored or is shared. What it
    raises is an error of the test's set-up.
    """


def pytest_kboot_crash_seen(item: pytest.Item, machine: Machine, report: CrashReport) -> None:
    """The kernel reported a crash or a warning while a test ran, expected or not.

    Called in the main thread when the test's call, or a set-up that failed, has ended; once for
    each report. What it raises fails the test.
    """


def pytest_kboot_evidence_written(config: pytest.Config, directory: Path) -> None:
    """A machine was powered off, and its evidence directory is complete, with ``result.json``.

    A machine may have served several tests: it is called after the last of them, or at the end of
    the run. With pytest-xdist, all these hooks are called in the workers.
    """
