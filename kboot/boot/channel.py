"""How commands reach a guest that is up: over the serial line, or by ssh."""

from __future__ import annotations

from kboot.backend import Machine, SshMachine
from kboot.boot.settings import BootSettings
from kboot.console import Console
from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError
from kboot.guest import Guest
from kboot.guest.ssh_runner import SshRunner
from kboot.log import logger, step
from kboot.ssh import connect

#: For a server that listens already.
_AUTO_LIMIT_S = 15.0

#: proc(5): local address with port 22, remote address, and the state LISTEN.
_LISTENS = "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q ':0016 [0-9A-F]*:0000 0A '"


def reach_by_ssh(
    machine: Machine,
    console: Console,
    settings: BootSettings,
    on_console: Guest,
    deadline: Deadline,
) -> Guest | None:
    """The guest by ssh, if the settings want that; None if it is to be reached by its console.

    With ``auto``, None also if the guest has no ssh server or does not let us in. `ConfigError` if
    ssh is demanded of a machine that cannot be reached by it; `GuestError` if of such a guest.
    """
    if settings.channel == "console":
        return None
    demanded = settings.channel == "ssh"
    if not isinstance(machine, SshMachine):
        if demanded:
            raise ConfigError(
                f"{machine.description}: cannot be reached by ssh; choose channel=console"
            )
        return None
    if not demanded and on_console.run(_LISTENS).exit_status != 0:
        return None
    host, port = machine.ssh_address()
    limit = deadline if demanded else deadline.within(_AUTO_LIMIT_S)
    with step("connect by ssh"):
        try:
            connection = connect(host, port, settings.user, limit)
        except GuestError as error:
            if demanded:
                raise
            logger.debug("commands go over the serial line: %s", error)
            return None
    return Guest(SshRunner(connection, console.watch("answer by ssh")))
