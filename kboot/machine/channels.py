"""How commands reach a guest that is up: over its console, or by ssh."""

from __future__ import annotations

from kboot.backend import SshVirtualMachine, VirtualMachine
from kboot.console import Console
from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError
from kboot.guest import CommandHistory, Guest, log_in
from kboot.guest.ssh import SshRunner
from kboot.log import logger, step
from kboot.machine.settings import MachineSettings
from kboot.ssh import connect

#: For a server that listens already.
_AUTO_LIMIT_S = 15.0

#: proc(5): local address with port 22, remote address, and the state LISTEN.
_LISTENS = "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q ':0016 [0-9A-F]*:0000 0A '"


class Channels:
    """The ways into the guest of one machine: a shell on its console, and ssh where that is wanted.

    They end with each boot, and are opened again in the next one.
    """

    def __init__(self, vm: VirtualMachine, console: Console) -> None:
        self._vm = vm
        self._console = console
        self._on_console: Guest | None = None
        self._by_ssh: Guest | None = None
        #: What was run by either way, in all boots.
        self.history = CommandHistory()

    @property
    def guest(self) -> Guest:
        """By ssh if that was wanted, or else on its console. `GuestError` if it is not up."""
        return self._by_ssh or self.on_console

    @property
    def on_console(self) -> Guest:
        """On its console. `GuestError` if it is not up."""
        if self._on_console is None:
            raise GuestError("the guest is not up: its boot, or its reboot, was not waited for")
        return self._on_console

    @property
    def has_console(self) -> bool:
        """Whether we are logged in there."""
        return self._on_console is not None

    @property
    def has_ssh(self) -> bool:
        """Whether commands go by ssh."""
        return self._by_ssh is not None

    def log_in(self, settings: MachineSettings, deadline: Deadline) -> Guest:
        """On the console."""
        self._on_console = log_in(
            self._console, settings.user, settings.password, deadline, history=self.history
        )
        return self._on_console

    def use_console(self, guest: Guest) -> None:
        """Run commands by `guest`, which is logged in on the console already."""
        self._on_console = guest

    def connect(self, settings: MachineSettings, deadline: Deadline) -> None:
        """Connect by ssh, where the settings want that."""
        self._by_ssh = _connect_by_ssh(
            self._vm, self._console, settings, self.on_console, self.history, deadline
        )

    def release_console(self) -> None:
        """Log off the console, for somebody else to use it."""
        if self._on_console is not None:
            self._on_console.close()
            self._on_console = None

    def disconnect(self) -> None:
        """End the ssh connection, if there is one."""
        by_ssh, self._by_ssh = self._by_ssh, None
        if by_ssh:
            by_ssh.close()

    def close(self) -> None:
        """This boot of the guest is over: no way leads into it any more."""
        for guest in (self._on_console, self._by_ssh):
            if guest is not None:
                guest.end("the machine has left that boot; machine.guest is the one of the next")
        self._on_console = None
        self.disconnect()


def _connect_by_ssh(
    vm: VirtualMachine,
    console: Console,
    settings: MachineSettings,
    on_console: Guest,
    history: CommandHistory,
    deadline: Deadline,
) -> Guest | None:
    """The guest by ssh, if the settings want that; None if it is to be reached by its console.

    With ``auto``, None also if the guest has no ssh server or does not let us in. `ConfigError` if
    ssh is demanded of a machine that cannot be reached by it; `GuestError` if of such a guest.
    """
    if settings.channel == "console":
        return None
    demanded = settings.channel == "ssh"
    if not isinstance(vm, SshVirtualMachine):
        if demanded:
            raise ConfigError(f"{vm.description}: cannot be reached by ssh; choose channel=console")
        return None
    if not demanded and on_console.unrecorded().run(_LISTENS).exit_status != 0:
        return None
    host, port = vm.ssh_address()
    limit = deadline if demanded else deadline.within(_AUTO_LIMIT_S)
    with step("connect by ssh"):
        try:
            connection = connect(host, port, settings.user, limit)
        except GuestError as error:
            if demanded:
                raise
            logger.debug("commands go over the serial line: %s", error)
            return None
    return Guest(SshRunner(connection, console.watch("answer by ssh")), history=history)
