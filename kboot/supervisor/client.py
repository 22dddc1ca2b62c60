"""Start a machine's supervisor, and send it requests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kboot import rpc, service
from kboot.service import Service
from kboot.supervisor.registry import directory_of


def ask(
    name: str, verb: str, *, on_event: rpc.OnEvent = lambda _event: None, **arguments: Any
) -> Any:
    """Have a machine's supervisor do something, and return what it answers; see `service.ask`."""
    return service.ask(directory_of(name), verb, on_event=on_event, **arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A console to read from, and maybe to write to."""

    wire: rpc.Wire
    #: The position in the record at which it begins, and how far the record reached then.
    offset: int
    size: int
    #: Whether what is sent is typed.
    writes: bool

    def pieces(self) -> Iterator[bytes]:
        """The bytes as they come; ends when the machine is stopped."""
        rest = self.wire.take_rest()
        if rest:
            yield rest
        with contextlib.suppress(ConnectionError):
            while data := self.wire.socket.recv(1 << 16):
                yield data


@contextlib.contextmanager
def attach(name: str, **arguments: Any) -> Iterator[Attachment]:
    """The serial line of a machine, from the position ``since`` on (see `SharedConsole`).

    Detached at the end of the ``with``.
    """
    with contextlib.closing(service.connect(directory_of(name))) as client:
        answer = client.ask("attach", **arguments)
        yield Attachment(
            wire=client.wire, offset=answer["offset"], size=answer["size"], writes=answer["writes"]
        )


def console_of(name: str, since: str | int) -> Iterator[bytes]:
    """What a machine's console has said so far, from the position `since` on."""
    with attach(name, since=since) as line:
        left = line.size - line.offset
        for data in line.pieces() if left else ():
            yield data[:left]
            left -= len(data)
            if left <= 0:
                return


def launch(
    name: str,
    options: Mapping[str, object],
    *,
    takes_over: bool = False,
    by_force: bool = False,
) -> Service:
    """Start a supervisor for a machine called `name`; it then boots, see the verb ``wait``.

    `options` are those of `kboot.config.load`, which the supervisor reads again, here and in this
    environment. `ConfigError` if there is such a machine here. With `takes_over`, it takes over a
    persistent machine that runs, and boots none; `by_force`, also one that has a supervisor.
    """
    found = directory_of(name)
    order = {
        "options": dict(options),
        "directory": str(Path.cwd()),
        "takes_over": takes_over,
        "by_force": by_force,
    }
    service.launch(found, "kboot.supervisor.supervisor", order)
    return found
