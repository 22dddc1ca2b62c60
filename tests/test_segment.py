"""The private Ethernet segment of local machines: its switch, with plain sockets for machines."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from kboot.backend import PathCondition, VirtualMachine
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.qemu.segment import Segment, open_segment

MEMBERS = ("a", "b", "c")
EVERYBODY = b"\xff" * 6
LOST = PathCondition(loss=1.0)


class Card:
    """What a machine has of the segment."""

    def __init__(self, segment: Segment, member: str) -> None:
        self.socket = segment.plug(member)
        self.address = bytes.fromhex(segment.interface(member).mac_address.replace(":", ""))
        self._rest = b""

    def send(self, to: bytes, text: bytes) -> None:
        frame = to + self.address + b"\x08\x00" + text
        self.socket.sendall(len(frame).to_bytes(4, "big") + frame)

    def receive(self) -> bytes:
        """The text of the next frame."""
        self.socket.settimeout(20)
        while (frame := self._frame()) is None:
            self._rest += self.socket.recv(1 << 16)
        return frame[14:]

    def waiting(self) -> list[bytes]:
        """The texts of the frames that are there already."""
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while data := self.socket.recv(1 << 20):
                self._rest += data
        found = []
        while frame := self._frame():
            found.append(frame[14:])
        return found

    def _frame(self) -> bytes | None:
        end = 4 + int.from_bytes(self._rest[:4], "big")
        if len(self._rest) < max(end, 5):
            return None
        frame, self._rest = self._rest[4:end], self._rest[end:]
        return frame


class Wired:
    """A segment with three cards that have told where they are."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.a, self.b, self.c = self.cards = [Card(segment, member) for member in MEMBERS]
        for card in self.cards:
            card.send(EVERYBODY, b"hello")
        for card in self.cards:
            assert [card.receive(), card.receive()] == [b"hello", b"hello"]

    def settle(self) -> None:
        """What was sent has been forwarded by now."""
        before = -1
        while (now := sum(each["in"] for each in self.segment.counts().values())) != before:
            before = now
            time.sleep(0.02)


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Wired]:
    with open_segment(tmp_path, MEMBERS, Deadline(20)) as segment:
        wired = Wired(segment)
        yield wired
    for card in wired.cards:
        card.socket.close()


def test_a_frame_goes_to_whom_it_is_for_alone(wired: Wired) -> None:
    wired.a.send(wired.b.address, b"for b")
    assert wired.b.receive() == b"for b"
    wired.settle()
    assert wired.c.waiting() == []
    assert wired.a.waiting() == []


def test_a_frame_in_two_pieces_arrives_whole(wired: Wired) -> None:
    frame = wired.b.address + wired.a.address + b"\x08\x00whole"
    raw = len(frame).to_bytes(4, "big") + frame
    for piece in (raw[:3], raw[3:20], raw[20:]):
        wired.a.socket.sendall(piece)
        wired.settle()
    assert wired.b.receive() == b"whole"


def test_a_cable_that_is_pulled_carries_nothing_either_way(wired: Wired) -> None:
    # No machine that could be told to lose its carrier.
    nobody = {"a": cast(VirtualMachine, object())}
    assert wired.segment.set_links(nobody, up=False).keys() == {"a"}
    wired.a.send(EVERYBODY, b"from a")
    wired.b.send(EVERYBODY, b"from b")
    assert wired.c.receive() == b"from b"
    wired.settle()
    assert wired.a.waiting() == wired.b.waiting() == wired.c.waiting() == []
    wired.segment.set_links(nobody, up=True)
    wired.b.send(wired.a.address, b"again")
    assert wired.a.receive() == b"again"


def test_a_path_is_cut_in_one_direction_only(wired: Wired) -> None:
    wired.segment.set_paths({("a", "b"): LOST})
    wired.a.send(wired.b.address, b"lost")
    wired.b.send(wired.a.address, b"comes")
    wired.a.send(wired.c.address, b"also comes")
    assert wired.a.receive() == b"comes"
    assert wired.c.receive() == b"also comes"
    wired.segment.set_paths({})
    wired.a.send(wired.b.address, b"comes again")
    assert wired.b.receive() == b"comes again"


def test_a_share_of_the_frames_is_lost(wired: Wired) -> None:
    wired.segment.set_paths({("a", "b"): PathCondition(loss=0.5)})
    for number in range(400):
        wired.a.send(wired.b.address, b"%d" % number)
    wired.settle()
    arrived = [int(text) for text in wired.b.waiting()]
    assert 120 < len(arrived) < 280
    assert arrived == sorted(arrived)


def test_a_frame_is_late_and_lost_when_its_path_is_cut_meanwhile(wired: Wired) -> None:
    wired.segment.set_paths({("a", "b"): PathCondition(delay_s=0.2)})
    begin = time.monotonic()
    wired.a.send(wired.b.address, b"late")
    assert wired.b.receive() == b"late"
    assert time.monotonic() - begin >= 0.2
    wired.segment.set_paths({("a", "b"): PathCondition(delay_s=0.1), ("a", "c"): LOST})
    wired.a.send(wired.b.address, b"never")
    wired.settle()
    wired.segment.set_paths({("a", "b"): LOST})
    wired.b.send(wired.a.address, b"after that")
    assert wired.a.receive() == b"after that"
    time.sleep(0.15)
    assert wired.b.waiting() == []


def test_who_does_not_listen_loses_frames_and_holds_nobody_up(wired: Wired) -> None:
    for _ in range(3000):
        wired.a.send(wired.b.address, bytes(1400))
    wired.a.send(wired.c.address, b"goes through")
    assert wired.c.receive() == b"goes through"
    wired.settle()
    assert wired.segment.counts()["b"]["dropped"] > 0


def test_a_machine_that_is_started_again_has_another_cable(wired: Wired) -> None:
    again = Card(wired.segment, "b")
    with again.socket:
        wired.a.send(wired.b.address, b"for b")
        assert again.receive() == b"for b"
        assert wired.b.socket.recv(100) == b""


def test_a_machine_that_is_gone_is_no_fault(wired: Wired) -> None:
    wired.b.socket.close()
    wired.a.send(EVERYBODY, b"still here")
    assert wired.c.receive() == b"still here"


def test_a_switch_that_was_killed_is_the_hosts_fault(wired: Wired) -> None:
    os.kill(wired.segment._process.pid, signal.SIGKILL)
    with pytest.raises(InfraError, match="the switch of the machines' network"):
        wired.segment.set_paths({})


def test_addresses_are_handed_out(wired: Wired) -> None:
    assert wired.segment.addresses() == {"a": "10.98.0.1", "b": "10.98.0.2", "c": "10.98.0.3"}
    assert wired.segment.interface("c").address == "10.98.0.3/24"
    assert len({wired.segment.interface(member).mac_address for member in MEMBERS}) == 3
    assert {wired.segment.link(member).network for member in MEMBERS} == {wired.segment.name}


def test_a_segment_has_an_end(tmp_path: Path) -> None:
    members = [f"m{number}" for number in range(255)]
    with (
        pytest.raises(ConfigError, match="at most 254"),
        open_segment(tmp_path, members, Deadline(20)),
    ):
        pass


def test_the_switch_leaves_with_the_segment(tmp_path: Path) -> None:
    with open_segment(tmp_path, MEMBERS, Deadline(20)) as segment:
        card: socket.socket = segment.plug("a")
        pid = segment._process.pid
    with card:
        assert card.recv(1) == b""
    assert not Path(f"/proc/{pid}").exists()


def test_packets_that_are_too_large_are_lost_without_a_word(wired: Wired) -> None:
    wired.segment.set_limits(mtu=1000, dns="")
    wired.a.send(wired.b.address, b"x" * 1001)
    wired.a.send(wired.b.address, b"y" * 1000)
    assert wired.b.receive() == b"y" * 1000
    wired.segment.set_limits(mtu=0, dns="")
    wired.a.send(wired.b.address, b"x" * 1001)
    assert wired.b.receive() == b"x" * 1001


def checksum(data: bytes) -> int:
    """RFC 1071, of data with its own checksum in it: 0 if that is right."""
    total = sum(
        int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2)
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@pytest.mark.parametrize("is_ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_dns_is_answered_that_there_is_no_such_name(wired: Wired, is_ipv6: bool) -> None:
    size = 16 if is_ipv6 else 4
    addresses = bytes(range(1, 1 + 2 * size))
    question = bytes.fromhex("1234 0100 0001 0000 0000 0000") + b"\4boot\7example\0\0\1\0\1"
    length = 8 + len(question)
    pseudo = addresses + length.to_bytes(4, "big") + (17).to_bytes(4, "big")
    ports = (5353).to_bytes(2, "big") + (53).to_bytes(2, "big") + length.to_bytes(2, "big")
    right = checksum(pseudo + ports + b"\0\0" + question)
    udp = ports + right.to_bytes(2, "big") + question
    head = (
        b"\x60\0\0\0" + length.to_bytes(2, "big") + b"\x11\x40"
        if is_ipv6
        else b"\x45\0" + (20 + length).to_bytes(2, "big") + b"\0\0\0\0\x40\x11\0\0"
    )
    kind = b"\x86\xdd" if is_ipv6 else b"\x08\0"
    frame = wired.b.address + wired.a.address + kind + head + addresses + udp
    wired.segment.set_limits(mtu=0, dns="not-found")
    wired.a.socket.sendall(len(frame).to_bytes(4, "big") + frame)
    answer = wired.a.receive()
    begin = len(head) + 2 * size
    assert answer[: len(head)] == head
    assert answer[len(head) : begin] == addresses[size:] + addresses[:size]
    assert answer[begin : begin + 4] == (53).to_bytes(2, "big") + (5353).to_bytes(2, "big")
    assert answer[begin + 8 :] == question[:2] + b"\x81\x83" + question[4:]
    assert checksum(pseudo + answer[begin:]) == 0
    # Everything else goes its way.
    wired.a.send(wired.b.address, b"hello")
    assert wired.b.receive() == b"hello"
