"""A persistent fleet: ``python -m kboot.fleet.service``, and what is asked of it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kboot import rpc, service
from kboot.config import Config, load
from kboot.errors import ConfigError, InfraError, KbootError
from kboot.fleet.fleet import Fleet
from kboot.fleet.layout import Role, read_roles
from kboot.fleet.start import open_fleet
from kboot.machine_network import naming
from kboot.rpc import Request
from kboot.session import open_session
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
        #: One thing at a time is done with the machines.
        self._lock = threading.Lock()
        #: The cuts that hold, the last one ended first.
        self._cuts = contextlib.ExitStack()
        self._cut: set[str] = set()

    def run(self) -> None:
        """Start the machines, and answer until it is to end."""
        order = self._server.order
        roles = read_roles(order["roles"])
        config, configs = configs_of(roles, order["options"], Path(order["directory"]))
        name = self._server.service.name
        self._evidence = config.evidence or evidence_directory(f"fleet-{name}")
        with (
            rpc.serving(self._server.service.path, self.answer),
            open_session(config, evidence=self._evidence, prefix="f-") as session,
            open_fleet(session, roles, configs) as self._fleet,
            self._cuts,
        ):
            self._up.set()
            self._server.stopping.wait()

    def answer(self, request: Request) -> Any:
        """Do what a client asks for, on its thread."""
        if request.verb == "stop":
            return self._down()
        while not self._up.wait(_LOOK_S):
            request.check_client()
            if self._server.stopping.is_set():
                raise InfraError("the fleet is being stopped")
        with self._lock:
            match request.verb:
                case "status":
                    return self._status()
                case "exec":
                    return self._exec(request)
                case "cut":
                    return self._pull(request)
                case "heal":
                    return self._heal()
        raise ConfigError(f"a fleet cannot {request.verb}")

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
        command, timeout = request.text("command"), request.seconds("timeout")
        results = self._group(request).run(command, timeout=timeout)
        return {
            name: {
                "exit_status": result.exit_status,
                "stdout": result.stdout,
                "stderr": result.stderr,
            }
            for name, result in results.items()
        }

    def _pull(self, request: Request) -> dict[str, Any]:
        cut = self._cuts.enter_context(self._fleet.cut(*request.arguments["names"]))
        self._cut |= set(cut.machines)
        return {"machines": cut.machines, "skew_s": cut.skew_s}

    def _heal(self) -> list[str]:
        healed = sorted(self._cut)
        self._cuts.close()
        self._cut.clear()
        return healed

    def _group(self, request: Request) -> Any:
        names = request.arguments["names"]
        return self._fleet.role(*names) if names else self._fleet.all


if __name__ == "__main__":
    sys.exit(service.serve(KIND, sys.argv[1:], lambda server: FleetServer(server).run()))
