"""Every error kboot raises, named by who has to act.

::

    KbootError
    ├── ConfigError          the user: an option, a file, a kernel image   exit code 2
    ├── InfraError           the host: QEMU, nginx, the cluster            exit code 3
    │   ├── ProcessError     a program failed, or is not installed
    │   │   └── ProcessTimeout   it took too long
    │   ├── ClusterError     the cluster refused, failed, or lost something
    │   ├── ConsoleClosed    the serial line went away
    │   └── ScriptEnded      the boot script started no kernel; ``.state`` says where it ended
    └── GuestError           the kernel or its user space                  exit code 1
        ├── GuestTimeout     it hung, or never got there in time
        │   ├── NoCrash          the crash that was expected did not come
        │   ├── NoReboot         the machine runs on instead of rebooting
        │   └── HungAfterPanic   its kernel died and then stood still
        ├── KernelCrash      it crashed; ``.report`` says how
        │   ├── WrongCrash       another crash than the expected one
        │   └── SecondCrash      one more crash after the expected one
        ├── RebootLoop       it reboots, and is down again before it is ready
        ├── WrongKernel      the kernel that runs is not the one that was pushed
        ├── SuiteFailed      cases of a test suite in the guest failed, crashed or were not run
        ├── CommandFailed    a command in the guest exited non-zero; ``.result`` has its output
        └── IpxeCommandFailed    a command at iPXE's prompt failed; ``.result`` has its output

The message names the culprit and says where to look; it is written to be shown as it is, without a
traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from kboot.crash import CrashReport
    from kboot.guest import CommandResult
    from kboot.ipxe.prompt import IpxeResult


class KbootError(Exception):
    """Anything kboot raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(KbootError):
    """The user has to act: an option, a configuration file, or an input file is wrong."""

    exit_code = 2


class InfraError(KbootError):
    """The host has to be mended: nothing was learnt about the kernel."""

    exit_code = 3


class ProcessError(InfraError):
    """A program on this host is missing or failed."""


class ProcessTimeout(ProcessError):
    """A program on this host ran out of time and was killed."""


class ClusterError(InfraError):
    """The cluster refused a request, could not do it, or lost what it had."""


class ConsoleClosed(InfraError):
    """The serial line was closed from the other side."""


ScriptState = Literal["prompt", "waits", "firmware", "stopped", "loop", "hang"]


class ScriptEnded(InfraError):
    """A boot script has not started a kernel.

    Its `state`: at iPXE's ``prompt``, it ``waits`` at a menu or for a key, back in the
    ``firmware``, ``stopped`` with a message, in a ``loop``, or in a ``hang``.
    """

    def __init__(self, message: str, state: ScriptState) -> None:
        super().__init__(message)
        self.state = state


class GuestError(KbootError):
    """The kernel under test, or its user space, is at fault."""

    exit_code = 1


class GuestTimeout(GuestError):
    """The guest did not get there in its time."""


class NoCrash(GuestTimeout):
    """The crash that a test expected did not come."""


class NoReboot(GuestTimeout):
    """The machine did not reboot: its firmware never ran again."""


class HungAfterPanic(GuestTimeout):
    """The kernel crashed as expected, and then stood still instead of rebooting."""


class RebootLoop(GuestError):
    """The machine went down again before it was ready."""


class WrongKernel(GuestError):
    """A kernel came up, but not the one that was pushed."""


class KernelCrash(GuestError):
    """The kernel crashed; `report` tells how."""

    def __init__(self, message: str, report: CrashReport) -> None:
        super().__init__(message)
        self.report = report


class WrongCrash(KernelCrash):
    """The kernel crashed otherwise than a test expected."""


class SecondCrash(KernelCrash):
    """The kernel crashed as expected, and then once more."""


class CommandFailed(GuestError):
    """A command in the guest exited with a status that is not 0."""

    def __init__(self, message: str, result: CommandResult) -> None:
        super().__init__(message)
        self.result = result


class SuiteFailed(GuestError):
    """Cases of a test suite failed, crashed or were not run."""


class IpxeCommandFailed(GuestError):
    """A command at iPXE's prompt has failed."""

    def __init__(self, message: str, result: IpxeResult) -> None:
        super().__init__(message)
        self.result = result


@contextlib.contextmanager
def refusal_named(what: str) -> Iterator[None]:
    """In the ``with``, what we may not read or look for is a `ConfigError` about `what`."""
    try:
        yield
    except PermissionError as error:
        raise ConfigError(
            f"{what}: {error.filename}: permission denied; make it readable for who runs kboot"
        ) from error
