"""Requests between our own processes: a real server, real sockets, clients of every kind."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot import rpc
from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestError, InfraError, KbootError
from kboot.supervisor.events import Events


def answer(request: rpc.Request) -> Any:
    """A server that can do a few things."""
    match request.verb:
        case "count":
            for number in range(3):
                request.send_event({"event": "number", "number": number})
            return 3
        case "fail":
            raise GuestError("the guest has failed")
        case "shout":
            request.take_connection("now").sendall(b"no longer JSON")
            return None
        case verb:
            raise ConfigError(f"no {verb}")


@contextlib.contextmanager
def client_of(directory: Path) -> Iterator[rpc.Client]:
    client = rpc.Client(rpc.connect(directory, limit_s=10), lost=lambda: InfraError("it is gone"))
    with contextlib.closing(client):
        yield client


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where a server listens."""
    with rpc.serving(tmp_path, answer, max_clients=2, request_limit_s=0.3):
        yield tmp_path


def test_one_connection_carries_any_number_of_requests(place: Path) -> None:
    events: list[Any] = []
    with client_of(place) as client:
        for _ in range(2):
            assert client.ask("count", on_event=lambda event: events.append(event["number"])) == 3
            with pytest.raises(GuestError, match="the guest has failed"):
                client.ask("fail")
    assert events == [0, 1, 2, 0, 1, 2]


def test_a_connection_can_be_taken_for_other_bytes(place: Path) -> None:
    with client_of(place) as client:
        assert client.ask("shout") == "now"
        said = client.wire.take_rest()
        while data := client.wire.socket.recv(100):
            said += data
    assert said == b"no longer JSON"


def test_more_clients_than_a_server_takes_are_told_so(place: Path) -> None:
    with client_of(place) as first, client_of(place):
        with pytest.raises(InfraError, match="2 clients already"), client_of(place):
            pass
        assert first.ask("count") == 3
    for _ in Deadline(10).poll(0.02):
        with contextlib.suppress(InfraError), client_of(place) as client:
            assert client.ask("count") == 3
            break
    else:
        pytest.fail("nobody is let in any more")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", "did not come in time"),
        (b'{"verb": "cou', "did not come in time"),
        (b"no object\n", "Expecting value"),
        (b'["count"]\n', "no object"),
        (b"{}\n", "the request has no verb"),
    ],
)
def test_what_is_no_request_is_told_and_holds_nobody_up(
    place: Path, sent: bytes, told: str
) -> None:
    wire = rpc.connect(place, limit_s=10)
    with wire.socket:
        wire.socket.sendall(sent)
        said = wire.receive(limit_s=10)
        assert said is not None
        assert told in said["error"]["message"]


def test_a_request_without_an_end_is_cut_off(tmp_path: Path) -> None:
    with rpc.serving(tmp_path, answer, request_limit_s=30):
        wire = rpc.connect(tmp_path, limit_s=10)
        with wire.socket, contextlib.suppress(ConnectionError):
            for _ in range(rpc.REQUEST_LIMIT_BYTES // (1 << 20) + 1):
                wire.socket.sendall(bytes(1 << 20))
            said = wire.receive(limit_s=10)
            assert said is not None
            assert "more than 16 MiB" in said["error"]["message"]


def test_an_answer_without_an_end_is_cut_off() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def send() -> None:
            with contextlib.suppress(BrokenPipeError):
                theirs.sendall(bytes(3 << 20))

        sender = threading.Thread(target=send)
        sender.start()
        with pytest.raises(ValueError, match="more than 1 MiB"):
            rpc.Wire(ours).receive(limit_bytes=1 << 20)
        ours.close()
        sender.join()


def test_who_has_disconnected_is_noticed(tmp_path: Path) -> None:
    seen: list[KbootError] = []
    asked, done = threading.Event(), threading.Event()

    def wait_for_client(request: rpc.Request) -> None:
        asked.set()
        try:
            for _ in Deadline(10).poll(0.01):
                request.send_event({"event": "still there"})
        except KbootError as error:
            seen.append(error)
        done.set()

    with rpc.serving(tmp_path, wait_for_client):
        wire = rpc.connect(tmp_path, limit_s=10)
        wire.send({"verb": "wait"})
        assert asked.wait(10)
        wire.socket.close()
        assert done.wait(10)
    assert [str(error) for error in seen] == ["cancelled: client disconnected"]


def test_a_server_that_ends_is_missed(tmp_path: Path) -> None:
    with rpc.serving(tmp_path, answer):
        pass
    with pytest.raises(ConnectionRefusedError):
        rpc.connect(tmp_path, limit_s=10)


def test_who_listens_and_does_not_answer_is_not_waited_for_without_a_limit(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "control"))
        mute.listen(0)
        # The first one waits in the queue, the others do not even get there.
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "control"))
            with pytest.raises(InfraError, match=r"does not answer in 0\.3 s"):
                rpc.connect(tmp_path, limit_s=0.3)


# A server that may have few files open. It ends with its standard input.
SMALL = """
import resource, sys
from pathlib import Path
from kboot import rpc
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
with rpc.serving(Path(sys.argv[1]), lambda request: "fine"):
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_server_survives_that_no_more_files_can_be_open(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SMALL, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout
        assert server.stdin
        assert server.stderr
        assert server.stdout.readline() == "ready\n"
        with contextlib.ExitStack() as stack:
            for _ in range(30):
                crowd = stack.enter_context(socket.socket(socket.AF_UNIX))
                crowd.connect(str(tmp_path / "control"))
            # It has noticed, and is not dead of it.
            assert "Too many open files" in server.stderr.readline()
        with client_of(tmp_path) as client:
            assert client.ask("anything") == "fine"
        server.stdin.close()
        assert server.wait(30) == 0


def test_the_socket_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with rpc.serving(tmp_path, answer):
            assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o600
    finally:
        os.umask(old)


# Connects as another user, if it may become one.
STRANGER = """
import os, socket, sys
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setuid(65534)
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(10)
    connection.connect("control")
    print(connection.recv(1000).decode())
"""


def test_another_user_is_refused_even_where_the_socket_is_open_to_all(tmp_path: Path) -> None:
    with rpc.serving(tmp_path, answer):
        tmp_path.chmod(0o755)
        (tmp_path / "control").chmod(0o666)
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, str(tmp_path)],
            check=True,
            capture_output=True,
            text=True,
        )
    expected = "runs as user 65534" if os.geteuid() == 0 else '{"hello": 1}'
    assert expected in done.stdout


def test_events_are_delivered_once_and_what_is_lost_is_told() -> None:
    events = Events()
    first, following = events.after(0, 0)
    assert (first, following) == ([], 0)
    for number in range(1500):
        events.add({"event": "number", "number": number})
    got: list[Any] = []
    for _ in range(3):
        found, following = events.after(following, 0)
        got += found
    assert got[0] == {
        "event": "notice",
        "text": "500 events are not shown: they came faster than they were read",
    }
    assert [event["number"] for event in got[1:]] == list(range(500, 1500))
    assert following == events.count == 1500
