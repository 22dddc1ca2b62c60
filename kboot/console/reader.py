"""The thread that drains the serial line, always, and tells subscribers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from kboot.backend import Stream
from kboot.console.tape import Tape
from kboot.console.text import Line
from kboot.errors import InfraError
from kboot.log import logger

#: How long a stream that was closed may take to say so.
_CLOSE_S = 5.0


class Reader:
    """Reads one stream after another onto a tape."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._subscribers: list[Callable[[Line], None]] = []
        self._thread: threading.Thread | None = None

    def start(self, stream: Stream) -> None:
        """Read `stream` until it ends."""
        self._thread = threading.Thread(
            target=self._drain, args=(stream,), name="kboot-console", daemon=True
        )
        self._thread.start()

    def stop(self, stream: Stream) -> None:
        """Give `stream` up and wait for the thread."""
        with contextlib.suppress(OSError):
            stream.close()
        if self._thread is not None:
            self._thread.join(timeout=_CLOSE_S)
            if self._thread.is_alive():
                logger.warning("the console's stream did not end when it was closed")
            self._thread = None

    def subscribe(self, callback: Callable[[Line], None]) -> Callable[[], None]:
        """As `Console.subscribe`."""
        self._subscribers.append(callback)
        return lambda: self._unsubscribe(callback)

    def _drain(self, stream: Stream) -> None:
        reason = "end of stream"
        try:
            while data := stream.recv(65536):
                self._publish(self._take(data))
        except OSError as error:
            reason = str(error)
        self._publish(self._tape.end(reason))

    def _take(self, data: bytes) -> list[Line]:
        try:
            return self._tape.take(data)
        except InfraError as error:  # the waits say all that there is to say
            self._tape.fail(error)
            return []
        except Exception as error:  # whatever it is, the waits must hear of it, and we go on
            logger.exception("the console cannot be recorded")
            self._tape.fail(error)
            return []

    def _publish(self, lines: list[Line]) -> None:
        for line in lines:
            for callback in tuple(self._subscribers):
                try:
                    callback(line)
                except Exception:
                    logger.exception("a console subscriber failed; it gets no more lines")
                    self._unsubscribe(callback)

    def _unsubscribe(self, callback: Callable[[Line], None]) -> None:
        with contextlib.suppress(ValueError):
            self._subscribers.remove(callback)
