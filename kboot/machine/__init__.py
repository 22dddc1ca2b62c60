"""Machines under test: power one on, follow its boots, and find out what went wrong."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

#: Each is imported when it is used first. Half of the time of a command for a persistent machine,
#: which asks the backend only, would go to what follows boots and reads crashes.
_HOMES = {
    "ExpectedCrash": "kboot.machine.expectations",
    "Load": "kboot.machine.publishing",
    "Machine": "kboot.machine.machine",
    "MachineSettings": "kboot.machine.settings",
    "Milestone": "kboot.machine.phases",
    "Phase": "kboot.machine.phases",
    "TakenOver": "kboot.machine.power",
    "Wanted": "kboot.machine.expectations",
    "can_persist": "kboot.machine.backends",
    "firmware_for": "kboot.machine.settings",
    "join": "kboot.machine.power",
    "kernel_of": "kboot.machine.settings",
    "open_backend": "kboot.machine.backends",
    "own_kernel": "kboot.machine.settings",
    "persistent_machines": "kboot.machine.backends",
    "power_on": "kboot.machine.power",
    "remove_machine": "kboot.machine.backends",
    "reopen_backend": "kboot.machine.backends",
    "settings_for": "kboot.machine.settings",
    "take_over": "kboot.machine.power",
    "upload": "kboot.machine.publishing",
    "wanted": "kboot.machine.expectations",
}


if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return found
