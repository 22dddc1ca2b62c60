"""A machine's serial line through the API server, which lasts as long as the machine does.

What was said while nobody listened is found in the record that the cluster keeps of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt.api import WebSocket
from kboot.log import logger

#: How much of what was heard before and after a gap is looked for in the record.
TAIL_BYTES = 300
HEAD_BYTES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What was missed."""

    #: As a terminal would have got it; empty if nothing was missed, or nothing is known.
    missed: bytes
    #: Whether `missed` is all.
    complete: bool

    def marked(self, lost_s: float) -> bytes:
        """What goes into our own record: nothing for a gap in which nothing was said."""
        if self.complete and not self.missed:
            return b""
        if not self.missed:
            return _mark(f"the console was lost for {lost_s:.1f} s; what it said then is not known")
        doubt = "" if self.complete else ", perhaps not all"
        begin = _mark(
            f"the console was lost for {lost_s:.1f} s; the next {len(self.missed)} bytes"
            f"{doubt} are from guest-console-log"
        )
        return begin + self.missed + _mark("the console is back")


def find(before: bytes, record: bytes, after: bytes) -> Gap | None:
    """What the record has between what was heard `before` and `after`; None if it has not yet.

    None as well if so little was heard before that its place in the record is not certain.
    `before` is empty if nothing was heard before, and `after` if nothing has come yet: then all
    that the record has is taken.
    """
    text = _plain(record)
    tail, head = _plain(before)[-TAIL_BYTES:], _plain(after)[:HEAD_BYTES]
    position = 0
    if tail:
        found = text.rfind(tail)
        if found < 0 or (len(tail) < HEAD_BYTES and text.count(tail) > 1):
            return None
        position = found + len(tail)
    if not head:
        return Gap(missed=_terminal(text[position:]), complete=False)
    end = text.find(head, position)
    if end < 0:
        return None
    return Gap(missed=_terminal(text[position:end]), complete=True)


def past(record: bytes, after: bytes) -> bytes | None:
    """All that the record has up to what was heard first; None if it has not got so far yet."""
    text, head = _plain(record), _plain(after)[:HEAD_BYTES]
    end = text.rfind(head) if head else len(text)
    return None if end < 0 else _terminal(text[:end])


def marked_past(said: bytes) -> bytes:
    """The beginning of our own record of a machine that was there before we came."""
    begin = _mark(f"the next {len(said)} bytes are from guest-console-log: what was said before")
    return begin + said + _mark("the console is attached")


def _plain(data: bytes) -> bytes:
    return data.replace(b"\r", b"")


def _terminal(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def _mark(text: str) -> bytes:
    return f"\r\n[kboot: {text}]\r\n".encode()


#: An API server may be away for so long; then the console is lost.
_RECONNECT_S = 60.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0

#: Losses within ten seconds that only another session can be the cause of: the serial line takes
#: one at a time, and the newest wins.
_QUARREL = 50
_QUARREL_S = 10.0

#: How long the first bytes after a gap are waited for, and their coming into the record.
_HEAD_WAIT_S = 1.0
_RECORD_WAIT_S = 3.0

#: What SeaBIOS says before it waits ten seconds for a key, where a machine was started paused.
_BOOT_MENU = b"boot menu"

_MEMORY_BYTES = 4096

#: Within so long after it was opened, another session that goes on opening the line has taken it.
_HOLD_S = 2.0

_TAKEN = (
    "another session takes the machine's console again and again; it allows one: end the other one "
    "(virtctl console, a web console)"
)


class NoStream:
    """The serial line of a machine that is off."""

    def recv(self, _size: int, /) -> bytes:
        """The end."""
        return b""

    def sendall(self, _data: bytes, /) -> None:
        """Nobody listens."""
        raise ConnectionError("the machine is off")

    @property
    def fault(self) -> str:
        """None: there is no line to be had."""
        return ""

    def reopen(self, _deadline: Deadline) -> bool:
        """There is none."""
        return False

    def close(self) -> None:
        """Nothing to be done."""

    def past(self) -> bytes:
        """Nobody knows."""
        return b""


class ConsoleStream:
    """The serial line as a `kboot.backend.Stream`: it reconnects, and marks what it missed.

    `connect` opens the websocket. `alive` says whether the machine is still the one whose line
    this is: if not, the stream ends. `read_record` returns the cluster's record of the line.
    """

    def __init__(
        self,
        connect: Callable[[Deadline], WebSocket],
        *,
        alive: Callable[[], bool],
        read_record: Callable[[Deadline], bytes],
        from_the_start: bool,
        deadline: Deadline,
    ) -> None:
        """`from_the_start` says that the machine waits for us before its first instruction."""
        self._connect = connect
        self._alive = alive
        self._read_record = read_record
        self._changed = threading.Condition()
        self._socket: WebSocket | None = connect(deadline)
        self._closed = False
        #: Whether the machine is another one now, or none.
        self._gone = False
        self._fault, self._lost = "", 0.0
        self._ready = b""
        #: What came while it was not sure yet whether the line is ours.
        self._early = b""
        self._heard = b""
        self._losses: deque[float] = deque(maxlen=_QUARREL)
        self._menu = from_the_start
        self._missed_since: float | None = None if from_the_start else time.monotonic()

    @property
    def fault(self) -> str:
        """Why the line cannot be had, though the machine runs; empty if it can."""
        return self._fault

    def recv(self, size: int, /) -> bytes:
        """Wait for bytes; empty when the machine is gone. OSError if its line cannot be had."""
        while not self._closed:
            if self._ready:
                data, self._ready = self._ready[:size], self._ready[size:]
                return data
            socket = self._socket
            if socket is None:
                if self._fault:
                    raise ConnectionError(self._fault)
                break
            if self._missed_since is not None:
                self._ready = self._fill(socket, time.monotonic() - self._missed_since)
                self._missed_since = None
                continue
            if data := socket.recv(65536):
                self._ready = data
                self._hear(data)
            elif not self._reconnect():
                break
        return b""

    def past(self) -> bytes:
        """What was said before we came, as far as the record has it, between marks.

        To be called once, before the first `recv`, which goes on from there.
        """
        self._missed_since = None
        socket = self._socket
        head = self._head(socket) if socket else b""
        said = b""
        for _ in Deadline(_RECORD_WAIT_S).poll(0.3):
            record = self._record_now()
            if (found := past(record, head)) is not None:
                said = found
                break
            # The record lags; what it has is better than nothing.
            said = past(record, b"") or b""
        self._hear(said + head)
        self._ready = head
        return marked_past(said)

    def sendall(self, data: bytes, /) -> None:
        """Send all of `data`; while the connection is being made anew, wait for it."""
        deadline = Deadline(_RECONNECT_S)
        while True:
            with self._changed:
                self._changed.wait_for(self._is_settled, timeout=deadline.remaining)
                socket = self._socket
            if socket is None or self._closed:
                raise ConnectionError(self._fault or "the machine's serial line is gone")
            try:
                socket.sendall(data)
            except OSError:
                # The reader finds out as well, and sees to it.
                self._wait_until_lost(socket, deadline)
                if deadline.expired:
                    raise
            else:
                return

    def reopen(self, deadline: Deadline) -> bool:
        """Try to have the line again after a `fault`; whether it is ours now.

        Then `recv` goes on, with what was missed. Another session that has the line loses it, once.
        """
        if not self._fault or self._closed:
            return False
        try:
            socket = self._connect(deadline)
        except ClusterError as error:
            logger.debug("the console cannot be had yet: %s", error)
            return False
        if not self._holds(socket):
            socket.close()
            return False
        with self._changed:
            self._fault = ""
            self._losses.clear()
        return self._take(socket, self._lost)

    def close(self) -> None:
        """Give the stream up; a `recv` that waits in another thread returns."""
        with self._changed:
            self._closed = True
            socket, self._socket = self._socket, None
            self._changed.notify_all()
        if socket is not None:
            socket.close()

    # -------------------------------------------------------------------------------- inside

    def _hear(self, data: bytes) -> None:
        self._heard = (self._heard + data)[-_MEMORY_BYTES:]
        if self._menu and _BOOT_MENU in self._heard:
            # Any key ends the wait, but for escape, which opens the menu.
            self._heard = b""
            socket = self._socket
            if socket is not None:
                socket.sendall(b"\r")

    def _is_settled(self) -> bool:
        """Whether there is no use in waiting for a connection: it is there, or does not come."""
        return bool(self._socket is not None or self._closed or self._gone or self._fault)

    def _holds(self, socket: WebSocket) -> bool:
        """Whether a connection is not taken from us at once."""
        self._early = b""
        deadline = Deadline(_HOLD_S)
        while not self._closed and socket.readable(deadline.remaining):
            data = socket.recv(65536)
            if not data:
                return False
            self._early += data
            if deadline.expired:
                break
        return not self._closed

    def _wait_until_lost(self, socket: WebSocket, deadline: Deadline) -> None:
        """Wait until the reader has given `socket` up."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._socket is not socket or self._closed, timeout=deadline.remaining
            )

    def _reconnect(self) -> bool:
        """Connect anew; False if the machine is not the same any more, or we are closed."""
        lost = time.monotonic()
        with self._changed:
            old, self._socket = self._socket, None
        if old is not None:
            old.close()
        if self._is_quarrel(lost):
            self._fail(_TAKEN, lost)
        deadline = Deadline(_RECONNECT_S)
        pause = _FIRST_PAUSE_S
        error: ClusterError | None = None
        while not self._closed and self._alive():
            try:
                socket = self._connect(deadline)
            except ClusterError as refusal:
                error = refusal
            else:
                return self._take(socket, lost)
            if deadline.expired:
                self._fail(f"the machine's console cannot be had again: {error}", lost)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        with self._changed:
            self._gone = True
            self._changed.notify_all()
        return False

    def _fail(self, fault: str, lost: float) -> NoReturn:
        """Give the line up, but for `reopen`: who waits to send must hear of it."""
        with self._changed:
            self._fault, self._lost = fault, lost
            self._changed.notify_all()
        raise ConnectionError(fault)

    def _take(self, socket: WebSocket, lost: float) -> bool:
        with self._changed:
            if self._closed:
                socket.close()
                return False
            self._socket = socket
            self._changed.notify_all()
        self._missed_since = lost
        logger.debug("the console is connected again after %.2f s", time.monotonic() - lost)
        return True

    def _is_quarrel(self, now: float) -> bool:
        """Count a loss, and say whether there were too many of them."""
        quarrel = len(self._losses) == _QUARREL and now - self._losses[0] < _QUARREL_S
        self._losses.append(now)
        return quarrel

    def _head(self, socket: WebSocket) -> bytes:
        """The first bytes that come; empty if none come for a while."""
        head, self._early = self._early, b""
        deadline = Deadline(_HEAD_WAIT_S)
        while len(head) < HEAD_BYTES and socket.readable(deadline.remaining):
            data = socket.recv(65536)
            if not data:
                break
            head += data
        return head

    def _record_now(self) -> bytes:
        try:
            return self._read_record(Deadline(_RECORD_WAIT_S))
        except ClusterError as error:
            logger.debug("no record of the console: %s", error)
            return b""

    def _fill(self, socket: WebSocket, lost_s: float) -> bytes:
        """What was missed, as far as the record has it, and the first bytes that came after."""
        head = self._head(socket)
        before, deadline = self._heard, Deadline(_RECORD_WAIT_S)
        missed = None
        for _ in deadline.poll(0.3):
            try:
                missed = find(before, self._read_record(deadline), head)
            except ClusterError as error:
                logger.debug("no record of the console: %s", error)
                break
            if missed is not None or self._closed or not self._alive():
                break
        found = missed or Gap(missed=b"", complete=False)
        if missed is None:
            # What comes next does not follow what was heard before.
            self._heard = b""
        self._hear(found.missed + head)
        return found.marked(lost_s) + head
