"""Machines under test: power one on, follow its boots, and find out what went wrong."""

from __future__ import annotations

from kboot.machine.backends import (
    can_persist,
    open_backend,
    persistent_machines,
    remove_machine,
    reopen_backend,
)
from kboot.machine.expectations import ExpectedCrash, Wanted, wanted
from kboot.machine.machine import Machine
from kboot.machine.phases import Milestone, Phase
from kboot.machine.power import TakenOver, join, power_on, take_over
from kboot.machine.publishing import Load, upload
from kboot.machine.settings import (
    MachineSettings,
    firmware_for,
    kernel_of,
    own_kernel,
    settings_for,
)

__all__ = [
    "ExpectedCrash",
    "Load",
    "Machine",
    "MachineSettings",
    "Milestone",
    "Phase",
    "TakenOver",
    "Wanted",
    "can_persist",
    "firmware_for",
    "join",
    "kernel_of",
    "open_backend",
    "own_kernel",
    "persistent_machines",
    "power_on",
    "remove_machine",
    "reopen_backend",
    "settings_for",
    "take_over",
    "upload",
    "wanted",
]
