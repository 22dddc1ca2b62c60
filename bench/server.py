"""What it costs a boot server that it can do wrong on purpose: nothing, while it does not."""

from __future__ import annotations

import os
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from bench.figure import Figure, interleaved, median_ratio
from kboot import state
from kboot.deadline import Deadline
from kboot.nginx import Nginx, serve

_LIMIT_S = 60.0
_SMALL_FILES = 300
_LARGE_FILES = 8
_LARGE_BYTES = 64 << 20


def run(*, quick: bool) -> dict[str, Figure]:
    """``server_faults_off_ratio``, ``server_faults_on_ratio``: downloads, over the same from a
    server that never had a fault. With one that is on, but about none of what is fetched.
    """
    rounds = 1 if quick else 15
    with ExitStack() as stack:
        directory = stack.enter_context(state.run_directory())
        subject, plain = (
            stack.enter_context(
                serve(
                    directory,
                    guest_host="127.0.0.1",
                    program="nginx",
                    deadline=Deadline(_LIMIT_S),
                )
            )
            for _ in range(2)
        )
        files = _files(directory)
        with subject.fault("artifacts/none", status=503):
            on = interleaved(
                lambda: _seconds(subject, files), lambda: _seconds(plain, files), rounds=rounds
            )
        off = interleaved(
            lambda: _seconds(subject, files), lambda: _seconds(plain, files), rounds=rounds
        )
    return {
        "server_faults_off_ratio": median_ratio(off),
        "server_faults_on_ratio": median_ratio(on),
    }


def _files(directory: Path) -> dict[Path, int]:
    """What is fetched, and how often."""
    small, large = directory / "small", directory / "large"
    small.write_bytes(os.urandom(2000))
    large.write_bytes(os.urandom(_LARGE_BYTES))
    return {small: _SMALL_FILES, large: _LARGE_FILES}


def _seconds(server: Nginx, files: dict[Path, int]) -> float:
    """How long it takes to fetch them, one after the other."""
    begin = time.monotonic()
    for path, count in files.items():
        url = server.put(path)
        for _ in range(count):
            with urllib.request.urlopen(url, timeout=_LIMIT_S) as answer:  # noqa: S310  our own
                while answer.read(1 << 20):
                    pass
    return time.monotonic() - begin
