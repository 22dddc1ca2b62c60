"""How a boot script takes what a network does: each fault, and how the boot ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kboot.errors import GuestError, KbootError, RebootLoop, ScriptEnded, WrongKernel
from kboot.server_faults import FaultKind

End = Literal[
    "booted",
    "fell back",
    "prompt",
    "waits",
    "firmware",
    "stopped",
    "loop",
    "hang",
    "reboots",
    "kernel",
]

#: How it ends, as a table says it; and whether somebody who looks sees what is wrong.
ENDS: dict[End, tuple[str, bool]] = {
    "booted": ("the kernel runs", True),
    "fell back": ("another kernel runs", True),
    "prompt": ("at iPXE's prompt", True),
    "waits": ("waits for somebody", True),
    "firmware": ("back in the firmware", True),
    "stopped": ("stopped with a message", True),
    "reboots": ("reboots and tries again", True),
    "kernel": ("the kernel does not come up", True),
    "loop": ("asks for ever", False),
    "hang": ("hangs", False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One fault that the script meets when it fetches the kernel."""

    kind: FaultKind
    #: None for a lasting fault.
    times: int | None
    how: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Such as ``status 503, once``."""
        values = " ".join(str(value) for name, value in self.how if name == "status")
        often = "always" if self.times is None else "once" if self.times == 1 else f"{self.times}x"
        return f"{self.kind}{' ' + values if values else ''}, {often}"


def _once(kind: FaultKind, **how: Any) -> Trial:
    return Trial(kind=kind, times=1, how=tuple(how.items()))


def _always(kind: FaultKind, **how: Any) -> Trial:
    return Trial(kind=kind, times=None, how=tuple(how.items()))


#: What a script is tried with: passing faults, and some lasting ones.
TRIALS: Sequence[Trial] = (
    _once("status", status=503),
    _once("refused"),
    _once("reset"),
    _once("truncated"),
    _once("wrong-length"),
    _once("empty"),
    _once("captive-portal"),
    _once("gzip"),
    _once("redirect-loop"),
    _once("slow", rate=3_000_000),
    _once("stalled"),
    _always("status", status=404),
    _always("status", status=503),
    _always("refused"),
    _always("captive-portal"),
    _always("stalled"),
)


def end_of(error: KbootError | None, *, lasting: bool = False) -> End:
    """How a boot ended, by what was raised; raises what is no answer about the script.

    With a `lasting` fault, one that reboots to try again does so for ever.
    """
    match error:
        case None:
            return "booted"
        case ScriptEnded():
            return error.state
        case RebootLoop():
            return "loop" if lasting else "reboots"
        case WrongKernel():
            return "fell back"
        case GuestError():
            # The witnesses differ: what runs was not fetched as it should have been.
            return "fell back" if "never fetched" in str(error) else "kernel"
        case _:
            raise error


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the boot of one trial ended."""

    trial: str
    end: End
    seconds: float
    #: How often the fault was met.
    hits: int
    #: The error's words; empty if there was none.
    words: str

    @property
    def seen(self) -> bool:
        """Whether it came up, or somebody who looks sees what is wrong."""
        return ENDS[self.end][1]

    def row(self) -> str:
        """For a table."""
        mark = "yes" if self.end == "booted" else "no" if self.seen else "NEVER"
        return (
            f"{self.trial:<24} {mark:<7} {self.seconds:6.1f} s {self.hits:4}  {ENDS[self.end][0]}"
        )


_HEADER = f"{'fault of the kernel':<24} {'boots':<7} {'after':>8} {'met':>4}  ends"


def table(rows: Sequence[str]) -> list[str]:
    """The rows of outcomes under a header, in the order of the trials, whenever each has ended."""
    names = [trial.name for trial in TRIALS]

    def place(row: str) -> int:
        return next((n for n, name in enumerate(names) if row.startswith(f"{name} ")), len(names))

    return [_HEADER, *sorted(rows, key=place)]
