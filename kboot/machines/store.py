"""The files that a machine's boot server has: put there by pushes, dropped when none needs them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from kboot.backend import BootServer, OnProgress, Progress, ignore_progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What was dropped from a store."""

    files: int
    size: int


class Store:
    """Puts files on a boot server, and knows which; several threads may put some at once."""

    def __init__(self, server: BootServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._urls: set[str] = set()
        #: Bytes that went to the server so far: what was there already is not among them.
        self.sent = 0

    def put(self, artifact: Path, on_progress: OnProgress = ignore_progress) -> str:
        """As `BootServer.put`."""
        sent = 0

        def count(progress: Progress) -> None:
            nonlocal sent
            if progress.step == "send":
                sent = progress.done
            on_progress(progress)

        try:
            url = self._server.put(artifact, count)
        finally:
            with self._lock:
                self.sent += sent
        with self._lock:
            self._urls.add(url)
        return url

    def know(self, urls: Iterable[str]) -> None:
        """Another process has put these there."""
        self._urls.update(urls)

    def keep_only(self, urls: Collection[str]) -> Freed:
        """Drop all files but these."""
        unused = self._urls.difference(urls)
        sizes = [self._server.remove(url) for url in unused]
        self._urls -= unused
        return Freed(files=len(sizes), size=sum(sizes))
