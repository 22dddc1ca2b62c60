"""Where the machines of a run leave their evidence, and who is told of it.

What is in such a directory is told in `kboot.machine.evidence`; `kboot.evidence` reads it.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable
from pathlib import Path


class RunEvidence:
    """A directory for each machine, ``001-name``. Any thread may call what is here."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count(1)
        #: Complete, and nobody was told yet.
        self._complete: deque[Path] = deque()
        #: Called by `tell` with each directory that is complete.
        self.on_complete: Callable[[Path], None] = lambda _directory: None

    def place(self, name: str) -> tuple[int, Path]:
        """The number of one more machine, and its directory, which is not there yet."""
        number = next(self._numbers)
        return number, self._directory / f"{number:03d}-{_file_name(name)}"

    def rename(self, directory: Path, name: str) -> Path:
        """Give a directory another name; its number stays."""
        number = directory.name.partition("-")[0]
        return directory.rename(directory.with_name(f"{number}-{_file_name(name)}"))

    def complete(self, directory: Path) -> None:
        """Nothing is written there any more."""
        self._complete.append(directory)

    def tell(self) -> None:
        """Call `on_complete` for what has become complete."""
        while self._complete:
            self.on_complete(self._complete.popleft())


def _file_name(name: str) -> str:
    """`name` as a part of a path: readable, short, and without surprises."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-80:] or "boot"
