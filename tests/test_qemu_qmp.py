from __future__ import annotations

import itertools
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.qemu.qmp import Qmp, QmpClosed
from kboot.qemu.snapshot import save_devices

GREETING: dict[str, object] = {
    "QMP": {"version": {"qemu": {"major": 9, "minor": 1, "micro": 2}}, "capabilities": []}
}


class Peer:
    """The other end of the control socket: answers each command with what was prepared."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.answers: dict[str, list[dict[str, object]]] = {"qmp_capabilities": [{"return": {}}]}
        self.seen: list[dict[str, object]] = []
        self.handed_over: list[int] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def say(self, *messages: dict[str, object]) -> None:
        self.theirs.sendall(b"".join(json.dumps(each).encode() + b"\r\n" for each in messages))

    def _serve(self) -> None:
        self.say(GREETING)
        text = b""
        while True:
            data, descriptors, *_ = socket.recv_fds(self.theirs, 65536, 4)
            if not data:
                return
            self.handed_over.extend(descriptors)
            *lines, text = (text + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                self.seen.append(request)
                for answer in self.answers.get(request["execute"], []):
                    tagged = answer if "event" in answer else answer | {"id": request["id"]}
                    self.say(tagged)

    def hang_up(self) -> None:
        self.theirs.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def peer() -> Iterator[Peer]:
    each = Peer()
    each.thread.start()
    yield each
    each.ours.close()
    each.hang_up()
    each.thread.join(5)
    each.theirs.close()
    for descriptor in each.handed_over:
        os.close(descriptor)


def event(name: str, **data: object) -> dict[str, object]:
    stamp = {"seconds": 100, "microseconds": 500_000}
    return {"event": name, "data": data, "timestamp": stamp}


def test_the_greeting_tells_the_version(peer: Peer) -> None:
    assert Qmp(peer.ours, Deadline(5)).version == "9.1.2"


def test_a_command_gets_its_answer_even_behind_events(peer: Peer) -> None:
    qmp = Qmp(peer.ours, Deadline(5))
    peer.answers["query-status"] = [event("RESET", guest=True), {"return": {"status": "running"}}]
    assert qmp.execute("query-status", Deadline(5)) == {"status": "running"}
    (reset,) = qmp.events()
    assert (reset.name, reset.data, reset.time) == ("RESET", {"guest": True}, 100.5)
    assert qmp.events() == []


def test_arguments_reach_qemu(peer: Peer) -> None:
    qmp = Qmp(peer.ours, Deadline(5))
    peer.answers["set_link"] = [{"return": {}}]
    qmp.execute("set_link", Deadline(5), name="net0", up=False)
    assert peer.seen[-1]["arguments"] == {"name": "net0", "up": False}


def test_a_refusal_is_told_in_qemus_words(peer: Peer) -> None:
    qmp = Qmp(peer.ours, Deadline(5))
    peer.answers["cont"] = [{"error": {"class": "GenericError", "desc": "not now"}}]
    with pytest.raises(InfraError, match="QEMU refused cont: not now"):
        qmp.execute("cont", Deadline(5))


def test_no_answer_ends_with_the_deadline(peer: Peer) -> None:
    qmp = Qmp(peer.ours, Deadline(5))
    with pytest.raises(InfraError, match="does not answer stop"):
        qmp.execute("stop", Deadline(0.05))


def test_the_last_events_are_told_before_the_end(peer: Peer) -> None:
    qmp = Qmp(peer.ours, Deadline(5))
    peer.say(event("SHUTDOWN", guest=True))
    peer.hang_up()
    assert [each.name for each in qmp.events()] == ["SHUTDOWN"]
    with pytest.raises(QmpClosed):
        qmp.events()


def test_a_closed_socket_is_told_at_the_next_command(peer: Peer) -> None:
    qmp = Qmp(peer.ours, Deadline(5))
    peer.hang_up()
    with pytest.raises(QmpClosed):
        qmp.execute("stop", Deadline(5))


def test_a_snapshot_whose_time_is_up_is_the_hosts_fault(peer: Peer, tmp_path: Path) -> None:
    qmp = Qmp(peer.ours, Deadline(5))
    for command in ("migrate-set-capabilities", "getfd", "migrate"):
        peer.answers[command] = [{"return": {}}]
    # Time stands still until QEMU has taken all three commands, and is over then.
    moments = itertools.chain(itertools.repeat(0.0, 7), itertools.repeat(100.0))
    deadline = Deadline(5, clock=lambda: next(moments))
    with pytest.raises(InfraError, match="does not come to an end with saving"):
        save_devices(qmp, tmp_path / "devices", deadline)
    assert peer.seen[-1]["execute"] == "migrate"
