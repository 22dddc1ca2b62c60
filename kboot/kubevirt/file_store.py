"""The files of the boot server on a cluster: sent through the API server's service proxy."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kboot.backend import OnProgress, Progress, ignore_progress
from kboot.cache import FileStamp
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kubevirt.api import CONFIG_MAPS, ApiError, Client
from kboot.kubevirt.api.client import SERVICES, Body
from kboot.kubevirt.api.watch import received
from kboot.kubevirt.manifests import RUN, Run, selector
from kboot.log import logger, step

if TYPE_CHECKING:
    import urllib3

#: For one file; a kernel with its modules through a slow line takes a while.
_PUT_LIMIT_S = 900.0
_WRITE_LIMIT_S = 60.0
#: For how long troubles that may pass are waited out.
_PATIENCE_S = 60.0
_PAUSE_S = 0.5
_PASSING = {429, 500, 502, 503, 504}
_SILENCE_S = 60.0
_PIECE_BYTES = 1 << 18
#: For how long a list of what is stored is good: other processes store files as well.
_LIST_S = 1.0
#: For how long somebody who removes a file is waited for.
_REMOVAL_LIMIT_S = 30.0
_TOKEN_HEADER = "X-Kboot-Token"  # noqa: S105  the header's name

#: What is not larger is read back. Larger files would take twice as long: of them, only the length
#: is asked for.
_READ_BACK_BYTES = 32 << 20


class SharedClaim:
    """Which runs use which artifacts of a claim that several runs store theirs on.

    Each run notes in its own object what it uses, so that a note goes with its run. Who uses a file
    notes that first and then looks whether somebody removes it; who removes one, the other way
    round: of two who do so at the same time, at least one sees the other.
    """

    def __init__(self, client: Client, run: Run, claim: str) -> None:
        self._client = client
        self._run = run
        self._used, self._removed = claim, f"removing from {claim}"

    def use(self, name: str, deadline: Deadline) -> None:
        """Note that the run uses an artifact, before it is looked for."""
        self._note(name, self._used, deadline)
        for _ in deadline.within(_REMOVAL_LIMIT_S).poll(_PAUSE_S):
            if self._removed not in self._others(name, deadline):
                return
        logger.debug("a run that was removing %s does not end; going on", name)

    @contextlib.contextmanager
    def removing(self, name: str, deadline: Deadline) -> Iterator[bool]:
        """Whether an artifact may be removed, in the ``with``: no other run uses it. Ours does not
        any more.
        """
        self._note(name, self._removed, deadline)
        try:
            yield self._used not in self._others(name, deadline)
        finally:
            self._note(name, None, deadline)

    def _note(self, name: str, value: str | None, deadline: Deadline) -> None:
        self._client.patch(CONFIG_MAPS, self._run.name, {"data": {name: value}}, deadline)

    def _others(self, name: str, deadline: Deadline) -> set[str]:
        """What other runs have noted about an artifact."""
        runs, _ = self._client.find(CONFIG_MAPS, deadline, labelSelector=selector(component=RUN))
        return {
            run["data"][name]
            for run in runs
            if run["metadata"]["name"] != self._run.name and name in (run.get("data") or {})
        }


class FileStore:
    """Puts files where the boot server serves them from. Several threads may use it at once.

    nginx takes a file whole or not at all: what was cut short is never seen by anybody.
    """

    def __init__(
        self, client: Client, run: Run, *, token: str, claim: str, check: Callable[[], None]
    ) -> None:
        """`token` opens the server's port for files; `check` raises if the server is down.

        `claim` is what other runs store their files on as well; empty if none do.
        """
        self._client = client
        self._shared = SharedClaim(client, run, claim) if claim else None
        self._headers = {_TOKEN_HEADER: token}
        self._check = check
        proxy = SERVICES.path(run.namespace, f"http:{run.name}:upload", "proxy")
        self._path = f"{proxy}/files/"
        self._lock = threading.Lock()
        self._listed: dict[str, int] = {}
        self._list_ends = -math.inf

    def put(self, artifact: Path, stamp: FileStamp, on_progress: OnProgress) -> str:
        """Store a file under its sha256, unless it is there; returns that.

        `stamp` is what the file has; `ConfigError` if it is changed before all of it is sent.
        """
        size = stamp.size
        with step(f"push {artifact.name} ({size / 1e6:.1f} MB)"), _own_faults():
            digest = hashlib.sha256()
            for piece in _pieces(artifact, size, "read", on_progress):
                digest.update(piece)
            name, deadline = digest.hexdigest(), Deadline(_PUT_LIMIT_S)
            if self._shared:
                self._shared.use(name, deadline)
            if self._is_there(name, size, deadline):
                logger.debug("%s is there already", name)
                return name

            def body() -> Iterator[bytes]:
                return _as_long_as(stamp, artifact, _pieces(artifact, size, "send", on_progress))

            self._send("PUT", f"artifacts/{name}", deadline, body=body, length=size)
            self._verify(name, size, artifact, deadline)
            with self._lock:
                self._listed[name] = size
        return name

    def has(self, name: str) -> bool:
        """Whether a file of this sha256 is there."""
        return self._size_of(name, Deadline(_WRITE_LIMIT_S)) is not None

    def write(self, path: str, data: bytes) -> None:
        """Store or replace a small file."""
        self._send("PUT", path, Deadline(_WRITE_LIMIT_S), body=lambda: [data], length=len(data))

    def put_at(self, path: str, file: Path, stamp: FileStamp) -> None:
        """Store or replace a file; `ConfigError` if it is changed before all of it is sent."""

        def body() -> Iterator[bytes]:
            pieces = _pieces(file, stamp.size, "send", ignore_progress)
            return _as_long_as(stamp, file, pieces)

        with step(f"publish {file.name}"), _own_faults():
            self._send("PUT", path, Deadline(_PUT_LIMIT_S), body=body, length=stamp.size)

    def remove_at(self, path: str) -> None:
        """Drop a file, if it is there."""
        try:
            self._send("DELETE", path, Deadline(_WRITE_LIMIT_S))
        except ApiError as error:
            if error.status != 404:
                raise

    def remove(self, name: str) -> int:
        """Drop what `put` has stored; the bytes that it took, 0 if there was nothing.

        What another run uses stays, and counts as nothing.
        """
        deadline = Deadline(_WRITE_LIMIT_S)
        with self._lock:
            self._list_ends = -math.inf
        if self._shared is None:
            return self._remove(name, deadline)
        with self._shared.removing(name, deadline) as unused:
            return self._remove(name, deadline) if unused else 0

    # -------------------------------------------------------------------------------- inside

    def _remove(self, name: str, deadline: Deadline) -> int:
        size = self._size_of(name, deadline)
        if size is not None:
            self._send("DELETE", f"artifacts/{name}", deadline)
        return size or 0

    def _is_there(self, name: str, size: int, deadline: Deadline) -> bool:
        """Whether the whole file is stored. Those of one boot are looked up by one request."""
        with self._lock:
            if time.monotonic() >= self._list_ends:
                self._listed = self._list(deadline)
                self._list_ends = time.monotonic() + _LIST_S
            return self._listed.get(name) == size

    def _list(self, deadline: Deadline) -> dict[str, int]:
        """The names and lengths of all artifacts that are stored."""
        try:
            answer = self._send("GET", "artifacts/", deadline)
        except ApiError as error:
            if error.status == 404:
                # It is made for the first one.
                return {}
            raise
        entries = json.loads(answer.data)
        return {each["name"]: each["size"] for each in entries if each["type"] == "file"}

    def _verify(self, name: str, size: int, artifact: Path, deadline: Deadline) -> None:
        """See that what is stored is what was sent; else drop it, and raise `ClusterError`."""
        if size <= _READ_BACK_BYTES:
            stored = self._read_back(name, deadline)
            if stored == name:
                return
        elif (length := self._size_of(name, deadline)) == size:
            return
        else:
            stored = f"a file of {length} bytes"
        self._send("DELETE", f"artifacts/{name}", deadline)
        raise ClusterError(
            f"{artifact.name} was damaged on its way to the boot server: there it is {stored}, "
            f"here {name} of {size} bytes; is there a proxy on the way that changes things?"
        )

    def _read_back(self, name: str, deadline: Deadline) -> str:
        """The checksum of what is stored."""
        trouble: Exception | None = None
        for _ in deadline.within(_PATIENCE_S).poll(_PAUSE_S):
            try:
                return self._read_back_once(f"{self._path}artifacts/{name}")
            except ApiError as error:
                if error.status not in _PASSING:
                    raise
                trouble = error
            except OSError as error:
                trouble = error
            self._check()
        raise ClusterError(f"the boot server's files cannot be read: {trouble}")

    def _read_back_once(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._client.stream(path, headers=self._headers, read_s=_SILENCE_S) as answer:
            for piece in received(answer):
                digest.update(piece)
        return digest.hexdigest()

    def _size_of(self, name: str, deadline: Deadline) -> int | None:
        """How long a stored file is, or None if it is not there."""
        try:
            answer = self._send("HEAD", f"artifacts/{name}", deadline)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return int(answer.headers.get("Content-Length", -1))

    def _send(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        body: Body | None = None,
        length: int | None = None,
    ) -> urllib3.BaseHTTPResponse:
        return self._client.send(
            method,
            self._path + path,
            deadline,
            body=body,
            length=length,
            headers=self._headers,
            patience_s=_PATIENCE_S,
            # A server that is gone is told at once.
            on_trouble=self._check,
        )


class _OwnFault(Exception):
    """An OSError of ours, on the way through a library that would take it for a lost connection."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextlib.contextmanager
def _own_faults() -> Iterator[None]:
    try:
        yield
    except _OwnFault as fault:
        raise fault.cause from None


def stamp_of(artifact: Path) -> FileStamp:
    """The stamp that a file has now. `ConfigError` if it cannot be read."""
    try:
        return FileStamp.of(artifact)
    except OSError as error:
        raise _unreadable(artifact, error) from error


def _unreadable(artifact: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot read {artifact}: {error.strerror}")


def _pieces(
    artifact: Path, size: int, what: Literal["read", "send"], on_progress: OnProgress
) -> Iterator[bytes]:
    """A file, piece by piece: its size does not matter to our memory."""
    try:
        with artifact.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
                progress = Progress(file=artifact, step=what, done=file.tell(), size=size)
                try:
                    on_progress(progress)
                except OSError as error:
                    raise _OwnFault(error) from error
    except OSError as error:
        raise _unreadable(artifact, error) from error


def _as_long_as(stamp: FileStamp, artifact: Path, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces of a file that is as it was: else its end is never sent, nor taken for whole.

    `ConfigError` then.
    """
    seen, held = 0, b""
    for piece in pieces:
        seen += len(piece)
        if seen > stamp.size:
            break
        if held:
            yield held
        held = piece
    if seen != stamp.size or stamp_of(artifact) != stamp:
        raise ConfigError(
            f"{artifact} was changed while it was pushed: push it when it is finished"
        )
    if held:
        yield held
