"""A guest that reaches its boot server and nothing else."""

from __future__ import annotations

import socket
from pathlib import Path

from kboot.backend import BootServer
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.kernel import read_kernel
from kboot.machine import Machine, open_backend, power_on
from kboot.process import find_program
from tests.saved_machines import networked


def _can_fetch(machine: Machine, url: str) -> bool:
    return machine.guest.run(f"timeout 10 wget -q -O - {url}").exit_status == 0


def _forwarders(server: BootServer) -> list[str]:
    port = server.url("").split(":")[2].partition("/")[0]
    wanted = [find_program("busybox"), "nc", "127.0.0.1", port]
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[:4] == wanted:
            found.append(entry.parent.name)
    return found


def test_an_isolated_guest_boots_and_does_not_reach_the_hosts_services(
    debian_kernel: Path, tmp_path: Path
) -> None:
    kernel = read_kernel(debian_kernel)
    with (
        socket.create_server(("127.0.0.1", 0)) as service,
        open_backend(Config(accel="tcg", network="isolated")) as backend,
        backend.serve(Deadline(60)) as server,
    ):
        with power_on(
            backend, server, kernel, networked(kernel), evidence_directory=tmp_path / "evidence"
        ) as machine:
            machine.wait_until_ready()
            machine.guest.wait_until_succeeds("ip addr show dev eth0 | grep 10.0.2.15", timeout=30)
            assert _can_fetch(machine, server.url("beacon/up"))
            assert not _can_fetch(machine, f"http://10.0.2.2:{service.getsockname()[1]}/")
            service.settimeout(0.1)
            try:
                _connection, peer = service.accept()
            except TimeoutError:
                peer = None
            assert peer is None
        for _ in Deadline(10).poll(0.1):
            if not _forwarders(server):
                break
        assert _forwarders(server) == []
