"""An Ethernet switch for machines of this host, as a program: ``python switch.py DESCRIPTOR``.

It runs by itself, without the rest of kboot: a process of its own keeps its time when a test keeps
Python busy. One station on it is the switch itself: a name server that knows the machines. The
descriptor is a stream socket over which it is told what to do, in JSON after its length:

- ``{"do": "plug", "port": NAME}`` with a connected stream socket that carries frames, each after
  its length in four bytes, as ``-netdev stream`` has them;
- ``{"do": "paths", "paths": [[FROM, TO, LOSS, DELAY], ...]}``: from now on, of the frames between
  these ports the share LOSS is lost and the rest comes DELAY seconds late. All others pass;
- ``{"do": "limits", "mtu": BYTES, "dns": "not-found"}``: from now on, packets of more bytes are
  lost, and who asks DNS for a name is told that there is none. 0 and "" for neither;
- ``{"do": "boot-file", "url": URL}``: from now on, a machine whose last HTTP request was for URL
  is given it by DHCP as its boot file, whatever the DHCP server says;
- ``{"do": "names", "address": IP, "mac": MAC, "domain": DOMAIN, "names": {NAME: IP, ...}}``: be
  their name server, at this address. Paths from and to it are those of the port ``""``;
- ``{"do": "counts"}``.

The answer has ``at``, monotonic seconds at which that was done. It ends with the socket.
"""

from __future__ import annotations

import heapq
import json
import random
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from typing import Any

#: Frames that a machine does not take are dropped when there are more of them.
_QUEUE_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_LENGTH = 4
#: Between two looks at the clock; a poll takes no more than some weeks.
_LONGEST_WAIT_S = 3600.0
_WHOLE = (0.0, 0.0)
_EVERYBODY = b"\xff" * 6
#: The port of the switch's own station.
NAME_SERVER = ""

_ETHERNET_BYTES = 14

#: In a DNS message: that it is an answer, with recursion, and that the name does not exist.
_NO_SUCH_NAME_FLAGS = 0x8183


def framed(message: bytes) -> bytes:
    """A message as it goes over the control socket: after its length."""
    return len(message).to_bytes(_LENGTH, "big") + message


def receive(connection: socket.socket, head: bytes = b"") -> bytes:
    """The next message, of which the `head` was read already; empty if the other side has ended."""
    length = _exactly(connection, _LENGTH, head)
    return _exactly(connection, int.from_bytes(length, "big")) if length else b""


def _exactly(connection: socket.socket, size: int, begin: bytes = b"") -> bytes:
    data = bytearray(begin)
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)


@dataclass(slots=True)
class Port:
    """Where one machine is plugged in."""

    name: str
    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    #: What the machine has not taken yet, of which the first byte may be in the midst of a frame.
    waiting: bytearray = field(default_factory=bytearray)
    #: Frames that came from the machine, went to it, and did not go to it.
    frames_in: int = 0
    frames_out: int = 0
    dropped: int = 0

    def counts(self) -> dict[str, int]:
        """For an answer."""
        return {"in": self.frames_in, "out": self.frames_out, "dropped": self.dropped}


_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_DNS = struct.Struct("!HHHHHH")
_IS_ARP, _IS_IPV4, _IS_UDP, _DNS_PORT = 0x0806, 0x0800, 17, 53
_IS_TCP, _DHCP_SERVER_PORT = 6, 67
#: In a DHCP message: where the name of the boot file begins, and how long it is (RFC 2131).
_BOOT_FILE_AT, _BOOT_FILE_BYTES = 108, 128
_A, _PTR, _ANY = 1, 12, 255
_INTERNET = 1
#: What a name server answers (RFC 1035, 4.1.1). Who is refused asks the next server.
_NO_ERROR, _FORMAT_ERROR, _NO_SUCH_NAME, _NOT_IMPLEMENTED, _REFUSED = 0, 1, 3, 4, 5
_TTL_S = 60
_REVERSE = ".in-addr.arpa"


class NameServer:
    """A station with an address, which answers ARP for it, and DNS over UDP (RFC 1035)."""

    def __init__(self, *, address: str, mac: str, domain: str, names: dict[str, str]) -> None:
        self.mac = bytes.fromhex(mac.replace(":", ""))
        self._address = socket.inet_aton(address)
        self._domain = f".{domain}"
        self._addresses = {name: socket.inet_aton(each) for name, each in names.items()}
        self._names = {
            ".".join(reversed(each.split("."))) + _REVERSE: name for name, each in names.items()
        }

    def answer(self, frame: bytes) -> bytes | None:
        """The frame that it sends in return, if any. It may have been sent to all."""
        try:
            _, sender, kind = _ETHERNET.unpack_from(frame)
            rest = frame[_ETHERNET.size :]
            found = (
                self._arp(rest) if kind == _IS_ARP else self._ip(rest) if kind == _IS_IPV4 else None
            )
        except (struct.error, ValueError, IndexError):
            # Whatever a guest sends.
            return None
        return None if found is None else _ETHERNET.pack(sender, self.mac, kind) + found

    def _arp(self, packet: bytes) -> bytes | None:
        *kinds, operation, sender, sender_ip, _, target_ip = _ARP.unpack_from(packet)
        if operation != 1 or target_ip != self._address:
            return None
        return _ARP.pack(*kinds, 2, self.mac, self._address, sender, sender_ip)

    def _ip(self, packet: bytes) -> bytes | None:
        version, _, size, _, fragment, _, protocol, _, source, to = _IPV4.unpack_from(packet)
        if to != self._address or protocol != _IS_UDP or fragment & 0x3FFF:
            return None
        datagram = packet[4 * (version & 15) : size]
        port, to_port, length, _ = _UDP.unpack_from(datagram)
        if to_port != _DNS_PORT:
            return None
        said = self.resolve(datagram[_UDP.size : length])
        # A checksum of 0 is none: the frame does not leave this host.
        back = _UDP.pack(_DNS_PORT, port, _UDP.size + len(said), 0) + said
        head = (0x45, 0, _IPV4.size + len(back), 0, 0, 64, _IS_UDP)
        checksum = _checksum(_IPV4.pack(*head, 0, self._address, source))
        return _IPV4.pack(*head, checksum, self._address, source) + back

    def resolve(self, query: bytes) -> bytes:
        """The answer to a DNS message. ValueError, IndexError, struct.error for what is none."""
        number, flags, questions, *_ = _DNS.unpack_from(query)
        if flags & 0x8000:
            raise ValueError("an answer")
        name, end = _read_name(query, _DNS.size)
        kind, family = struct.unpack_from("!HH", query, end)
        question = query[_DNS.size : end + 4]
        answers: list[bytes] = []
        if flags & 0x7800:
            status = _NOT_IMPLEMENTED
        elif questions != 1:
            status = _FORMAT_ERROR
        else:
            status, answers = self._find(name, kind if family == _INTERNET else 0)
        # An authoritative answer, with what was asked for first; "recursion desired" comes back.
        head = _DNS.pack(number, 0x8400 | flags & 0x0100 | status, 1, len(answers), 0, 0)
        return head + question + b"".join(answers)

    def _find(self, name: str, kind: int) -> tuple[int, list[bytes]]:
        if name in self._names:
            text = f"{self._names[name]}{self._domain}"
            return _NO_ERROR, [_record(_PTR, _name(text))] if kind in {_PTR, _ANY} else []
        address = self._addresses.get(name.removesuffix(self._domain))
        if address is not None:
            return _NO_ERROR, [_record(_A, address)] if kind in {_A, _ANY} else []
        # Names of the world are another server's business.
        ours = name.endswith(self._domain) or name == self._domain[1:]
        return (_NO_SUCH_NAME if ours else _REFUSED), []


def _record(kind: int, data: bytes) -> bytes:
    # 0xc00c: the name that was asked for.
    return struct.pack("!HHHIH", 0xC00C, kind, _INTERNET, _TTL_S, len(data)) + data


def _name(text: str) -> bytes:
    return b"".join(bytes([len(each)]) + each.encode() for each in text.split(".")) + b"\0"


def _read_name(message: bytes, position: int) -> tuple[str, int]:
    """A name in small letters, and where it ends. There is no reason to compress a question."""
    labels = []
    while size := message[position]:
        if size > 63:
            raise ValueError("a compressed name")
        labels.append(message[position + 1 : position + 1 + size].decode("ascii", "replace"))
        position += 1 + size
    return ".".join(labels).lower(), position + 1


def _checksum(header: bytes) -> int:
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, len(header), 2))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class BootFile:
    """Names a boot file to the program that a machine has loaded, and not to what has loaded it.

    Both are iPXE and ask DHCP alike; but the one that loads fetches that file before it starts the
    other.
    """

    def __init__(self, url: str) -> None:
        self._url = url.encode()
        self._request = b"GET /" + self._url.split(b"/", 3)[3] + b" "
        self._is_next = False

    def passing(self, frame: bytes) -> bytes:
        """A frame as it is to be forwarded, with its length."""
        ip = _LENGTH + _ETHERNET_BYTES
        if len(frame) < ip + _IPV4.size or frame[ip - 2 : ip] != b"\x08\x00":
            return frame
        datagram = ip + 4 * (frame[ip] & 15)
        if frame[ip + 9] == _IS_TCP and len(frame) > datagram + 12:
            said = datagram + 4 * (frame[datagram + 12] >> 4)
            if frame.startswith(b"GET ", said):
                self._is_next = frame.startswith(self._request, said)
        elif frame[ip + 9] == _IS_UDP and self._is_next:
            return self._renamed(frame, datagram)
        return frame

    def _renamed(self, frame: bytes, datagram: int) -> bytes:
        source = int.from_bytes(frame[datagram : datagram + 2], "big")
        begin = datagram + _UDP.size + _BOOT_FILE_AT
        if source != _DHCP_SERVER_PORT or len(frame) < begin + _BOOT_FILE_BYTES:
            return frame
        named = bytearray(frame)
        named[begin : begin + _BOOT_FILE_BYTES] = self._url.ljust(_BOOT_FILE_BYTES, b"\0")
        # No checksum: the frame does not leave this host.
        named[datagram + 6 : datagram + 8] = bytes(2)
        return bytes(named)


class Switch:
    """Forwards frames to where their address was seen last, and to all where that is unknown."""

    def __init__(self, control: socket.socket, *, seed: int = 1) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, None)
        self._ports: dict[str, Port] = {}
        self._names: NameServer | None = None
        self._places: dict[bytes, str] = {}
        self._paths: dict[tuple[str, str], tuple[float, float]] = {}
        #: Of a whole frame, with its length before it; None for any.
        self._longest: int | None = None
        self._no_names = False
        self._boot_file: BootFile | None = None
        #: When, a running number, from where, to where, the frame.
        self._late: list[tuple[float, int, str, str, bytes]] = []
        self._count = 0
        # The same losses in every run, as far as the frames are the same.
        self._random = random.Random(seed)  # noqa: S311  no secret

    def run(self) -> None:
        """Until the control socket ends."""
        while True:
            wait_s = None
            if self._late:
                wait_s = min(max(0.0, self._late[0][0] - time.monotonic()), _LONGEST_WAIT_S)
            for key, events in self._selector.select(wait_s):
                port: Port | None = key.data
                if port is None:
                    if not self._obey():
                        return
                elif self._ports.get(port.name) is port:
                    if events & selectors.EVENT_WRITE:
                        self._write(port)
                    if events & selectors.EVENT_READ:
                        self._read(port)
            self._deliver_late()

    # ------------------------------------------------------------------------------------- orders

    def _obey(self) -> bool:
        # Descriptors come with a message's first bytes.
        head, descriptors, _, _ = socket.recv_fds(self._control, _LENGTH, 1)
        message = receive(self._control, head)
        if not message:
            return False
        order = json.loads(message)
        answer: dict[str, Any] = {}
        match order["do"]:
            case "plug":
                self._plug(order["port"], socket.socket(fileno=descriptors[0]))
            case "paths":
                paths = {(a, b): (loss, delay) for a, b, loss, delay in order["paths"]}
                self._paths = paths
            case "limits":
                mtu = order["mtu"]
                self._longest = _LENGTH + _ETHERNET_BYTES + mtu if mtu else None
                self._no_names = order["dns"] == "not-found"
            case "boot-file":
                self._boot_file = BootFile(order["url"])
            case "names":
                del order["do"]
                self._names = NameServer(**order)
            case "counts":
                answer = {name: port.counts() for name, port in self._ports.items()}
        said = json.dumps({"at": time.monotonic(), "answer": answer}).encode()
        self._control.sendall(framed(said))
        return True

    def _plug(self, name: str, line: socket.socket) -> None:
        if name in self._ports:
            self._unplug(self._ports[name])
        line.setblocking(False)
        port = self._ports[name] = Port(name, line)
        self._selector.register(line, selectors.EVENT_READ, port)

    def _unplug(self, port: Port) -> None:
        self._selector.unregister(port.socket)
        port.socket.close()
        del self._ports[port.name]

    # ------------------------------------------------------------------------------------- frames

    def _read(self, port: Port) -> None:
        try:
            data = port.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._unplug(port)
            return
        port.received += data
        received, begin, end = bytes(port.received), 0, len(port.received)
        now = time.monotonic()
        touched: set[str] = set()
        while end - begin >= _LENGTH:
            after = begin + _LENGTH + int.from_bytes(received[begin : begin + _LENGTH], "big")
            if after > end:
                break
            port.frames_in += 1
            touched |= self._forward(port.name, received[begin:after], now)
            begin = after
        del port.received[:begin]
        for name in touched:
            if name in self._ports:
                self._write(self._ports[name])

    def _forward(self, source: str, frame: bytes, now: float) -> set[str]:
        """Where there is something to be written now. The frame is with its length."""
        if self._boot_file:
            frame = self._boot_file.passing(frame)
        begin = _LENGTH
        to, sender = frame[begin : begin + 6], frame[begin + 6 : begin + 12]
        self._places[sender] = source
        if self._longest and len(frame) > self._longest:
            return set()
        if self._no_names and (answer := no_such_name(frame)):
            return {source} if self._queue(source, answer) else set()
        if self._names and to in {self._names.mac, _EVERYBODY}:
            answered = self._ask_name_server(source, frame[begin:])
            if to == self._names.mac:
                return {source} if answered else set()
            if answered:
                return {source}
        known = None if to[0] & 1 else self._places.get(to)
        touched = set()
        for target in (known,) if known in self._ports else tuple(self._ports):
            if target == source or target is None:
                continue
            loss, delay_s = self._paths.get((source, target), _WHOLE)
            if loss and self._random.random() < loss:
                continue
            if delay_s:
                self._count += 1
                late = (now + delay_s, self._count, source, target, frame)
                heapq.heappush(self._late, late)
            elif self._queue(target, frame):
                touched.add(target)
        return touched

    def _ask_name_server(self, source: str, frame: bytes) -> bool:
        """Whether a frame was for the name server, and its answer is on its way back."""
        lost = any(
            self._random.random() < self._paths.get(path, _WHOLE)[0]
            for path in ((source, NAME_SERVER), (NAME_SERVER, source))
        )
        answer = None if lost or self._names is None else self._names.answer(frame)
        return answer is not None and self._queue(
            source, len(answer).to_bytes(_LENGTH, "big") + answer
        )

    def _deliver_late(self) -> None:
        now = time.monotonic()
        while self._late and self._late[0][0] <= now:
            _, _, source, target, frame = heapq.heappop(self._late)
            # What was under way when the path was cut is lost with it.
            if self._paths.get((source, target), _WHOLE)[0] < 1 and self._queue(target, frame):
                self._write(self._ports[target])

    def _queue(self, target: str, frame: bytes) -> bool:
        port = self._ports.get(target)
        if port is None:
            return False
        if len(port.waiting) + len(frame) > _QUEUE_BYTES:
            port.dropped += 1
            return False
        port.frames_out += 1
        port.waiting += frame
        return True

    def _write(self, port: Port) -> None:
        try:
            sent = port.socket.send(port.waiting) if port.waiting else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._unplug(port)
            return
        del port.waiting[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if port.waiting else 0)
        if self._selector.get_key(port.socket).events != events:
            self._selector.modify(port.socket, events, port)


def no_such_name(frame: bytes) -> bytes | None:
    """The answer to a frame that asks DNS for a name: there is none. None for any other frame.

    The frame is with its length. Of what is summed up in checksums, addresses and ports change
    places, and the flags change.
    """
    packet = bytearray(frame)
    ip = _LENGTH + _ETHERNET_BYTES
    kind = frame[ip - 2 : ip]
    if len(frame) < ip + 20:
        return None
    if kind == b"\x08\x00" and frame[ip + 9] == _IS_UDP:
        addresses, size, udp = ip + 12, 4, ip + 4 * (frame[ip] & 15)
    elif kind == b"\x86\xdd" and frame[ip + 6] == _IS_UDP:
        addresses, size, udp = ip + 8, 16, ip + 40
    else:
        return None
    message = udp + 8
    if len(frame) < message + 12 or int.from_bytes(frame[udp + 2 : udp + 4], "big") != _DNS_PORT:
        return None
    for begin, length in ((_LENGTH, 6), (addresses, size), (udp, 2)):
        middle, end = begin + length, begin + 2 * length
        packet[begin:end] = frame[middle:end] + frame[begin:middle]
    flags, checksum = (int.from_bytes(frame[at : at + 2], "big") for at in (message + 2, udp + 6))
    packet[message + 2 : message + 4] = _NO_SUCH_NAME_FLAGS.to_bytes(2, "big")
    if checksum:
        # RFC 1624: no more than what has changed.
        total = (~checksum & 0xFFFF) + (~flags & 0xFFFF) + _NO_SUCH_NAME_FLAGS
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        packet[udp + 6 : udp + 8] = ((~total & 0xFFFF) or 0xFFFF).to_bytes(2, "big")
    return bytes(packet)


def main() -> None:
    """Serve the socket that was inherited."""
    with socket.socket(fileno=int(sys.argv[1])) as control:
        Switch(control).run()


if __name__ == "__main__":
    main()
