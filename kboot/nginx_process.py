"""An nginx that is started on a port of this host that nobody else has."""

from __future__ import annotations

import socket
from pathlib import Path

from kboot import process, state
from kboot.errors import InfraError

#: How often another port is tried when somebody takes ours between choosing and listening.
PORT_ATTEMPTS = 5


def free_port() -> int:
    """A port of the loopback interface that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def no_free_port() -> InfraError:
    """After `PORT_ATTEMPTS`."""
    return InfraError(f"nginx found no free port in {PORT_ATTEMPTS} attempts")


def port_was_taken(child: process.Process, prefix: Path) -> bool:
    """Whether an nginx in the folder `prefix` has ended because somebody else took its port.

    False while it runs; `InfraError` if it has ended for another reason.
    """
    if child.exit_status() is None:
        return False
    words = child.last_words()
    if "Address already in use" in words:
        return True
    if not words and state.is_full(prefix):
        words = f"{prefix}: no space left; make room there"
    raise InfraError(f"nginx did not start: {words or 'it did not say why'}")
