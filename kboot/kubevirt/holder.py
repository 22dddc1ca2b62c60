"""Which process a run, or a machine that stays, belongs to, as it is noted on the cluster."""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: machine-id(5): tells apart virtual machines that go on from one snapshot.
_MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One process, told from all others on all hosts."""

    #: ``user@host``
    user: str
    #: The host, its running kernel, and the namespace in which `pid` means something.
    host: str
    pid: int
    #: When it began, in ticks since its kernel's boot; a process id is used again.
    began: str

    @classmethod
    def this_process(cls) -> Holder:
        """Us."""
        space = Path("/proc/self/ns/pid").readlink()
        machine = _MACHINE_ID.read_text(encoding="ascii").strip() if _MACHINE_ID.exists() else ""
        host = f"{machine}/{_BOOT_ID.read_text(encoding='ascii').strip()}/{space}"
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

    def is_running(self) -> bool | None:
        """Whether the process runs, if that can be known: it is one of this host; else None."""
        try:
            if self.host != Holder.this_process().host:
                return None
            began = _began(self.pid)
            if not began:
                os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            # Of another user, whose processes are hidden from us: proc(5), hidepid.
            return None
        return began == self.began

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
