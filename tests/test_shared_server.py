"""One boot server for many processes, which lives and ends with one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot import state
from kboot.backend import BootServer
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.shared_server import SharedServer, share_server, use_shared_server

CONFIG = Config(accel="tcg")


pytestmark = pytest.mark.usefixtures("runs_apart")


@pytest.fixture
def owner() -> Iterator[Path]:
    with share_server(CONFIG) as directory:
        yield directory


def get(server: BootServer, path: str) -> bytes:
    """What is there for a guest, fetched from here."""
    url = server.url(path).replace("10.0.2.2", "127.0.0.1")
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  ours
        content: bytes = answer.read()
        return content


def wait_for_fetches(server: BootServer, count: int) -> None:
    """nginx notes a request when its answer is gone, which may be after it has come."""
    for _ in Deadline(20).poll(0.02):
        if len([fetch for fetch in server.fetches() if fetch.query]) >= count:
            return
    pytest.fail(f"there are not {count} requests in the log")


def nginx_of(parent: int) -> list[int]:
    """The process ids of a process's nginx."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = entry.read_text().rpartition(")")
        except OSError:
            continue
        if "(nginx" in name and rest.split()[1] == str(parent):
            found.append(int(entry.parent.name))
    return found


def test_nothing_is_started_before_somebody_asks() -> None:
    # Machines that other tests share may have one as well.
    before = nginx_of(os.getpid())
    with share_server(CONFIG) as owner:
        assert nginx_of(os.getpid()) == before
        with use_shared_server(owner) as first, use_shared_server(owner) as second:
            assert len(nginx_of(os.getpid())) == len(before) + 1
            assert first.server.url("") == second.server.url("")
        # A later worker, say one that replaces a dead one, finds the same.
        with use_shared_server(owner) as third:
            assert third.server.url("") == first.server.url("")


def test_what_one_stores_all_have(owner: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "vmlinuz"
    artifact.write_bytes(b"kernel")
    with use_shared_server(owner) as first, use_shared_server(owner) as second:
        assert first.server.put(artifact) == second.server.put(artifact)
        script = first.server.write("m0/boot.ipxe", "#!ipxe\n")
        assert script == second.server.url("scripts/m0/boot.ipxe")
        assert get(second.server, "scripts/m0/boot.ipxe") == b"#!ipxe\n"
        stored = list(state.runs_directory().glob("run-*/nginx-*/files/artifacts/*"))
        assert len(stored) == 1
        assert first.server.remove(second.server.put(artifact)) == len(b"kernel")
        assert not stored[0].exists()


def test_each_sees_every_request_once_and_in_order(owner: Path) -> None:
    with use_shared_server(owner) as first, use_shared_server(owner) as second:
        get(first.server, "beacon/one?m=gw0-1&b=00")
        wait_for_fetches(first.server, 1)
        get(first.server, "beacon/two?m=gw1-1&b=11")
        wait_for_fetches(second.server, 2)
        for server in (first.server, second.server):
            for _ in range(2):
                found = [fetch for fetch in server.fetches() if fetch.query]
                assert [fetch.path for fetch in found] == ["beacon/one", "beacon/two"]
                assert [fetch.query for fetch in found] == ["m=gw0-1&b=00", "m=gw1-1&b=11"]


def test_its_evidence_lands_where_it_is_asked_for(owner: Path, tmp_path: Path) -> None:
    with use_shared_server(owner) as shared:
        shared.server.evidence(tmp_path)
    assert "listen 127.0.0.1" in (tmp_path / "nginx.conf").read_text()


def test_a_dead_server_is_said_to_be_dead(owner: Path) -> None:
    before = nginx_of(os.getpid())
    with use_shared_server(owner) as shared:
        shared.server.check()
        (pid,) = set(nginx_of(os.getpid())) - set(before)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(InfraError, match="nginx was killed by signal 9"):
            shared.server.check()


def test_a_server_that_does_not_start_is_everyones_trouble() -> None:
    with share_server(Config(accel="tcg", nginx="/nonexistent/nginx")) as directory:
        for _ in range(2):
            with (
                pytest.raises(InfraError, match="nginx not found on this host"),
                use_shared_server(directory),
            ):
                pass


def test_a_request_that_fails_leaves_the_next_one_alone(owner: Path, tmp_path: Path) -> None:
    with use_shared_server(owner) as shared:
        with pytest.raises(ConfigError, match="cannot read"):
            shared.server.put(tmp_path / "absent")
        shared.server.check()


def test_who_outlives_the_owner_is_told_so() -> None:
    before = nginx_of(os.getpid())
    with share_server(CONFIG) as directory:
        connection = use_shared_server(directory)
        shared = connection.__enter__()
    with pytest.raises(InfraError, match="boot server"):
        shared.server.check()
    connection.__exit__(None, None, None)
    with pytest.raises(InfraError, match="is gone"), use_shared_server(directory):
        pass
    assert nginx_of(os.getpid()) == before


OWNER = """
    import sys, time
    from kboot.config import Config
    from kboot.shared_server import share_server
    with share_server(Config(accel="tcg")) as directory:
        print(directory, flush=True)
        time.sleep(60)
"""


def test_an_owner_that_is_killed_leaves_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(OWNER)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        directory = Path(process.stdout.readline().strip())
        with use_shared_server(directory) as shared:
            (pid,) = nginx_of(process.pid)
            process.kill()
            process.wait()
            assert_gone(shared)
        for _ in Deadline(5).poll(0.05):
            if not Path(f"/proc/{pid}").exists():
                break
        else:
            pytest.fail("nginx outlived its run")
    assert directory in {run.directory for run in state.sweep()}
    assert not directory.exists()


def assert_gone(shared: SharedServer) -> None:
    with pytest.raises(InfraError, match="the process that has this run's boot server is gone"):
        shared.server.check()


def test_a_tree_and_faults_are_set_through_it_as_on_the_server(owner: Path, tmp_path: Path) -> None:
    (tmp_path / "menu.ipxe").write_text("#!ipxe\n")
    with use_shared_server(owner) as first, use_shared_server(owner) as second:
        one, other = first.server, second.server
        assert one.publish_tree("m1", {"menu.ipxe": tmp_path / "menu.ipxe"}) == ["menu.ipxe"]
        assert get(one, "scripts/m1/menu.ipxe") == b"#!ipxe\n"
        fault = one.fault("scripts/m1/*", status=503, times=3)
        other.fault("scripts/m2/*", status=500)
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            get(other, "scripts/m1/menu.ipxe")
        caught.value.close()
        assert fault.hits == 1
        # Each process takes away its own.
        other.clear_faults()
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            get(other, "scripts/m1/menu.ipxe")
        caught.value.close()
        one.clear_faults()
        assert get(other, "scripts/m1/menu.ipxe") == b"#!ipxe\n"
        assert [fetch.fault for fetch in one.fetches() if fetch.fault] == ["status", "status"]
