"""Decide whether a line begins a report, and which."""

from __future__ import annotations

import re
from dataclasses import replace

from kboot.crash.catalogue import RULES
from kboot.crash.lines import KernelLine
from kboot.crash.rules import Rule

#: Somebody quotes a kernel message: in a command, a script, a search, a log of tests.
_QUOTING = re.compile(
    r"""["'`]\s*(?:\[.*)?$|\b(?:echo|printf|print|grep|egrep|awk|sed|logger|cat|expect|match|search|pattern|"""
    r"""wait(?:ing)?|looking|test|assert|run|append|cmdline|case)\b""",
    re.IGNORECASE,
)
#: The same rule for a line whose origin is in doubt.
_DOUBTED = {rule: replace(rule, needs_trace=True) for rule in RULES}


def find(line: KernelLine, *, stamped_log: bool) -> tuple[Rule, re.Match[str]] | None:
    """The rule whose first line this is, and its match; None for an ordinary line.

    `stamped_log`: this log's kernel lines carry time or caller, so a line without is in doubt.
    """
    words = line.text.lstrip()
    for rule in RULES:
        if rule.anchor not in words:
            continue
        match = rule.pattern.match(words)
        if match is not None:
            doubted = not line.stamped and (stamped_log or rule.is_vague)
            return (_DOUBTED[rule] if doubted else rule), match
    return None if line.stamped else _find_glued(words, stamped_log=stamped_log)


def _find_glued(words: str, *, stamped_log: bool) -> tuple[Rule, re.Match[str]] | None:
    """A first line behind a prompt or a program's unfinished line."""
    for rule in RULES:
        if rule.needs_trace or rule.is_vague or rule.anchor not in words:
            continue
        match = rule.pattern.search(words)
        if match is None:
            continue
        before = words[: match.start()]
        if _QUOTING.search(before) or before.endswith("[ end "):
            return None
        return (_DOUBTED[rule] if stamped_log else rule), match
    return None
