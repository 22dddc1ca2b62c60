"""A private Ethernet segment between machines of this host, without any privilege.

Each machine has a second network card on a stream socket, and one small process forwards the frames
between them (`kboot.qemu.switch`). So it is at one place that a frame passes or not: any set of
links is cut at one instant, also in one direction only, and frames can be lost or late.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from kboot import process, state
from kboot.backend import VirtualMachine
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.machine_network import Interface, PathCondition, together
from kboot.machine_spec import Link
from kboot.network_cards import FLEET_CARD
from kboot.qemu import switch

#: Each guest gives its card an address of its own. QEMU gives the first one to all of them: that of
#: a machine that was saved is part of its state.
_MAC_PREFIX = "52:54:00:6b:66:"

_PREFIX = "10.98.0"
#: 255 is for all of them, 254 the switch's own: there it is a name server.
_MOST = 253
_NAME_SERVER = 254
#: ``.internal`` is reserved for private use (ICANN, 2024).
_DOMAIN = "fleet.internal"

#: The switch answers in microseconds; this is for a host that is swapping.
_ANSWER_LIMIT_S = 20.0
_LOST = PathCondition(loss=1.0)


@runtime_checkable
class SegmentVirtualMachine(VirtualMachine, Protocol):
    """A machine with a cable to a segment."""

    def set_segment_link(self, *, up: bool) -> None:
        """Plug it in, or pull it."""


class Segment:
    """One segment and its switch (see `MachineNetwork`). Made by `open_segment`."""

    def __init__(
        self, name: str, members: Sequence[str], control: socket.socket, running: process.Process
    ) -> None:
        self.name = name
        self._members = {member: number for number, member in enumerate(members, 1)}
        self._control = control
        self._process = running
        #: For what is told to the switch, and for telling it.
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._down: set[str] = set()
        self._paths: Mapping[tuple[str, str], PathCondition] = {}

    # ------------------------------------------------------------------ what the protocol promises

    @property
    def drivers(self) -> tuple[str, ...]:
        """Of virtio-net."""
        return FLEET_CARD.modules

    @property
    def search_domain(self) -> str:
        """The guests are told of it with their cards: see `interface`."""
        return ""

    @property
    def starts_at_once(self) -> None:
        """As this host has room."""
        return

    def link(self, member: str) -> Link:
        """A card of its own."""
        return Link(network=self.name, member=member, mac_address=_mac_address(0))

    def interface(self, member: str) -> Interface:
        """What its guest has to set."""
        number = self._members[member]
        own = _mac_address(number)
        return Interface(
            pattern=f"{_MAC_PREFIX}*",
            mac_address=own,
            address=f"{_PREFIX}.{number}/24",
            name_server=f"{_PREFIX}.{_NAME_SERVER}",
            domain=_DOMAIN,
        )

    def addresses(self) -> Mapping[str, str]:
        """The IP address of each member."""
        return {member: f"{_PREFIX}.{number}" for member, number in self._members.items()}

    def set_links(self, machines: Mapping[str, VirtualMachine], *, up: bool) -> Mapping[str, float]:
        """Plug in or pull these cables: first at the switch, for all at once, then at each card.

        When each card's machine was told, in monotonic seconds.
        """
        with self._lock:
            self._down = self._down - machines.keys() if up else self._down | machines.keys()
            self._tell_paths()

        def pull(member: str) -> float:
            machine = machines[member]
            if isinstance(machine, SegmentVirtualMachine):
                machine.set_segment_link(up=up)
            return time.monotonic()

        return together(tuple(machines), pull)

    def path_fault(self) -> None:
        """It can."""
        return

    def set_paths(self, paths: Mapping[tuple[str, str], PathCondition]) -> float:
        """Have these conditions from now on; when that began."""
        with self._lock:
            self._paths = dict(paths)
            return self._tell_paths()

    def set_limits(self, *, mtu: int, dns: str) -> None:
        """Lose packets of more than `mtu` bytes (0: none); have `dns` know no name (not-found)."""
        self._ask({"do": "limits", "mtu": mtu, "dns": dns})

    def set_boot_file(self, url: str) -> None:
        """Have DHCP name this to who has just fetched it, in place of what it names to others."""
        self._ask({"do": "boot-file", "url": url})

    # -------------------------------------------------------------------------------- for machines

    def plug(self, member: str) -> socket.socket:
        """The far end of a cable to the switch, for QEMU; an earlier one of this member goes."""
        ours, theirs = socket.socketpair()
        with ours:
            self._ask({"do": "plug", "port": member}, descriptors=(ours.fileno(),))
        return theirs

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Of each port, the frames ``in`` from its machine, ``out`` to it, and ``dropped``."""
        counts: Mapping[str, Mapping[str, int]] = self._ask({"do": "counts"})["answer"]
        return counts

    def serve_names(self) -> None:
        """Have the switch answer DNS for the members."""
        self._ask(
            {
                "do": "names",
                "address": f"{_PREFIX}.{_NAME_SERVER}",
                "mac": _mac_address(_NAME_SERVER),
                "domain": _DOMAIN,
                "names": self.addresses(),
            }
        )

    def _tell_paths(self) -> float:
        paths = dict(self._paths)
        for member in self._down:
            for other in (*self._members, switch.NAME_SERVER):
                paths[member, other] = paths[other, member] = _LOST
        listed = [[a, b, each.loss, each.delay_s] for (a, b), each in paths.items()]
        at: float = self._ask({"do": "paths", "paths": listed})["at"]
        return at

    def _ask(self, order: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        try:
            with self._asking:
                message = switch.framed(json.dumps(order).encode())
                sent = socket.send_fds(self._control, [message], descriptors)
                self._control.sendall(message[sent:])
                answer = switch.receive(self._control)
        except OSError as error:
            answer, reason = b"", str(error)
            # An answer that comes too late would be taken for the next one.
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)
        else:
            reason = "it has ended"
        if not answer:
            words = self._process.last_words()
            raise InfraError(f"the switch of the machines' network: {words or reason}")
        found: dict[str, Any] = json.loads(answer)
        return found


@contextlib.contextmanager
def open_segment(directory: Path, members: Sequence[str], deadline: Deadline) -> Iterator[Segment]:
    """Run a switch for the length of the ``with``; its log lies in `directory`."""
    if len(members) > _MOST:
        raise ConfigError(f"a network of local machines has at most {_MOST}, not {len(members)}")
    name = secrets.token_hex(4)
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        ours.settimeout(deadline.within(_ANSWER_LIMIT_S).remaining)
        with theirs:
            running = stack.enter_context(
                process.spawn(
                    [sys.executable, "-I", "-S", switch.__file__, str(theirs.fileno())],
                    log=directory / f"switch-{name}.log",
                    pass_fds=[theirs.fileno()],
                    env=state.environment(directory),
                    stop_grace_s=0.5,
                )
            )
        segment = Segment(name, members, ours, running)
        segment.serve_names()
        yield segment


def _mac_address(number: int) -> str:
    return f"{_MAC_PREFIX}{number:02x}"
