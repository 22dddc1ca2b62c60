"""What the workers of pytest-xdist share: the boot server, which their controller has."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Protocol

import pytest

from kboot.errors import ConfigError, KbootError
from kboot.plugin.choices import read_config

#: In xdist's ``workerinput``: the directory to borrow from, as text.
_LENDER = "kboot_lender"

_SHARED = pytest.StashKey[tuple[contextlib.ExitStack, Path]]()


class Node(Protocol):
    """A worker, in its controller: what is used of ``xdist.workermanage.WorkerController``."""

    config: pytest.Config
    #: Goes to the worker through a pipe.
    workerinput: dict[str, Any]


def lend_to(node: Node) -> None:
    """In the controller: tell a worker that begins where to borrow, if there is a kernel to boot.

    The first time, begin to lend. Nothing is started before a worker's test needs it.
    """
    config = node.config
    try:
        if read_config(config).kernel is None:
            return
    except ConfigError:
        # The workers say it, each test that minds with its name.
        return
    if _SHARED not in config.stash:
        config.stash[_SHARED] = _begin(config)
    node.workerinput[_LENDER] = str(config.stash[_SHARED][1])


def _begin(config: pytest.Config) -> tuple[contextlib.ExitStack, Path]:
    from kboot.sharing import lend  # noqa: PLC0415

    stack = contextlib.ExitStack()
    try:
        return stack, stack.enter_context(lend(read_config(config)))
    except KbootError as error:
        pytest.exit(f"kboot: {error}", returncode=error.exit_code)


def end(config: pytest.Config) -> None:
    """In the controller: end the boot server. The workers are gone by then."""
    if shared := config.stash.get(_SHARED, None):
        shared[0].close()


def worker_id(config: pytest.Config) -> str:
    """Such as ``gw0``; empty outside of workers."""
    identifier: str = _input(config).get("workerid", "")
    return identifier


def lender_of(config: pytest.Config) -> Path | None:
    """In a worker: where to borrow; None elsewhere, and in a worker on another host."""
    directory = _input(config).get(_LENDER)
    path = Path(directory) if directory else None
    return path if path and path.is_dir() else None


def _input(config: pytest.Config) -> dict[str, Any]:
    found: dict[str, Any] = getattr(config, "workerinput", {})
    return found
