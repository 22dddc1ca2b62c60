"""The processes that use another one's boot server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot import wire
from kboot.backend import BootServer, Fetch, OnProgress, ignore_progress
from kboot.deadline import Deadline
from kboot.errors import InfraError

#: More than any of the limits that the lender itself has for a server's start, or for a file.
_ANSWER_LIMIT_S = 1200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowed:
    """What another process of the run has lent us."""

    server: BootServer
    #: The run for our machines to join, see `kboot.boot.open_backend`; empty if they need none.
    run: str


@contextlib.contextmanager
def borrow(directory: Path) -> Iterator[Borrowed]:
    """The boot server of the process that lends one in `directory`, started if it was not yet.

    `InfraError` if that process is gone; and whatever the start of a backend or a server raises.
    """
    try:
        connection = wire.connect(directory)
    except OSError as error:
        raise _gone() from error
    with contextlib.closing(connection.socket):
        connection.socket.settimeout(_ANSWER_LIMIT_S)
        lender = _Lender(connection)
        loan = lender.ask("borrow")
        yield Borrowed(server=_Server(lender, loan["base"]), run=loan["run"])


class _Lender:
    """The other process. One question at a time."""

    def __init__(self, connection: wire.Wire) -> None:
        self._wire = connection
        self._lock = threading.Lock()

    def ask(self, verb: str, **arguments: Any) -> Any:
        """What it answers. Raises what went wrong there, and `InfraError` if it is gone."""
        with self._lock:
            try:
                self._wire.send({"verb": verb, **arguments})
                answer = self._wire.receive()
            except (OSError, ValueError) as error:
                raise _gone() from error
        if answer is None:
            raise _gone()
        if "error" in answer:
            raise wire.to_error(answer["error"])
        return answer["result"]


class _Server:
    """A boot server that is another process's (see `kboot.backend.BootServer`)."""

    def __init__(self, lender: _Lender, base: str) -> None:
        self._lender = lender
        self._base = base
        self._fetches: list[Fetch] = []
        self._reading = threading.Lock()

    def url(self, path: str) -> str:
        """The URL of `path` as the guest sees it, whether anything is there or not."""
        return self._base + path

    def put(self, artifact: Path, on_progress: OnProgress = ignore_progress) -> str:
        """Publish a file under its sha256 and return its URL; nobody is told how far it is."""
        url: str = self._lender.ask("put", path=str(artifact.absolute()))
        return url

    def remove(self, url: str) -> int:
        """Drop what `put` has published there; the bytes that it took, 0 if there was nothing."""
        size: int = self._lender.ask("remove", url=url)
        return size

    def write(self, name: str, text: str) -> str:
        """Publish or replace a small text atomically and return its URL."""
        url: str = self._lender.ask("write", name=name, text=text)
        return url

    def fetches(self) -> Sequence[Fetch]:
        """Every request so far, in order, whosever machine it came from."""
        with self._reading:
            new = self._lender.ask("fetches", **{"from": len(self._fetches)})
            self._fetches.extend(Fetch(**fetch) for fetch in new)
            return tuple(self._fetches)

    def catch_up(self, deadline: Deadline) -> None:
        """Have in `fetches` all that the server has logged by now. `InfraError` if it cannot."""
        self._lender.ask("catch_up", limit_s=deadline.remaining)

    def check(self) -> None:
        """Raise `InfraError` if the server is not fine, or the process that has it gone."""
        self._lender.ask("check")

    def evidence(self, directory: Path) -> None:
        """Write what is needed to look into it later: its configuration, and what it had to say."""
        self._lender.ask("evidence", directory=str(directory.absolute()))


def _gone() -> InfraError:
    return InfraError("the process that has this run's boot server is gone")
