"""Small real serial lines for tests: socket pairs, local shells on terminals, noise on the wire."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kboot.backend import Stream
from kboot.console import Console
from kboot.crash import Scanner

PRINTK = (
    b"[   12.345678] random: crng init done\r\n",
    b"[    1.971179][   T42] tsc: Refined TSC clocksource calibration: 2596.103 MHz\r\n",
    b"<6>[  100.000001] usb 1-1: new high-speed USB device number 2 using xhci_hcd\r\n",
)
PRINTK_WITHOUT_TIME = (b"flood\r\n", b"usb 1-1: new device\r\n", b"audit: type=1400\r\n")


class SocketStream:
    """A socket as a `Stream`."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def recv(self, size: int, /) -> bytes:
        return self._socket.recv(size)

    def sendall(self, data: bytes, /) -> None:
        self._socket.sendall(data)

    def close(self) -> None:
        # Closing alone does not wake a thread that waits in recv.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class TerminalStream:
    """The outer end of a pseudo terminal as a `Stream`."""

    def __init__(self, descriptor: int, closed: int) -> None:
        self._descriptor = descriptor
        #: An eventfd; a pseudo terminal alone cannot wake a reader of its own end.
        self._closed = closed

    def recv(self, size: int, /) -> bytes:
        ready, _, _ = select.select([self._descriptor, self._closed], [], [])
        return b"" if self._closed in ready else os.read(self._descriptor, size)

    def sendall(self, data: bytes, /) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        os.eventfd_write(self._closed, 1)


@dataclass
class NoisyStream:
    """A stream that kernel messages are printed into, and that loses some of what is typed."""

    inner: Stream
    records: Sequence[bytes] = ()
    #: Chance of a kernel message before each byte of output.
    record_chance: float = 0.0
    #: Chance for each byte of input to be lost.
    loss_chance: float = 0.0
    #: Seconds that output is on its way, as on a cluster's websocket.
    delay_s: float = 0.0
    random: random.Random = field(default_factory=lambda: random.Random(1))
    #: How often something was typed, and how many bytes in all.
    sendings: int = 0
    typed: int = 0

    def recv(self, size: int, /) -> bytes:
        data = self.inner.recv(size)
        time.sleep(self.delay_s)
        if not self.records:
            return data
        noisy = bytearray()
        for byte in data:
            if self.random.random() < self.record_chance:
                noisy += self.random.choice(self.records)
            noisy.append(byte)
        return bytes(noisy)

    def sendall(self, data: bytes, /) -> None:
        self.sendings += 1
        self.typed += len(data)
        self.inner.sendall(bytes(byte for byte in data if self.random.random() >= self.loss_chance))

    def close(self) -> None:
        self.inner.close()


@contextlib.contextmanager
def terminal(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> Iterator[TerminalStream]:
    """Run a program on a terminal of its own, 80 columns wide."""
    outer, inner = pty.openpty()
    closed = os.eventfd(0)
    process = subprocess.Popen(
        ["setsid", "-c", *command],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**os.environ, "PS1": "\\e[1mlocal\\e[0m # ", **(environment or {})},
    )
    os.close(inner)
    try:
        yield TerminalStream(outer, closed)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(outer)
        os.close(closed)


@contextlib.contextmanager
def console_on(stream: Stream) -> Iterator[Console]:
    """A console without a record on disk."""
    with Console(stream, record=None, scanner=Scanner()) as console:
        yield console
