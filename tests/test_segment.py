"""The private Ethernet segment of local machines: its switch, with plain sockets for machines."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from kboot.backend import VirtualMachine
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.machine_network import PathCondition
from kboot.qemu.segment import Segment, open_segment
from kboot.qemu.switch import NameServer

MEMBERS = ("a", "b", "c")
EVERYBODY = b"\xff" * 6
LOST = PathCondition(loss=1.0)


class Card:
    """What a machine has of the segment."""

    def __init__(self, segment: Segment, member: str) -> None:
        self.socket = segment.plug(member)
        self.address = bytes.fromhex(segment.interface(member).mac_address.replace(":", ""))
        self._rest = b""

    def send(self, to: bytes, text: bytes, *, kind: bytes = b"\x08\x00") -> None:
        frame = to + self.address + kind + text
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


def test_a_frame_that_comes_in_weeks_holds_nobody_up(wired: Wired) -> None:
    wired.segment.set_paths({("a", "b"): PathCondition(delay_s=1e7)})
    wired.a.send(wired.b.address, b"late")
    wired.a.send(wired.c.address, b"for c")
    assert wired.c.receive() == b"for c"
    wired.settle()
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
        pytest.raises(ConfigError, match="at most 253"),
        open_segment(tmp_path, members, Deadline(20)),
    ):
        pass


def test_as_many_machines_as_there_may_be_are_cut_off_at_once(tmp_path: Path) -> None:
    members = [f"machine-{number}" for number in range(200)]
    machines = {member: cast(VirtualMachine, object()) for member in members}
    with open_segment(tmp_path, members, Deadline(20)) as segment:
        one, other = Card(segment, "machine-0"), Card(segment, "machine-199")
        with one.socket, other.socket:
            assert len(segment.set_links(machines, up=False)) == 200
            one.send(EVERYBODY, b"lost")
            assert segment.counts()["machine-0"]["in"] == 1
            segment.set_links(machines, up=True)
            one.send(EVERYBODY, b"comes")
            assert other.receive() == b"comes"


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


def ip(protocol: int, payload: bytes) -> bytes:
    size = (20 + len(payload)).to_bytes(2, "big")
    return b"\x45\0" + size + bytes(5) + bytes([protocol]) + bytes(10) + payload


def asks_for(path: bytes) -> bytes:
    return ip(6, bytes(12) + b"\x50" + bytes(7) + b"GET " + path + b" HTTP/1.1\r\n")


def test_dhcp_names_a_file_to_whom_has_just_fetched_it(wired: Wired) -> None:
    told = bytes(44) + b"server".ljust(64, b"\0") + b"http://h/load".ljust(128, b"\0") + b"options"
    ports = (67).to_bytes(2, "big") + (68).to_bytes(2, "big")
    offer = ip(17, ports + (8 + len(told)).to_bytes(2, "big") + b"\x12\x34" + told)
    wired.segment.set_boot_file("http://h:1/t/start")

    def offered_after(path: bytes) -> tuple[bytes, bytes]:
        wired.a.send(wired.b.address, asks_for(path))
        wired.b.receive()
        wired.b.send(wired.a.address, offer)
        found = wired.a.receive()
        name = found[28 + 108 : 28 + 236]
        assert len(found) == len(offer)
        assert found[28:136] + found[264:] == offer[28:136] + offer[264:]
        return name.rstrip(b"\0"), found[26:28]

    assert offered_after(b"/t/program") == (b"http://h/load", b"\x12\x34")
    # Without a checksum, which would be another one.
    assert offered_after(b"/t/start") == (b"http://h:1/t/start", bytes(2))
    assert offered_after(b"/t/start/2") == (b"http://h/load", b"\x12\x34")


def test_frames_that_are_cut_short_pass_as_they_are(wired: Wired) -> None:
    wired.segment.set_boot_file("http://h:1/t/start")
    whole = asks_for(b"/t/start")
    wired.a.send(wired.b.address, whole)
    assert wired.b.receive() == whole
    for size in range(len(whole)):
        wired.a.send(wired.b.address, whole[:size])
        assert wired.b.receive() == whole[:size]
    for size in (20, 24, 28, 200):
        reply = ip(17, (67).to_bytes(2, "big") + bytes(size))
        wired.a.send(wired.b.address, reply)
        assert wired.b.receive() == reply


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


# ------------------------------------------------------------------------------------- its names

NAMES = NameServer(
    address="10.98.0.254",
    mac="52:54:00:6b:66:fe",
    domain="fleet.internal",
    names={"control-1": "10.98.0.1", "worker-1": "10.98.0.2"},
)
A, PTR, AAAA = 1, 12, 28


def query(name: str, kind: int = A, *, flags: int = 0x0100) -> bytes:
    """A question as resolvers send it, number 7."""
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    return struct.pack("!HHHHHH", 7, flags, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def resolved(name: str, kind: int = A, *, flags: int = 0x0100) -> tuple[int, list[bytes]]:
    """The status, and the data of the answers."""
    asked = query(name, kind, flags=flags)
    answer = NAMES.resolve(asked)
    number, said, questions, count, *_ = struct.unpack_from("!HHHHHH", answer)
    assert (number, said & 0x8000, questions) == (7, 0x8000, 1)
    # Resolvers compare what was asked with what they asked.
    assert answer[12 : len(asked)] == asked[12:]
    rest, found = answer[len(asked) :], []
    for _ in range(count):
        *_, size = struct.unpack_from("!HHHIH", rest)
        found.append(rest[12 : 12 + size])
        rest = rest[12 + size :]
    assert rest == b""
    return said & 15, found


@pytest.mark.parametrize("name", ["worker-1", "worker-1.fleet.internal", "Worker-1.FLEET.internal"])
def test_a_name_is_known_with_and_without_its_domain(name: str) -> None:
    assert resolved(name) == (0, [bytes([10, 98, 0, 2])])


def test_an_address_has_a_name() -> None:
    name = b"\x09control-1\x05fleet\x08internal\x00"
    assert resolved("1.0.98.10.in-addr.arpa", PTR) == (0, [name])


def test_what_a_name_does_not_have_is_no_error_and_what_is_no_name_is_one() -> None:
    assert resolved("worker-1", AAAA) == (0, [])
    assert resolved("worker-9.fleet.internal") == (3, [])
    assert resolved("fleet.internal") == (3, [])


def test_for_names_of_the_world_the_next_server_is_asked() -> None:
    refused = 5
    for name in ("deb.debian.org", "printer", "1.1.1.1.in-addr.arpa"):
        assert resolved(name) == (refused, [])
    not_implemented = 4
    assert resolved("worker-1", flags=0x2800) == (not_implemented, [])


@pytest.mark.parametrize(
    "message", [b"", b"\0" * 11, query("worker-1")[:-3], query("worker-1", flags=0x8000)]
)
def test_what_is_no_question_has_no_answer(message: bytes) -> None:
    packet = struct.pack("!HHHH", 4000, 53, 8 + len(message), 0) + message
    head = bytes([0x45, 0]) + struct.pack("!H", 20 + len(packet)) + bytes(5) + b"\x11\0\0"
    frame = NAMES.mac + b"guest!" + b"\x08\0" + head + b"\x0a\x62\0\x02" + b"\x0a\x62\0\xfe"
    assert NAMES.answer(frame + packet) is None


def test_the_name_server_is_a_station_that_can_be_cut_off(wired: Wired) -> None:
    ours, its = b"\x0a\x62\0\x01", b"\x0a\x62\0\xfe"
    arp = b"\0\x01\x08\0\x06\x04\0\x01" + wired.a.address + ours + bytes(6) + its
    wired.a.send(EVERYBODY, arp, kind=b"\x08\x06")
    answer = wired.a.receive()
    assert answer[6:8] == b"\0\x02"
    mac = answer[8:14]
    question = query("c.fleet.internal")
    datagram = struct.pack("!HHHH", 4000, 53, 8 + len(question), 0) + question
    size = struct.pack("!H", 20 + len(datagram))
    packet = b"\x45\0" + size + b"\0\0\x40\0\x40\x11\0\0" + ours + its + datagram
    wired.a.send(mac, packet)
    answer = wired.a.receive()
    # From its port to ours, and at the end the address.
    assert answer[20:24] == struct.pack("!HH", 53, 4000)
    assert answer[-4:] == b"\x0a\x62\0\x03"
    nobody = {"a": cast(VirtualMachine, object())}
    wired.segment.set_links(nobody, up=False)
    wired.a.send(mac, packet)
    wired.settle()
    wired.segment.set_links(nobody, up=True)
    wired.settle()
    assert wired.a.waiting() == wired.b.waiting() == wired.c.waiting() == []
