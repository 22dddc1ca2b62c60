"""What a boot server does wrong on purpose: to some requests, some times."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Literal, Protocol, Self, get_args
from urllib.parse import unquote, urlsplit

from kboot.errors import ConfigError

FaultKind = Literal[
    "status",
    "refused",
    "reset",
    "slow",
    "stalled",
    "truncated",
    "wrong-length",
    "redirect",
    "redirect-loop",
    "captive-portal",
    "gzip",
    "huge",
    "empty",
]
KINDS = get_args(FaultKind)


#: Who asks: in the query of kboot's own requests, and in the place of a machine's script.
_MACHINE = re.compile(r"(?:^|[?&])m=([^?&]*)")
_FOLDER = re.compile(r"scripts/([^/]+)/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to requests for some paths.

    `after` and `rate` are bytes and bytes a second; each kind looks at what concerns it.
    """

    kind: FaultKind
    #: Below the run's token, with ``*`` for anything: ``artifacts/*``.
    path: str
    #: How often; None for always.
    times: int | None = None
    #: Only for this machine, with ``*`` for anything; empty for all.
    machine: str = ""
    status: int = 503
    #: Where a redirect leads; empty for the same place, once more.
    location: str = ""
    #: How much of the answer comes before it goes wrong.
    after: int = 100_000
    rate: int = 50_000
    #: Of a huge answer.
    size: int = 2 << 30

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.kind not in KINDS:
            raise ConfigError(f"there is no fault {self.kind!r}; there are: {', '.join(KINDS)}")
        if self.kind == "status" and not 400 <= self.status <= 599:
            raise ConfigError(f"a fault's status is from 400 to 599, not {self.status}")
        if self.times is not None and self.times < 1:
            raise ConfigError(f"a fault happens at least once, not {self.times} times")
        if min(self.after, self.size) < 0 or self.rate < 1:
            raise ConfigError("a fault's after and size are not negative, its rate is positive")

    def concerns(self, path: str, query: str) -> bool:
        """Whether a request is one that it is about."""
        asking = _MACHINE.search(query) or _FOLDER.match(path)
        ours = not self.machine or (
            asking is not None and fnmatch.fnmatchcase(asking[1], self.machine)
        )
        return ours and fnmatch.fnmatchcase(path, self.path)

    def as_dict(self) -> dict[str, Any]:
        """For other processes."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


class FaultTarget(Protocol):
    """Where faults are set: a boot server."""

    def faults_fault(self) -> str | None:
        """None if it can do wrong on purpose, or else why not."""

    def set_fault(self, fault: Fault) -> int:
        """Set a fault; its number. `ConfigError` if it cannot."""

    def clear_faults(self, number: int | None = None) -> None:
        """Take a fault away, or all."""

    def fault_hits(self, number: int) -> int:
        """How often a fault has happened."""

    def url(self, path: str) -> str:
        """The URL of `path` as the guest sees it."""


class FaultHandle:
    """A fault that was set; in a ``with``, it is taken away at the end."""

    def __init__(self, target: FaultTarget, number: int) -> None:
        self._target = target
        self._number = number

    @property
    def hits(self) -> int:
        """How often it has happened."""
        return self._target.fault_hits(self._number)

    def clear(self) -> None:
        """Take it away."""
        self._target.clear_faults(self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.clear()


class Faulty:
    """The user's way to set faults, the same for all boot servers."""

    def fault(
        self: FaultTarget,
        path: str,
        kind: FaultKind | None = None,
        *,
        times: int | None = None,
        machine: str = "",
        **how: Any,
    ) -> FaultHandle:
        """Answer requests for `path` wrongly, `times` times (for ever), of one `machine` (all).

        `path` is a URL that `put`, `write` or `https` has returned, or below the run's token, with
        ``*`` for anything; what a request has behind its ``?`` does not count. ``status=503`` is a
        `kind` by itself; see `Fault` for what else there is.
        `ConfigError` if there is no such fault, or if this server cannot do it.
        """
        if kind is None:
            if "status" not in how:
                raise ConfigError(f"say which fault: status=503, or one of {', '.join(KINDS)}")
            kind = "status"
        known = {each.name for each in fields(Fault)}
        if unknown := how.keys() - known:
            raise ConfigError(f"a fault has no {', '.join(sorted(unknown))}")
        fault = Fault(
            kind=kind, path=_place(path, self.url("")), times=times, machine=machine, **how
        )
        if reason := self.faults_fault():
            raise ConfigError(reason)
        return FaultHandle(self, self.set_fault(fault))


def _place(path: str, base: str) -> str:
    """The path below the run's token, of a URL that begins with `base`, by HTTP or HTTPS."""
    plain = path.partition("?")[0]
    if "://" not in plain:
        return plain.lstrip("/")
    own, token = urlsplit(base), urlsplit(base).path
    place = urlsplit(plain)
    if place.hostname != own.hostname or not place.path.startswith(token):
        raise ConfigError(f"a fault is of this boot server, {base}, not of {path}")
    return unquote(place.path.removeprefix(token))
