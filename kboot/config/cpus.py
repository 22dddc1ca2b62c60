"""What a user says of a machine's processors: how many, or how they are arranged."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from kboot.config import parse
from kboot.machine_spec import Topology

_MOST = 255
_PART = re.compile(r"(sockets|cores|threads)=([0-9]{1,4})")

#: ``4``, or ``sockets=2,cores=4,threads=2``.
Cpus = int | str


def cpus(value: object, directory: Path) -> Cpus:
    """A number as it is, and an arrangement with all its parts in their order."""
    if not isinstance(value, str) or "=" not in value:
        return int(str(parse.number(1, _MOST)(value, directory)))
    topology = _read(value)
    if not 1 <= topology.cpus <= _MOST:
        raise ValueError(f"1 to {_MOST} processors: {value} has {topology.cpus}")
    return f"sockets={topology.sockets},cores={topology.cores},threads={topology.threads}"


def read_cpus(value: Cpus) -> tuple[int, Topology | None]:
    """How many there are, and how they are arranged, if that was said."""
    if isinstance(value, int):
        return value, None
    topology = _read(value)
    return topology.cpus, topology


def _read(text: str) -> Topology:
    found: dict[str, int] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None or match[1] in found or int(match[2]) == 0:
            raise ValueError("a number, or sockets=N,cores=N,threads=N, each at most once")
        found[match[1]] = int(match[2])
    return Topology(**found)


def memory_nodes(memory_mib: int, nodes: int) -> tuple[int, ...]:
    """The MiB of each of these NUMA nodes: as equal as they can be."""
    return tuple(memory_mib // nodes + (at < memory_mib % nodes) for at in range(nodes))


def cpu_nodes(count: int, nodes: int) -> tuple[tuple[int, int], ...]:
    """The first and the last processor of each of these NUMA nodes, at most as many as those."""
    ends = [count * at // nodes for at in range(nodes + 1)]
    return tuple((first, end - 1) for first, end in itertools.pairwise(ends))
