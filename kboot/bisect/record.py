"""What a search has seen so far, on disk: a search that was killed goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kboot.bisect.search import Trial
from kboot.errors import ConfigError, InfraError
from kboot.locks import try_lock
from kboot.state import state_directory

_FILE = "trials.jsonl"


class Record:
    """The trials of one search; made by `open_record`.

    The search decides by its trials alone: with those that are recorded it comes to where it was.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._path = directory / _FILE
        self._past: dict[str, deque[Trial]] = {}
        self.count = 0
        for line in self._path.read_text(encoding="utf-8").splitlines()[1:]:
            # The last line of a run that was killed need not be whole.
            with contextlib.suppress(ValueError, KeyError):
                value = json.loads(line)
                self._past.setdefault(value["revision"], deque()).append(Trial(value["trial"]))
                self.count += 1

    def recorded(self, trial: Callable[[str], Trial]) -> Callable[[str], Trial]:
        """The same trials, first from the record, then by `trial`, which are added to it."""

        def next_trial(revision: str) -> Trial:
            if past := self._past.get(revision):
                return past.popleft()
            result = trial(revision)
            self._add({"revision": revision, "trial": result.value})
            return result

        return next_trial

    def _add(self, value: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(value) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InfraError(f"{self._path}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def open_record(about: Mapping[str, Any], *, anew: bool) -> Iterator[Record]:
    """The record of the search that is described by `about`; begun if there is none, or `anew`.

    `ConfigError` if the same search runs.
    """
    text = json.dumps(about, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    directory = state_directory() / "bisect" / name
    directory.mkdir(parents=True, exist_ok=True)
    lock = try_lock(directory)
    if lock is None:
        raise ConfigError(f"this search runs already, in {directory}")
    try:
        path = directory / _FILE
        if anew or not path.is_file() or not path.read_bytes().startswith(text.encode() + b"\n"):
            path.write_text(text + "\n", encoding="utf-8")
        elif not path.read_bytes().endswith(b"\n"):
            # Half a line, by a run that was killed.
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
        yield Record(directory)
    finally:
        os.close(lock)
