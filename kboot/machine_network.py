"""A network of machines, besides the one that they boot by, and the backends that have some."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from kboot.backend import Backend, VirtualMachine
from kboot.deadline import Deadline
from kboot.errors import KbootError
from kboot.machine_spec import Link

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What a guest has to set on a card of its own for a network."""

    #: What the card's address looks like when the guest finds it, for a shell's ``case``.
    pattern: str
    #: The address that it must have.
    mac_address: str
    #: With the length of the network's prefix: ``10.98.0.1/24``.
    address: str
    #: The network's own name server, and its domain; empty if it has none.
    name_server: str = ""
    domain: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathCondition:
    """What happens to frames on the way from one machine to another."""

    #: The share that is lost; with 1, all of them.
    loss: float = 0.0
    delay_s: float = 0.0


class MachineNetwork(Protocol):
    """A network of machines, each of which has a name there: a member."""

    @property
    def drivers(self) -> tuple[str, ...] | None:
        """The kernel modules that its card needs; None if it is the one that it boots from."""

    @property
    def search_domain(self) -> str:
        """The DNS domain in which the members' names are found; empty if no DNS knows them."""

    @property
    def starts_at_once(self) -> int | None:
        """How many of its machines are to be started at a time; None: as this host has room."""

    def link(self, member: str) -> Link:
        """For the `MachineSpec` of this member."""

    def interface(self, member: str) -> Interface | None:
        """What its guest has to set; None if DHCP has done it."""

    def addresses(self) -> Mapping[str, str]:
        """The IP address of each member, as far as they are known now."""

    def set_links(self, machines: Mapping[str, VirtualMachine], *, up: bool) -> Mapping[str, float]:
        """Plug in or pull the cables of these members, all at once.

        When each was done, in monotonic seconds. An error has its member's name, and comes when
        all others are done.
        """

    def path_fault(self) -> str | None:
        """None if `set_paths` can be used, or else why not."""

    def set_paths(self, paths: Mapping[tuple[str, str], PathCondition]) -> float:
        """From now on, these are the conditions from one member to another; all others are good.

        The moment at which that began for all of them, in monotonic seconds.
        """


@runtime_checkable
class NetworkBackend(Backend, Protocol):
    """A backend that can put machines on a network of their own. Ask for it with ``isinstance``."""

    def open_network(
        self, members: Sequence[str], deadline: Deadline
    ) -> AbstractContextManager[MachineNetwork]:
        """A network for these members, whose machines are still to be powered on."""


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """What is raised within the ``with`` begins with the name of this machine or role."""
    try:
        yield
    except KbootError as error:
        _name(error, name)
        raise


def _name(error: BaseException, name: str) -> None:
    if isinstance(error, KbootError):
        error.args = (f"{name}: {error}", *error.args[1:])


def together(
    names: Sequence[str], function: Callable[[str], _T], at_once: int | None = None
) -> dict[str, _T]:
    """Call `function` with each name, so many at a time, or all; what it returned, by name.

    When all are done, the first error is raised, with its name; the others are noted in it.
    """
    if not names:
        return {}
    if len(names) == 1:
        # Nobody is waited for, so Ctrl-C ends it at once.
        with naming(names[0]):
            return {names[0]: function(names[0])}
    with ThreadPoolExecutor(max_workers=max(1, at_once or len(names))) as pool:
        futures = {name: pool.submit(function, name) for name in names}
    errors = {name: error for name, each in futures.items() if (error := each.exception())}
    for name, error in errors.items():
        _name(error, name)
    if errors:
        first, *others = errors.values()
        for other in others:
            first.add_note(f"and {other}")
        raise first
    return {name: each.result() for name, each in futures.items()}
