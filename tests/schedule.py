"""In which order the files of tests run, and which of them share a worker of pytest-xdist."""

from __future__ import annotations

from pathlib import Path

#: Files that share what takes long to make: see the session's fixtures in conftest.py.
_TOGETHER = {
    "test_expectations_boot.py": "zoo",
    "test_zoo.py": "zoo",
}

#: The groups that take longest, in that order. Were one of them the last, all workers but one would
#: wait for it.
_LONGEST_FIRST = (
    "zoo",
    "test_isolation.py",
    "test_failures.py",
    "test_any_cluster.py",
)


def group(path: Path) -> str:
    """What a file's tests run with, on one worker: fixtures of modules are made once."""
    return _TOGETHER.get(path.name, path.name)


def rank(path: Path) -> int:
    """Where a file's tests stand in the order of all."""
    name = group(path)
    return _LONGEST_FIRST.index(name) if name in _LONGEST_FIRST else len(_LONGEST_FIRST)
