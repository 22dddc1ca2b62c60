"""The process that has the boot server: opens it when it is asked for, and does what others ask."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot import state, wire
from kboot.backend import BootServer, SharedRunBackend
from kboot.boot import open_backend
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.log import logger

_SERVER_START_LIMIT_S = 120.0

Arguments = Mapping[str, Any]


@contextlib.contextmanager
def lend(config: Config) -> Iterator[Path]:
    """For the length of the ``with``, other processes of this user can `borrow` a boot server.

    Yields the directory by which they find us. Nothing is started before the first one asks.
    """
    lender = _Lender(config)
    with state.run_directory() as directory, contextlib.closing(wire.listen(directory)) as listener:
        thread = threading.Thread(
            target=lender.accept, args=(listener,), name="kboot-lender", daemon=True
        )
        thread.start()
        try:
            yield directory
        finally:
            # Closing it would not wake up the thread that waits there.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            lender.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loan:
    """What is lent."""

    server: BootServer
    #: The run that the borrowers' machines belong to; empty if they need none.
    run: str


class _Lender:
    """Answers borrowers, each on a thread of its own."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stack = contextlib.ExitStack()
        self._loan: _Loan | None = None
        #: Opens and closes it: what begins on a thread ends there.
        self._keeper = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kboot-keeper")
        # A file that two bring is stored once. Meanwhile, others look after their machines.
        storing = threading.Lock()
        self._alone = {"put": storing, "remove": storing, "fetches": threading.Lock()}

    def accept(self, listener: socket.socket) -> None:
        """Take borrowers until nobody listens any more."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(
                    target=self._serve, args=(connection,), name="kboot-loan", daemon=True
                ).start()

    def close(self) -> None:
        """End the boot server, if it was started; borrowers are told that it is gone."""
        with self._keeper:
            self._keeper.submit(self._close).result()

    def _serve(self, connection: socket.socket) -> None:
        """One borrower, until it ends. It may vanish at any time."""
        with connection, contextlib.suppress(OSError, ValueError):
            client = wire.Wire(connection)
            while (message := client.receive()) is not None:
                try:
                    answer = {"result": self._answer(message["verb"], message)}
                except Exception as error:
                    logger.debug("a borrower's request failed", exc_info=True)
                    answer = {"error": wire.describe(error)}
                client.send(answer)

    def _answer(self, verb: str, arguments: Arguments) -> object:
        if verb == "borrow":
            loan = self._keeper.submit(self._open).result()
            return {"base": loan.server.url(""), "run": loan.run}
        if (lent := self._loan) is None:
            raise InfraError("the run's boot server has ended")
        with self._alone.get(verb, contextlib.nullcontext()):
            return _VERBS[verb](lent.server, arguments)

    def _open(self) -> _Loan:
        if self._loan is None:
            with contextlib.ExitStack() as stack:
                backend = stack.enter_context(open_backend(self._config))
                server = stack.enter_context(backend.serve(Deadline(_SERVER_START_LIMIT_S)))
                run = backend.run_name if isinstance(backend, SharedRunBackend) else ""
                self._loan = _Loan(server=server, run=run)
                self._stack = stack.pop_all()
        return self._loan

    def _close(self) -> None:
        self._loan = None
        self._stack.close()


def _fetches(server: BootServer, arguments: Arguments) -> object:
    return [dataclasses.asdict(fetch) for fetch in server.fetches()[arguments["from"] :]]


#: What a borrower may ask for.
_VERBS: Mapping[str, Callable[[BootServer, Arguments], object]] = {
    "put": lambda server, each: server.put(Path(each["path"])),
    "remove": lambda server, each: server.remove(each["url"]),
    "write": lambda server, each: server.write(each["name"], each["text"]),
    "fetches": _fetches,
    "catch_up": lambda server, each: server.catch_up(Deadline(each["limit_s"])),
    "check": lambda server, _: server.check(),
    "evidence": lambda server, each: server.evidence(Path(each["directory"])),
}
