"""A persistent fleet: ``python -m kboot.fleet.service``, and what is asked of it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kboot import rpc, service
from kboot.config import Config, load
from kboot.errors import ConfigError, GuestError, InfraError, KbootError
from kboot.fleet.fleet import Fleet
from kboot.fleet.layout import Role, members_of, read_roles
from kboot.fleet.start import open_fleet
from kboot.machine import Machine
from kboot.machine.follower import BootCancelled
from kboot.machine_network import naming, together
from kboot.rpc import Request
from kboot.session import Session, open_session
from kboot.state import evidence_directory

KIND = service.Kind(name="fleet", command="kboot fleet")

#: How soon a client that waits, and has disconnected, is noticed.
_LOOK_S = 0.5


def configs_of(
    roles: tuple[Role, ...], options: Mapping[str, object], directory: Path
) -> tuple[Config, dict[str, Config]]:
    """The configuration of a fleet, and that of each of its roles. `ConfigError` for mistakes."""
    common, configs = load(options, os.environ, directory), {}
    for role in roles:
        with naming(f"the role {role.name}"):
            configs[role.name] = load({**options, **role.settings}, os.environ, directory)
    return common, configs


class FleetServer:
    """Answers requests about one fleet."""

    def __init__(self, server: service.Server) -> None:
        self._server = server
        self._up = threading.Event()
        self._fleet: Fleet
        self._evidence: Path
        self._roles: tuple[Role, ...] = read_roles(server.order["roles"])
        #: Those that were powered on so far.
        self._started: list[Machine] = []
        #: A guest does one thing at a time; its network may be cut meanwhile.
        self._busy = {member: threading.Lock() for member in members_of(self._roles)}
        #: The cuts that hold, the last one ended first; for one client at a time.
        self._cuts = contextlib.ExitStack()
        self._cut: set[str] = set()
        self._cutting = threading.Lock()

    def run(self) -> None:
        """Start the machines, and answer until it is to end."""
        order = self._server.order
        config, configs = configs_of(self._roles, order["options"], Path(order["directory"]))
        name = self._server.service.name
        self._evidence = config.evidence or evidence_directory(f"fleet-{name}")
        try:
            with (
                rpc.serving(self._server.service.path, self.answer),
                open_session(config, evidence=self._evidence, prefix="f-") as session,
            ):
                # Who ends it while it starts does not wait for the boots.
                self._server.on_stop = session.leave_boots
                if not self._server.stopping.is_set():
                    self._hold(session, configs)
        except BootCancelled:
            if not self._server.stopping.is_set():
                raise
        except (GuestError, InfraError) as error:
            if self._started:
                error.args = (f"{error}; see {self._evidence}", *error.args[1:])
            raise

    def _hold(self, session: Session, configs: Mapping[str, Config]) -> None:
        with (
            open_fleet(session, self._roles, configs, on_machine=self._started.append) as fleet,
            self._cuts,
        ):
            self._fleet = fleet
            self._up.set()
            self._server.stopping.wait()

    def answer(self, request: Request) -> Any:
        """Do what a client asks for, on its thread."""
        if request.verb == "stop":
            return self._down()
        if request.verb == "status" and not self._up.is_set():
            return self._status_of_start()
        self._wait_until_up(request)
        acts: dict[str, Callable[[Request], Any]] = {
            "status": lambda _request: self._status(),
            "wait": lambda _request: self._status(),
            "exec": self._exec,
            "restart": self._restart,
            "cut": self._pull,
            "heal": lambda _request: self._heal(),
        }
        if act := acts.get(request.verb):
            return act(request)
        raise ConfigError(f"a fleet cannot {request.verb}")

    def _wait_until_up(self, request: Request) -> None:
        told = -1
        while not self._up.wait(_LOOK_S):
            request.check_client()
            if self._server.stopping.is_set():
                raise InfraError("the fleet is being stopped")
            ready = sum(machine.boot.ready for machine in tuple(self._started))
            if ready != told and request.verb == "wait":
                told = ready
                request.send_event(
                    {
                        "event": "progress",
                        "what": f"{ready} of {len(self._busy)} machines are ready",
                    }
                )

    def _status_of_start(self) -> list[dict[str, Any]]:
        unknown = {"address": "", "what": "", "restored": False, "boots": 0, "evidence": ""}
        return [
            {"name": member, "role": role.name, "state": "starting", **unknown}
            for member, role in members_of(self._roles).items()
        ]

    def _down(self) -> str:
        self._server.end()
        return str(self._evidence)

    def _status(self) -> list[dict[str, Any]]:
        roles = {name: role for role, names in self._fleet.roles.items() for name in names}
        addresses = self._fleet.addresses
        found = []
        for name in self._fleet.names:
            machine = self._fleet[name]
            fault = ""
            try:
                machine.check()
            except KbootError as error:
                fault = str(error)
            found.append(
                {
                    "name": name,
                    "role": roles[name],
                    "address": addresses.get(name, ""),
                    "state": "failed" if fault else "cut" if name in self._cut else "up",
                    "what": fault,
                    "restored": machine.restored_from is not None,
                    "boots": len(machine.boots),
                    "evidence": str(machine.evidence_directory),
                }
            )
        return found

    def _exec(self, request: Request) -> dict[str, Any]:
        """The results by name; of a machine with which something is wrong, what that is."""
        command, timeout = request.text("command"), request.seconds("timeout")

        def run(name: str) -> dict[str, Any]:
            result = self._fleet[name].guest.run(command, timeout=timeout)
            return {
                "exit_status": result.exit_status,
                "stdout": result.stdout_bytes.decode("latin-1"),
                "stderr": result.stderr_bytes.decode("latin-1"),
            }

        return self._each(request, run)

    def _restart(self, request: Request) -> dict[str, Any]:
        def restart(name: str) -> dict[str, Any]:
            self._fleet[name].restart()
            return {}

        return self._each(request, restart)

    def _each(
        self, request: Request, function: Callable[[str], dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Call `function` for the machines that are asked for, all at the same time.

        What is wrong with one of them is its answer, and keeps nobody from having the others'.
        """
        names = request.arguments["names"]
        chosen = self._fleet.role(*names).names if names else self._fleet.names

        def answer(name: str) -> dict[str, Any]:
            while not self._busy[name].acquire(timeout=_LOOK_S):
                request.check_client()
            try:
                return function(name)
            except KbootError as error:
                return {"error": rpc.describe(error)}
            finally:
                self._busy[name].release()

        return together(chosen, answer)

    def _pull(self, request: Request) -> dict[str, Any]:
        with self._cutting:
            cut = self._cuts.enter_context(self._fleet.cut(*request.arguments["names"]))
            self._cut |= set(cut.machines)
            return {"machines": cut.machines, "skew_s": cut.skew_s}

    def _heal(self) -> list[str]:
        with self._cutting:
            healed = [name for name in self._fleet.names if name in self._cut]
            self._cut.clear()
            self._cuts.close()
            return healed


if __name__ == "__main__":
    sys.exit(service.serve(KIND, sys.argv[1:], lambda server: FleetServer(server).run()))
