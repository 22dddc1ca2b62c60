"""One boot server for all processes of a parallel run: one has it, the others ask it."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot import rpc, state
from kboot.backend import BootServer, Fetch, OnProgress, SharedRunBackend, ignore_progress
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.machine import open_backend
from kboot.nginx import FetchLog
from kboot.server_faults import Fault, Faulty
from kboot.server_tls import Certificate, TlsServer, WithTls

__all__ = ["SharedServer", "share_server", "use_shared_server"]


_SERVER_START_LIMIT_S = 120.0

Arguments = Mapping[str, Any]


@contextlib.contextmanager
def share_server(config: Config) -> Iterator[Path]:
    """For the length of the ``with``, other processes of this user can use one boot server.

    They do so with `use_shared_server`.

    Yields the directory by which they find us. Nothing is started before the first one asks.
    """
    owner = _Owner(config)
    with (
        state.run_directory() as directory,
        contextlib.closing(owner),
        rpc.serving(directory, owner.answer),
    ):
        yield directory


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    """The boot server, once somebody has asked for it."""

    server: BootServer
    #: The run that the machines of all processes belong to; empty if they need none.
    run: str


class _Owner:
    """Answers the other processes, each on a thread of its own."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stack = contextlib.ExitStack()
        self._started: _Started | None = None
        #: Opens and closes it: what begins on a thread ends there.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kboot-server")
        # A file that two bring is stored once. Meanwhile, others look after their machines.
        storing = threading.Lock()
        self._alone = {"put": storing, "remove": storing, "fetches": threading.Lock()}

    def close(self) -> None:
        """End the boot server, if it was started; its users are told that it is gone."""
        with self._thread:
            self._thread.submit(self._close).result()

    def answer(self, request: rpc.Request) -> object:
        """Do what a process asks for, on its thread."""
        if request.verb == "open":
            opened = self._thread.submit(self._open).result()
            return {"base": opened.server.url(""), "run": opened.run}
        if (started := self._started) is None:
            raise InfraError("the run's boot server has ended")
        with self._alone.get(request.verb, contextlib.nullcontext()):
            return _VERBS[request.verb](started.server, request.arguments)

    def _open(self) -> _Started:
        if self._started is None:
            with contextlib.ExitStack() as stack:
                backend = stack.enter_context(open_backend(self._config))
                server = stack.enter_context(backend.serve(Deadline(_SERVER_START_LIMIT_S)))
                run = backend.run_name if isinstance(backend, SharedRunBackend) else ""
                self._started = _Started(server=server, run=run)
                self._stack = stack.pop_all()
        return self._started

    def _close(self) -> None:
        self._started = None
        self._stack.close()


def _fetches(server: BootServer, arguments: Arguments) -> object:
    fetches, position = server.fetches_since(arguments["position"])
    return {"fetches": [dataclasses.asdict(fetch) for fetch in fetches], "position": position}


#: What a process may ask for.
_VERBS: Mapping[str, Callable[[BootServer, Arguments], object]] = {
    "put": lambda server, each: server.put(Path(each["path"])),
    "remove": lambda server, each: server.remove(each["url"]),
    "write": lambda server, each: server.write(each["name"], each["text"]),
    "publish_tree": lambda server, each: server.publish_tree(
        each["folder"], {name: Path(path) for name, path in each["files"].items()}
    ),
    "faults_fault": lambda server, _: server.faults_fault(),
    "set_fault": lambda server, each: server.set_fault(Fault(**each["fault"])),
    "clear_faults": lambda server, each: server.clear_faults(each["number"]),
    "fault_hits": lambda server, each: server.fault_hits(each["number"]),
    "tls_fault": lambda server, _: server.tls_fault(),
    "serve_tls": lambda server, each: dataclasses.asdict(server.serve_tls(each["certificate"])),
    "fetches": _fetches,
    "catch_up": lambda server, each: server.catch_up(Deadline(each["limit_s"])),
    "check": lambda server, _: server.check(),
    "evidence": lambda server, each: server.evidence(Path(each["directory"])),
}


#: More than any of the limits that the owner itself has for a server's start, or for a file.
_ANSWER_LIMIT_S = 1200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedServer:
    """The boot server of another process of the run."""

    server: BootServer
    #: The run for our machines to join, see `kboot.machine.open_backend`; empty if they need none.
    run: str


@contextlib.contextmanager
def use_shared_server(directory: Path) -> Iterator[SharedServer]:
    """The boot server of the process that shares one in `directory`, started if it was not yet.

    `InfraError` if that process is gone; and whatever the start of a backend or a server raises.
    """
    try:
        wire = rpc.connect(directory)
    except OSError as error:
        raise _gone() from error
    with contextlib.closing(rpc.Client(wire, _gone, answer_limit_s=_ANSWER_LIMIT_S)) as client:
        answer = client.ask("open")
        yield SharedServer(server=_Server(client, answer["base"]), run=answer["run"])


class _Server(Faulty, WithTls):
    """A boot server that is another process's (see `kboot.backend.BootServer`)."""

    def __init__(self, client: rpc.Client, base: str) -> None:
        self._client = client
        self._base = base
        self._fetches = FetchLog()
        #: The numbers of those that were set from here.
        self._faults: list[int] = []
        #: How far the owner's are read.
        self._position = 0
        self._reading = threading.Lock()

    def url(self, path: str) -> str:
        """The URL of `path` as the guest sees it, whether anything is there or not."""
        return self._base + path

    def put(self, artifact: Path, on_progress: OnProgress = ignore_progress) -> str:
        """Publish a file under its sha256 and return its URL; nobody is told how far it is."""
        url: str = self._client.ask("put", path=str(artifact.absolute()))
        return url

    def remove(self, url: str) -> int:
        """Drop what `put` has published there; the bytes that it took, 0 if there was nothing."""
        size: int = self._client.ask("remove", url=url)
        return size

    def write(self, name: str, text: str) -> str:
        """Publish or replace a small text atomically and return its URL."""
        url: str = self._client.ask("write", name=name, text=text)
        return url

    def publish_tree(self, folder: str, files: Mapping[str, Path]) -> Sequence[str]:
        """See `kboot.backend.BootServer`."""
        paths = {name: str(path.absolute()) for name, path in files.items()}
        changed: Sequence[str] = self._client.ask("publish_tree", folder=folder, files=paths)
        return changed

    def fetches(self) -> Sequence[Fetch]:
        """The newest requests, in order, from all machines of the run."""
        self._read_on()
        return self._fetches.all()

    def fetches_since(self, position: int) -> tuple[Sequence[Fetch], int]:
        """See `kboot.backend.BootServer`."""
        self._read_on()
        return self._fetches.since(position)

    def _read_on(self) -> None:
        with self._reading:
            answer = self._client.ask("fetches", position=self._position)
            for fetch in answer["fetches"]:
                self._fetches.append(Fetch(**fetch))
            self._position = answer["position"]

    def catch_up(self, deadline: Deadline) -> bool:
        """See `kboot.backend.BootServer`."""
        complete: bool = self._client.ask("catch_up", limit_s=deadline.remaining)
        return complete

    def faults_fault(self) -> str | None:
        """None if the server can do wrong on purpose, or else why not."""
        reason: str | None = self._client.ask("faults_fault")
        return reason

    def set_fault(self, fault: Fault) -> int:
        """Set a fault, for all processes of the run; its number."""
        number: int = self._client.ask("set_fault", fault=fault.as_dict())
        self._faults.append(number)
        return number

    def clear_faults(self, number: int | None = None) -> None:
        """Take a fault away, or all that this process has set."""
        for each in self._faults if number is None else [number]:
            self._client.ask("clear_faults", number=each)

    def fault_hits(self, number: int) -> int:
        """How often a fault has happened."""
        hits: int = self._client.ask("fault_hits", number=number)
        return hits

    def tls_fault(self) -> str | None:
        """None if the server can serve by HTTPS, or else why not."""
        reason: str | None = self._client.ask("tls_fault")
        return reason

    def serve_tls(self, certificate: Certificate) -> TlsServer:
        """Have it serve by HTTPS, for all processes of the run."""
        return TlsServer(**self._client.ask("serve_tls", certificate=certificate))

    def check(self) -> None:
        """Raise `InfraError` if the server is not fine, or the process that has it gone."""
        self._client.ask("check")

    def evidence(self, directory: Path) -> None:
        """Write what is needed to look into it later: its configuration, and what it had to say."""
        self._client.ask("evidence", directory=str(directory.absolute()))


def _gone() -> InfraError:
    return InfraError("the process that has this run's boot server is gone")
