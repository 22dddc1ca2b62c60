"""pytest-xdist: all workers share one boot server, which the controller runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import pytest

from kboot.errors import ConfigError, KbootError
from kboot.plugin import signals
from kboot.plugin.options import read_config

#: In xdist's ``workerinput``: the directory of the shared server, as text.
_SHARED_SERVER = "kboot_shared_server"

#: Ends the name of a file there with a worker's process id.
_PID = ".pid"

_SHARED = pytest.StashKey[tuple[contextlib.ExitStack, Path]]()


class Node(Protocol):
    """A worker, in its controller: what is used of ``xdist.workermanage.WorkerController``."""

    config: pytest.Config
    #: Goes to the worker through a pipe.
    workerinput: dict[str, Any]


def tell_of_shared_server(node: Node) -> None:
    """In the controller: tell a new worker where the shared server is, if a kernel was named.

    The server itself is started when a worker's test needs it first.
    """
    config = node.config
    try:
        if not read_config(config).names_kernel:
            return
    except ConfigError:
        # The workers report it, for each test that needs a kernel.
        return
    if _SHARED not in config.stash:
        config.stash[_SHARED] = _begin(config)
    node.workerinput[_SHARED_SERVER] = str(config.stash[_SHARED][1])


def _begin(config: pytest.Config) -> tuple[contextlib.ExitStack, Path]:
    from kboot.shared_server import share_server  # noqa: PLC0415

    stack = contextlib.ExitStack()
    try:
        found: list[Path] = []
        unwinding = stack.enter_context(
            signals.unwinding(config.stash, lambda number: _pass_on(number, found))
        )
        found.append(stack.enter_context(share_server(read_config(config))))
        stack.callback(unwinding.hold)
        return stack, found[0]
    except KbootError as error:
        stack.close()
        pytest.exit(f"kboot: {error}", returncode=error.exit_code)


def end(config: pytest.Config) -> None:
    """In the controller: end the boot server. The workers are gone by then."""
    if shared := config.stash.get(_SHARED, None):
        shared[0].close()


def sign_in(shared_server: Path, worker: str) -> None:
    """In a worker: tell the controller which process we are."""
    (shared_server / f"{worker}{_PID}").write_text(str(os.getpid()), encoding="ascii")


def _pass_on(number: int, directories: Iterable[Path]) -> None:
    """In the controller: send a signal on to the workers. xdist would wait for their tests."""
    for directory in directories:
        for path in directory.glob(f"*{_PID}"):
            with contextlib.suppress(OSError, ValueError):
                _signal_child(int(path.read_text(encoding="ascii")), number)


def _signal_child(pid: int, number: int) -> None:
    # After the name, in parentheses: state, parent: proc(5). The id may be another process's now.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    if int(fields[1]) == os.getpid():
        os.kill(pid, number)


def worker_id(config: pytest.Config) -> str:
    """Such as ``gw0``; empty outside of workers."""
    identifier: str = _input(config).get("workerid", "")
    return identifier


def count(config: pytest.Config) -> int:
    """How many workers there are; 1 outside of them."""
    number: int = _input(config).get("workercount", 1)
    return number


def shared_server_of(config: pytest.Config) -> Path | None:
    """In a worker: where the shared server is; None elsewhere, and in a worker on another host."""
    directory = _input(config).get(_SHARED_SERVER)
    path = Path(directory) if directory else None
    return path if path and path.is_dir() else None


def _input(config: pytest.Config) -> dict[str, Any]:
    found: dict[str, Any] = getattr(config, "workerinput", {})
    return found
