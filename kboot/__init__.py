"""kboot boots kernels through DHCP, iPXE and HTTP in virtual machines, and tests them.

The names in `__all__` are the public interface; everything else may change at any time. They are
imported when they are first used: the pytest plugin is loaded in every pytest run, and must not
bring in everything.

The errors, by who has to act::

    KbootError
    |-- ConfigError   the user: an option, a file, a kernel image
    |-- InfraError    the host or the cluster: counts as error
    |   `-- ProcessError (ProcessTimeout), ClusterError, ConsoleClosed
    `-- GuestError    the kernel or its user space: counts as failure
        |-- GuestTimeout: NoCrash, NoReboot (HungAfterPanic)
        |-- KernelCrash: WrongCrash, SecondCrash
        `-- CommandFailed, RebootLoop, SuiteFailed, WrongKernel
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kboot.backend import Backend, BootServer, Fetch, VirtualMachine
    from kboot.checks import Check, Finding
    from kboot.config import Config
    from kboot.console import Console, Line, Match
    from kboot.crash import CrashKind, CrashReport, Frame, Opened, Scanner
    from kboot.deadline import Deadline
    from kboot.errors import (
        ClusterError,
        CommandFailed,
        ConfigError,
        ConsoleClosed,
        GuestError,
        GuestTimeout,
        HungAfterPanic,
        InfraError,
        IpxeCommandFailed,
        KbootError,
        KernelCrash,
        NoCrash,
        NoReboot,
        ProcessError,
        ProcessTimeout,
        RebootLoop,
        ScriptEnded,
        SecondCrash,
        SuiteFailed,
        WrongCrash,
        WrongKernel,
    )
    from kboot.evidence import (
        BootRecord,
        CaseResult,
        Evidence,
        PhaseRecord,
        Run,
        find_evidence,
        read_evidence,
        read_run,
    )
    from kboot.guest import BackgroundCommand, CommandRecord, CommandResult, Guest
    from kboot.ipxe.prompt import IpxeResult
    from kboot.kernel import Kernel, read_kernel, require_architecture
    from kboot.machine import (
        ExpectedCrash,
        Machine,
        MachineSettings,
        Milestone,
        Phase,
        open_backend,
        power_on,
        settings_for,
    )
    from kboot.machine.boot import Boot
    from kboot.machine.ipxe_machine import IpxeMachine
    from kboot.machine_spec import MachineSpec
    from kboot.results.cases import Case, Status, SuiteResults
    from kboot.rootfs import module_initramfs, overlay_initramfs, resolve_rootfs, tiny_initramfs
    from kboot.session import Session, open_session

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "BackgroundCommand",
    "Boot",
    "BootRecord",
    "BootServer",
    "Case",
    "CaseResult",
    "Check",
    "ClusterError",
    "CommandFailed",
    "CommandRecord",
    "CommandResult",
    "Config",
    "ConfigError",
    "Console",
    "ConsoleClosed",
    "CrashKind",
    "CrashReport",
    "Deadline",
    "Evidence",
    "ExpectedCrash",
    "Fetch",
    "Finding",
    "Frame",
    "Guest",
    "GuestError",
    "GuestTimeout",
    "HungAfterPanic",
    "InfraError",
    "IpxeCommandFailed",
    "IpxeMachine",
    "IpxeResult",
    "KbootError",
    "Kernel",
    "KernelCrash",
    "Line",
    "Machine",
    "MachineSettings",
    "MachineSpec",
    "Match",
    "Milestone",
    "NoCrash",
    "NoReboot",
    "Opened",
    "Phase",
    "PhaseRecord",
    "ProcessError",
    "ProcessTimeout",
    "RebootLoop",
    "Run",
    "Scanner",
    "ScriptEnded",
    "SecondCrash",
    "Session",
    "Status",
    "SuiteFailed",
    "SuiteResults",
    "VirtualMachine",
    "WrongCrash",
    "WrongKernel",
    "find_evidence",
    "module_initramfs",
    "open_backend",
    "open_session",
    "overlay_initramfs",
    "power_on",
    "read_evidence",
    "read_kernel",
    "read_run",
    "require_architecture",
    "resolve_rootfs",
    "settings_for",
    "tiny_initramfs",
]

#: The module of each name.
_HOMES = {
    "Backend": "kboot.backend",
    "BackgroundCommand": "kboot.guest",
    "Boot": "kboot.machine.boot",
    "BootRecord": "kboot.evidence",
    "BootServer": "kboot.backend",
    "Case": "kboot.results.cases",
    "CaseResult": "kboot.evidence",
    "Check": "kboot.checks",
    "ClusterError": "kboot.errors",
    "CommandFailed": "kboot.errors",
    "CommandRecord": "kboot.guest",
    "CommandResult": "kboot.guest",
    "Config": "kboot.config",
    "ConfigError": "kboot.errors",
    "Console": "kboot.console",
    "ConsoleClosed": "kboot.errors",
    "CrashKind": "kboot.crash",
    "CrashReport": "kboot.crash",
    "Deadline": "kboot.deadline",
    "Evidence": "kboot.evidence",
    "ExpectedCrash": "kboot.machine",
    "Fetch": "kboot.backend",
    "Finding": "kboot.checks",
    "Frame": "kboot.crash",
    "Guest": "kboot.guest",
    "GuestError": "kboot.errors",
    "GuestTimeout": "kboot.errors",
    "HungAfterPanic": "kboot.errors",
    "InfraError": "kboot.errors",
    "IpxeCommandFailed": "kboot.errors",
    "IpxeMachine": "kboot.machine.ipxe_machine",
    "IpxeResult": "kboot.ipxe.prompt",
    "KbootError": "kboot.errors",
    "Kernel": "kboot.kernel",
    "KernelCrash": "kboot.errors",
    "Line": "kboot.console",
    "Machine": "kboot.machine",
    "MachineSettings": "kboot.machine",
    "MachineSpec": "kboot.machine_spec",
    "Match": "kboot.console",
    "Milestone": "kboot.machine",
    "NoCrash": "kboot.errors",
    "NoReboot": "kboot.errors",
    "Opened": "kboot.crash",
    "Phase": "kboot.machine",
    "PhaseRecord": "kboot.evidence",
    "ProcessError": "kboot.errors",
    "ProcessTimeout": "kboot.errors",
    "RebootLoop": "kboot.errors",
    "Run": "kboot.evidence",
    "Scanner": "kboot.crash",
    "ScriptEnded": "kboot.errors",
    "SecondCrash": "kboot.errors",
    "Session": "kboot.session",
    "Status": "kboot.results.cases",
    "SuiteFailed": "kboot.errors",
    "SuiteResults": "kboot.results.cases",
    "VirtualMachine": "kboot.backend",
    "WrongCrash": "kboot.errors",
    "WrongKernel": "kboot.errors",
    "find_evidence": "kboot.evidence",
    "module_initramfs": "kboot.rootfs",
    "open_backend": "kboot.machine",
    "open_session": "kboot.session",
    "overlay_initramfs": "kboot.rootfs",
    "power_on": "kboot.machine",
    "read_evidence": "kboot.evidence",
    "read_kernel": "kboot.kernel",
    "read_run": "kboot.evidence",
    "require_architecture": "kboot.kernel",
    "resolve_rootfs": "kboot.rootfs",
    "settings_for": "kboot.machine",
    "tiny_initramfs": "kboot.rootfs",
}


if not TYPE_CHECKING:  # a type checker would take every name for one of ours

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'kboot' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
