"""The command ``kboot``: thin commands, and the one place where errors become exit codes.

====  =====================================================================
exit  means
====  =====================================================================
0     done; the kernel is fine
1     the kernel, or its user space, is at fault
2     bad input: an option, a file, a kernel image
3     the host failed, or kboot has a bug: nothing is known about the kernel
====  =====================================================================

And 130, 143 and 129 after Ctrl-C, SIGTERM and SIGHUP, 141 if nobody reads the output any more.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import ClassVar

import click

from kboot import __version__
from kboot.errors import InfraError, KbootError
from kboot.state import disk_fault

_EPILOG = """\
\b
Examples:
  kboot doctor                     check this host
  kboot boot vmlinuz               boot a kernel through DHCP, iPXE and HTTP
  kboot test vmlinuz               run the acceptance tests on it
  pytest --kernel=vmlinuz          run your own tests on it, too
  kboot up --kernel vmlinuz        start a persistent machine
  kboot push bzImage --restart     boot another kernel on it
  kboot exec -- uname -a           run a command in its guest
  kboot crash serial.log           find kernel crashes in any console log
  kboot ktap serial.log            read KUnit's and kselftest's results in one

\b
Exit codes: 0 success, 1 the kernel failed, 2 bad input, 3 the host failed.
KBOOT_DEBUG=1 shows where in kboot an error comes from.
"""


class LazyGroup(click.Group):
    """Commands whose modules are imported when they are used: ``kboot --help`` stays fast."""

    #: Command: where it is, and one line about it.
    commands_by_name: ClassVar[Mapping[str, tuple[str, str]]] = {
        "boot": ("kboot.cli.boot:boot", "Boot a kernel once, and follow its boot."),
        "test": ("kboot.cli.test:test", "Run the acceptance tests on a kernel."),
        "crash": ("kboot.cli.crash:crash", "Find kernel crashes in a console log."),
        "ktap": ("kboot.cli.ktap:ktap", "Read results of kernel test suites in a log."),
        "report": ("kboot.cli.report:report", "Make one HTML file of a run's evidence."),
        "kcidb": ("kboot.cli.kcidb:kcidb", "Make or send a report for KernelCI's database."),
        "compare": ("kboot.cli.compare:compare", "Compare two runs: failures, crashes, times."),
        "bisect": ("kboot.cli.bisect:bisect", "Find the commit that brought a failure."),
        "up": ("kboot.cli.machines:up", "Start a persistent machine."),
        "down": ("kboot.cli.machines:down", "Stop and remove it."),
        "list": ("kboot.cli.machines:list_machines", "List persistent machines."),
        "status": ("kboot.cli.machines:status", "Show a machine's state."),
        "exec": ("kboot.cli.guest:exec_command", "Run a command in the guest."),
        "push": ("kboot.cli.push:push", "Push a kernel, initramfs or module."),
        "pushes": ("kboot.cli.push:pushes", "List pushes, roll back, or free their space."),
        "restart": ("kboot.cli.restart:restart", "Restart a machine, once or in a loop."),
        "reset": ("kboot.cli.restart:reset", "Press a machine's reset button."),
        "panic": ("kboot.cli.restart:panic", "Panic the kernel, and wait for the reboot."),
        "console": ("kboot.cli.console:console", "Attach to the serial console."),
        "logs": ("kboot.cli.console:logs", "Print the console log."),
        "ssh": ("kboot.cli.guest:ssh", "Log in to the guest over ssh."),
        "put": ("kboot.cli.guest:put", "Copy a file into the guest."),
        "get": ("kboot.cli.guest:get", "Copy a file out of the guest."),
        "disks": ("kboot.cli.disks:disks", "List kept disks, remove or clone them."),
        "rootfs": ("kboot.cli.rootfs:rootfs", "Make, list or remove root file systems."),
        "take": ("kboot.cli.machines:take", "Take over a machine on a cluster."),
        "fleet": ("kboot.cli.fleet:fleet", "Machines with roles on one network."),
        "pool": ("kboot.cli.pool:pool", "Machines that are always fresh."),
        "doctor": ("kboot.cli.doctor:doctor", "Check this host or cluster."),
        "cache": ("kboot.cli.maintenance:cache", "List or clear saved machines."),
        "runs": ("kboot.cli.maintenance:runs", "List runs."),
        "gc": ("kboot.cli.maintenance:gc", "Remove dead runs."),
        "manifests": ("kboot.cli.maintenance:manifests", "Print the cluster objects of a run."),
        "completion": ("kboot.cli.maintenance:completion", "Print a shell completion script."),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order of the table."""
        return list(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; each gets ``--verbose``, so that it may stand before or after."""
        if cmd_name not in self.commands_by_name:
            return None
        module, _, attribute = self.commands_by_name[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        group = command.commands.values() if isinstance(command, click.Group) else ()
        for each in (command, *group):
            if all(parameter.name != "verbose" for parameter in each.params):
                each.params.append(_verbose_option())
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command. Click would exit with 1 when nobody reads its output any more."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _OutputClosed from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, help_) for name, (_, help_) in self.commands_by_name.items()]
            )


def _verbose_option() -> click.Option:
    return click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=lambda _context, _option, wanted: _show_log() if wanted else None,
        help="Show each step, with its time.",
    )


def _show_log() -> None:
    _log_to_stderr(logging.DEBUG, "%(relativeCreated)7d ms  %(message)s")


def _log_to_stderr(level: int, line: str) -> None:
    logger = logging.getLogger("kboot")
    for handler in [each for each in logger.handlers if isinstance(each, _StderrHandler)]:
        logger.removeHandler(handler)
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter(line))
    logger.addHandler(handler)
    logger.setLevel(level)


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg] # generic in stubs only
    """Ours, to be told from handlers that others have added."""


@click.command(
    cls=LazyGroup,
    params=[_verbose_option()],
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="kboot", message="%(prog)s %(version)s")
def cli() -> None:
    """Boot kernels through DHCP, iPXE and HTTP in virtual machines, and test them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing escapes as a traceback."""
    _open_standard_streams()
    debug = bool(os.environ.get("KBOOT_DEBUG"))
    if debug:
        _show_log()
    else:
        _log_to_stderr(logging.WARNING, "kboot: %(message)s")
    try:
        with _signals_unwind():
            status = cli.main(
                arguments,
                prog_name="kboot",
                standalone_mode=False,
                # no-color.org. That there is no terminal, click finds out itself.
                color=False if os.environ.get("NO_COLOR") else None,
            )
            # What is still in the buffer may have no reader any more: find out here, not at exit.
            sys.stdout.flush()
            return status if isinstance(status, int) else 0
    except BaseException as error:
        if debug and not isinstance(error, SystemExit | click.ClickException):
            traceback.print_exception(error)
        return _exit_code(error)


def _kernel_hint(error: click.UsageError) -> str:
    """How the command that was used takes a kernel, if it was named the other way."""
    options = (
        {option for each in error.ctx.command.params for option in each.opts} if error.ctx else ()
    )
    if "kernel" in options and isinstance(error, click.NoSuchOption):
        return "the kernel is an argument here" if error.option_name == "--kernel" else ""
    if "--kernel" in options and "unexpected extra argument" in error.message:
        return "a kernel is named by --kernel FILE here"
    return ""


def _exit_code(error: BaseException) -> int:
    """Tell the user about `error`, in one line if possible, and say what to exit with."""
    message = ""
    match error:
        case click.UsageError() if hint := _kernel_hint(error):
            click.UsageError(f"{error.message.rstrip('.')}; {hint}", ctx=error.ctx).show()
            code = error.exit_code
        case click.ClickException():
            error.show()
            code = error.exit_code
        case KbootError():
            message, code = str(error), error.exit_code
        case KeyboardInterrupt() | click.Abort():
            message, code = "interrupted", 128 + signal.SIGINT
        case _Signalled():
            message, code = f"ended by {signal.Signals(error.number).name}", 128 + error.number
        case BrokenPipeError() | _OutputClosed():
            _drop_output()
            code = 128 + signal.SIGPIPE
        case OSError() if fault := disk_fault(error):
            message, code = str(fault), fault.exit_code
            _drop_output()
        case SystemExit():
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        case _:
            words = f"{type(error).__name__}: {error}"
            message = f"a bug in kboot: {words}; KBOOT_DEBUG=1 shows where; please report it"
            code = InfraError.exit_code
    if message:
        with contextlib.suppress(OSError):
            click.echo(f"kboot: error: {message}", err=True)
    return code


def _drop_output() -> None:
    """Python flushes once more on its way out, and would complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """Have the three standard streams, also if whoever started us has closed some of them.

    The next file that is opened would get the number of one that is missing, and be written to.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free: this one.
            os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
        # Standard input stays None where it is closed: see `kboot crash -`.
        if getattr(sys, name) is None and mode == "w":
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


class _OutputClosed(Exception):
    """Nobody reads our output any more: ``kboot ... | head``."""


class _Signalled(BaseException):
    """A signal asks us to end; like KeyboardInterrupt, it unwinds every ``with`` on its way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _signals_unwind() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into exceptions, so that machines and servers are stopped."""

    def unwind(number: int, _frame: FrameType | None) -> None:
        # Once is enough: a second one must not cut the cleaning up short.
        signal.signal(number, signal.SIG_IGN)
        raise _Signalled(number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    old = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        # nohup has SIGHUP ignored, and means it.
        if old[number] is not signal.SIG_IGN:
            signal.signal(number, unwind)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, old[number])
