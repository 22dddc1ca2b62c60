"""kboot boots a kernel the way servers boot, watches its serial console, and judges it.

The names in `__all__` are the public face. They are imported when they are first used: the pytest
plugin is loaded in every pytest run, and must not bring in everything.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kboot.config import Config
    from kboot.console import Console
    from kboot.crash import CrashKind, CrashReport, Scanner
    from kboot.deadline import Deadline
    from kboot.errors import (
        CommandFailed,
        ConfigError,
        GuestError,
        GuestTimeout,
        InfraError,
        KbootError,
        KernelCrash,
        WrongKernel,
    )
    from kboot.guest import CommandRecord, CommandResult, Guest
    from kboot.kernel import Kernel, read_kernel
    from kboot.machine import Machine, MachineSettings, Phase, open_backend, power_on, settings_for
    from kboot.session import Session, open_session

__version__ = "0.1.0"

__all__ = [
    "CommandFailed",
    "CommandRecord",
    "CommandResult",
    "Config",
    "ConfigError",
    "Console",
    "CrashKind",
    "CrashReport",
    "Deadline",
    "Guest",
    "GuestError",
    "GuestTimeout",
    "InfraError",
    "KbootError",
    "Kernel",
    "KernelCrash",
    "Machine",
    "MachineSettings",
    "Phase",
    "Scanner",
    "Session",
    "WrongKernel",
    "open_backend",
    "open_session",
    "power_on",
    "read_kernel",
    "settings_for",
]

#: The modules to look for a name in, the light ones first.
_HOMES = (
    "errors",
    "deadline",
    "config",
    "crash",
    "kernel",
    "console",
    "guest",
    "machine",
    "session",
)


if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name in __all__:
            for home in _HOMES:
                module = importlib.import_module(f"kboot.{home}")
                if name in vars(module):
                    return vars(module)[name]
        raise AttributeError(f"module 'kboot' has no attribute {name!r}")
