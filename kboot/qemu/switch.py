"""An Ethernet switch for machines of this host, as a program: ``python switch.py DESCRIPTOR``.

It runs by itself, without the rest of kboot: a process of its own keeps its time when a test keeps
Python busy. The descriptor is a socket (SOCK_SEQPACKET) over which it is told what to do, in JSON:

- ``{"do": "plug", "port": NAME}`` with a connected stream socket that carries frames, each after
  its length in four bytes, as ``-netdev stream`` has them;
- ``{"do": "paths", "paths": [[FROM, TO, LOSS, DELAY], ...]}``: from now on, of the frames between
  these ports the share LOSS is lost and the rest comes DELAY seconds late. All others pass;
- ``{"do": "limits", "mtu": BYTES, "dns": "not-found"}``: from now on, packets of more bytes are
  lost, and who asks DNS for a name is told that there is none. 0 and "" for neither;
- ``{"do": "counts"}``.

The answer has ``at``, monotonic seconds at which that was done. It ends with the socket.
"""

from __future__ import annotations

import heapq
import json
import random
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

#: Frames that a machine does not take are dropped when there are more of them.
_QUEUE_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_LENGTH = 4
_MESSAGE_BYTES = 1 << 20
_WHOLE = (0.0, 0.0)

_ETHERNET_BYTES = 14
_UDP = 17
_DNS_PORT = 53
#: In a DNS message: that it is an answer, with recursion, and that the name does not exist.
_NO_SUCH_NAME = 0x8183


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


class Switch:
    """Forwards frames to where their address was seen last, and to all where that is unknown."""

    def __init__(self, control: socket.socket, *, seed: int = 1) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, None)
        self._ports: dict[str, Port] = {}
        self._places: dict[bytes, str] = {}
        self._paths: dict[tuple[str, str], tuple[float, float]] = {}
        #: Of a whole frame, with its length before it; None for any.
        self._longest: int | None = None
        self._no_names = False
        #: When, a running number, from where, to where, the frame.
        self._late: list[tuple[float, int, str, str, bytes]] = []
        self._count = 0
        # The same losses in every run, as far as the frames are the same.
        self._random = random.Random(seed)  # noqa: S311  no secret

    def run(self) -> None:
        """Until the control socket ends."""
        while True:
            wait_s = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
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
        message, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 1)
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
            case "counts":
                answer = {name: port.counts() for name, port in self._ports.items()}
        self._control.send(json.dumps({"at": time.monotonic(), "answer": answer}).encode())
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
        begin = _LENGTH
        to, sender = frame[begin : begin + 6], frame[begin + 6 : begin + 12]
        self._places[sender] = source
        if self._longest and len(frame) > self._longest:
            return set()
        if self._no_names and (answer := no_such_name(frame)):
            return {source} if self._queue(source, answer) else set()
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
    if kind == b"\x08\x00" and frame[ip + 9] == _UDP:
        addresses, size, udp = ip + 12, 4, ip + 4 * (frame[ip] & 15)
    elif kind == b"\x86\xdd" and frame[ip + 6] == _UDP:
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
    packet[message + 2 : message + 4] = _NO_SUCH_NAME.to_bytes(2, "big")
    if checksum:
        # RFC 1624: no more than what has changed.
        total = (~checksum & 0xFFFF) + (~flags & 0xFFFF) + _NO_SUCH_NAME
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
