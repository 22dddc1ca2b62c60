"""A persistent pool: ``python -m kboot.pool.service``, and what is asked of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kboot import rpc, service
from kboot.backend import ReplicaBackend
from kboot.config import load
from kboot.errors import ConfigError, InfraError
from kboot.machine import Machine
from kboot.pool.pool import ALIVE, Lease, Pool, PoolMachine, open_pool
from kboot.pool.replicas import open_replicas
from kboot.rpc import Request
from kboot.session import Session, open_session
from kboot.state import evidence_directory

KIND = service.Kind(name="pool", command="kboot pool")

_LOOK_S = 0.5
#: Of machines that were taken out, so many are remembered, and their evidence is kept.
_BROKEN_KEPT = 50


class PoolServer:
    """Answers requests about one pool."""

    def __init__(self, server: service.Server) -> None:
        self._server = server
        self._up = threading.Event()
        self._pool: Pool
        self._evidence: Path
        self._broken: list[dict[str, str]] = []

    def run(self) -> None:
        """Have the machines, and answer until it is to end."""
        order = self._server.order
        config = load(order["options"], os.environ, Path(order["directory"]))
        name = self._server.service.name
        self._evidence = config.evidence or evidence_directory(f"pool-{name}")
        with (
            rpc.serving(self._server.service.path, self.answer),
            open_session(config, evidence=self._evidence, prefix="p-") as session,
            _pool_of(
                *(session, order["replicas"], order["max_age_s"]),
                check=order["check"],
                on_ended=self._see_end,
            ) as self._pool,
        ):
            # Who ends it while machines boot does not wait for that.
            self._server.on_stop = session.leave_boots
            self._up.set()
            while not self._server.stopping.wait(_LOOK_S):
                session.tell_of_evidence()
        if config.evidence is None:
            # Of machines that were restored, and did not break, nothing is kept.
            with contextlib.suppress(OSError):
                self._evidence.rmdir()

    def _see_end(self, machine: Machine, fault: str) -> None:
        """Keep the evidence of a machine that broke, and of no other."""
        directory = machine.evidence_directory
        if fault:
            found = {"name": machine.name, "fault": fault, "evidence": str(directory)}
            self._broken.append(found)
            for former in self._broken[:-_BROKEN_KEPT]:
                self._broken.remove(former)
                shutil.rmtree(former["evidence"], ignore_errors=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)

    def answer(self, request: Request) -> Any:
        """Do what a client asks for, on its thread."""
        if request.verb == "stop":
            self._server.end()
            return str(self._evidence)
        while not self._up.wait(_LOOK_S):
            request.check_client()
            if self._server.stopping.is_set():
                raise InfraError("the pool is being stopped")
        match request.verb:
            case "wait":
                self._wait(request)
            case "acquire":
                return self._acquire(request)
            case "exec":
                return self._exec(request)
            case "release":
                return self._release(request)
            case "scale":
                self._pool.scale(int(request.seconds("replicas")))
            case "drain":
                self._pool.drain()
            case "status":
                pass
            case verb:
                raise ConfigError(f"a pool cannot {verb}")
        return self._status()

    def _wait(self, request: Request) -> None:
        """Until all machines are there."""
        told = -1
        while (there := len(self._pool.machines)) < self._pool.replicas:
            request.check_client()
            if there != told:
                told = there
                what = f"{there} of {self._pool.replicas} machines are ready"
                request.send_event({"event": "progress", "what": what})
            if self._pool.trouble or self._server.stopping.is_set():
                raise InfraError(self._why_incomplete())
            time.sleep(_LOOK_S / 10)

    def _why_incomplete(self) -> str:
        if self._server.stopping.is_set():
            return "the pool is being stopped"
        name = self._server.service.name
        return (
            f"{self._pool.trouble}; see {self._evidence}. The pool {name} goes on trying: "
            f"kboot pool list {name}, or kboot pool down {name}"
        )

    def _status(self) -> dict[str, Any]:
        return {
            "name": self._server.service.name,
            "replicas": self._pool.replicas,
            "trouble": self._pool.trouble,
            "draining": self._pool.draining,
            "machines": [_described(each) for each in self._pool.machines],
            "broken": self._broken,
        }

    def _acquire(self, request: Request) -> None:
        """Lease a machine for as long as the client stays connected, and no longer than `ttl`."""
        lease: Lease = self._pool.acquire(
            request.text("holder"),
            ttl=request.seconds("ttl"),
            timeout=request.seconds("timeout"),
            still_wanted=request.check_client,
        )
        try:
            connection = request.take_connection(
                {"lease": lease.identifier, "machine": lease.machine.name}
            )
            with contextlib.suppress(OSError):
                while connection.recv(1 << 10):
                    pass
        finally:
            self._pool.release(lease.identifier)

    def _release(self, request: Request) -> dict[str, str]:
        """What is wrong with the machine that is given back, and where its evidence is kept."""
        identifier = request.text("lease")
        evidence = [
            str(each.machine.evidence_directory)
            for each in self._pool.machines
            if each.lease and each.lease.identifier == identifier
        ]
        return {"fault": self._pool.release(identifier), "evidence": "".join(evidence)}

    def _exec(self, request: Request) -> dict[str, Any]:
        result = self._pool.run(
            request.text("lease"), request.text("command"), timeout=request.seconds("timeout")
        )
        return {
            "exit_status": result.exit_status,
            "stdout": result.stdout_bytes.decode("latin-1"),
            "stderr": result.stderr_bytes.decode("latin-1"),
        }


@contextlib.contextmanager
def _pool_of(
    session: Session,
    replicas: int,
    max_age_s: float | None,
    *,
    on_ended: Callable[[Machine, str], None],
    check: str = ALIVE,
) -> Iterator[Pool]:
    """The pool, kept by the backend where that can."""
    backend = session.backend
    if not isinstance(backend, ReplicaBackend):
        with open_pool(
            _Starter(session).start,
            replicas=replicas,
            max_age_s=max_age_s,
            check=check,
            on_ended=on_ended,
        ) as pool:
            yield pool
        return
    with (
        open_replicas(session, backend, replicas) as source,
        open_pool(
            source.start,
            replicas=replicas,
            max_age_s=max_age_s,
            check=check,
            on_ending=source.take_out_broken,
            on_ended=on_ended,
            supply=source.supply,
        ) as pool,
    ):
        yield pool


class _Starter:
    """Starts the pool's machines: all go on from one that was saved, where that can be."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._settings = session.settings(session.config)

    @contextlib.contextmanager
    def start(self) -> Iterator[Machine]:
        """A machine that is pristine and ready."""
        saved = self._session.saved(self._settings)
        with self._session.powered_on(self._settings, name="machine", saved=saved) as machine:
            if saved is None:
                machine.wait_until_ready()
            yield machine


def _described(each: PoolMachine) -> dict[str, Any]:
    now = time.monotonic()
    return {
        "name": each.machine.name,
        "state": each.state.value,
        "age_s": round(now - each.started, 1),
        "start_s": round(each.start_s, 2),
        "holder": each.lease.holder if each.lease else "",
        "expires_s": round(each.lease.expires - now, 1) if each.lease else None,
        "fault": each.fault,
    }


if __name__ == "__main__":
    sys.exit(service.serve(KIND, sys.argv[1:], lambda server: PoolServer(server).run()))
