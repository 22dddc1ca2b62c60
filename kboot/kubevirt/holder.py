"""Which process looks after a machine that stays, as it is written down on the cluster."""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One process, told from all others on all hosts."""

    #: ``user@host``
    user: str
    #: The running kernel and the namespace in which `pid` means something.
    host: str
    pid: int
    #: When it began, in ticks since its kernel's boot; a process id is used again.
    began: str

    @classmethod
    def this_process(cls) -> Holder:
        """Us."""
        space = Path("/proc/self/ns/pid").readlink()
        host = f"{_BOOT_ID.read_text(encoding='ascii').strip()}/{space}"
        return cls(user=user_and_host(), host=host, pid=os.getpid(), began=_began(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """What `to_text` has written; None for anything else."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def to_text(self) -> str:
        """As an annotation."""
        return json.dumps(asdict(self))

    def lives(self, *, silent_s: float, limit_s: float) -> bool:
        """Whether it looks after the machine still, if it was heard of `silent_s` ago.

        For a process of this host that is certain; others are given up after `limit_s`.
        """
        if self.host == Holder.this_process().host:
            return _began(self.pid) == self.began
        return silent_s < limit_s

    def __str__(self) -> str:
        """For people."""
        return f"{self.user}, process {self.pid}"


def user_name() -> str:
    """The login name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def user_and_host() -> str:
    """Who runs this, for people who look at what is on their cluster."""
    return f"{user_name()}@{socket.gethostname()}"


def _began(pid: int) -> str:
    """When a process began; empty if there is none, or if it has ended and nobody has noticed."""
    try:
        # After the name, in parentheses: the state, and 19 fields later the start: proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {"Z", "X"} else fields[19]
