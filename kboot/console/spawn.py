"""pexpect on the serial line, for people who bring pexpect scripts. Imported when it is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any

from pexpect import EOF, TIMEOUT
from pexpect.spawnbase import SpawnBase

from kboot.console.expect import Wait
from kboot.console.record import ConsoleLog
from kboot.deadline import Deadline
from kboot.errors import GuestTimeout, InfraError

if TYPE_CHECKING:
    # Generic in the type stubs only.
    _Spawn = SpawnBase[Any]
else:
    _Spawn = SpawnBase


class ConsoleSpawn(_Spawn):
    """A `pexpect.spawnbase.SpawnBase` whose child is the machine. Made by `Console.spawn`.

    It reads the record of the console, not the line itself: any number of them, and the console's
    own `expect`, see the same bytes. `expect` and what builds on it raise as pexpect does, and
    `KernelCrash` for a crash that was not expected, `InfraError` for a fault of the host.
    """

    # pexpect's own, which its type stubs leave out.
    _encoder: Any
    _decoder: Any
    _log: Callable[[Any, str], None]
    _coerce_send_string: Callable[[Any], Any]

    def __init__(
        self,
        log: ConsoleLog,
        send: Callable[[bytes], None],
        wait: Callable[[Deadline, str], Wait],
        *,
        timeout: float | None,
        encoding: str | None,
        codec_errors: str,
        searchwindowsize: int | None,
        logfile: IO[Any] | None,
    ) -> None:
        super().__init__(
            timeout=timeout,
            maxread=1 << 16,
            searchwindowsize=searchwindowsize,
            logfile=logfile,
            encoding=encoding,
            codec_errors=codec_errors,
        )
        self._log_of_console = log
        self._send = send
        self._wait = wait
        self.position = log.record.size
        self.name = "<serial console>"
        #: What the return key sends; a terminal makes a newline of it.
        self.linesep = self.string_type("\r") if encoding else b"\r"
        self.delayafterread = None
        self.closed = False

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> Any:
        """The next characters, at most `size` bytes; pexpect calls this.

        `pexpect.TIMEOUT` when none come in time, `pexpect.EOF` when the machine is gone.
        """
        seconds = self.timeout if timeout == -1 else timeout
        deadline = Deadline(float("inf") if seconds is None else seconds)
        wait = self._wait(deadline, "output for pexpect")
        log = self._log_of_console
        with log.changed:
            try:
                while not (data := self._next(size)):
                    wait.pause()
            except GuestTimeout as error:
                raise TIMEOUT(str(error)) from error
            except InfraError as error:
                if log.ended is None:
                    raise
                self.flag_eof = True
                raise EOF(str(error)) from error
        text = self._decoder.decode(data, final=False)
        self._log(text, "read")
        return text

    def _next(self, size: int) -> bytes:
        """The next bytes that are there; none of what a dead machine prints after its crash."""
        log = self._log_of_console
        end = log.record.size if log.crashes.fatal is None else log.crashes.fatal.start_offset
        start = max(self.position, log.record.start)
        data = log.record.read(start, max(start, min(end, start + size)))
        if data:
            self.position = start + len(data)
        return data

    def send(self, s: str | bytes) -> int:
        """Type `s`, as it is; the number of bytes."""
        if self.delaybeforesend is not None:
            time.sleep(self.delaybeforesend)
        text = self._coerce_send_string(s)
        self._log(text, "send")
        raw = self._encoder.encode(text, final=False)
        self._send(raw)
        return len(raw)

    def sendline(self, s: str | bytes = "") -> int:
        """Type `s` and press return."""
        return self.send(self._coerce_send_string(s) + self.linesep)

    def sendcontrol(self, char: str) -> int:
        """Type a letter with the control key: ``sendcontrol("c")``."""
        return self.send(chr(ord(char.upper()) ^ 0x40))

    def write(self, s: str | bytes) -> None:
        """As `send`, without a result."""
        self.send(s)

    def writelines(self, sequence: Iterable[str | bytes]) -> None:
        """Type one after the other."""
        for s in sequence:
            self.send(s)

    def isalive(self) -> bool:
        """Whether the serial line is open."""
        return self._log_of_console.ended is None

    def close(self) -> None:
        """Read and type no more; the console goes on."""
        self.closed = True
