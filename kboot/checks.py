"""What `kboot doctor` looks at: a check is a function of the configuration, a finding is a value.

A check may raise a `KbootError` instead, which is then an error whose words name the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from kboot.config import Config
from kboot.errors import KbootError

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    level: Level
    #: What was looked at, in a word or two.
    subject: str
    #: What is there, or what is wrong.
    text: str
    #: What to do about it; empty if nothing has to be done.
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing to look at."""

    subject: str
    look: Callable[[Config], Finding]
    #: Without it, there is nothing that the checks after it could look at.
    essential: bool = False


def examine(config: Config, checks: Iterable[Check]) -> list[Finding]:
    """One finding for each check, in order; what a check raises is an error found.

    The last one is that of an essential check that has found an error.
    """
    findings = []
    for check in checks:
        findings.append(_examine_one(config, check))
        if check.essential and findings[-1].level == "error":
            break
    return findings


def _examine_one(config: Config, check: Check) -> Finding:
    try:
        return check.look(config)
    except KbootError as error:
        return Finding(level="error", subject=check.subject, text=str(error))
