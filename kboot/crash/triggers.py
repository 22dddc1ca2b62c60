"""Decide whether a line begins a report, and which."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from kboot.crash.catalogue import RULES
from kboot.crash.lines import KernelLine
from kboot.crash.rules import Rule

#: Somebody quotes a kernel message: in a command, a script, a search, a log of tests.
_QUOTING = re.compile(
    r"""["'`]\s*(?:\[.*)?$|\b(?:echo|printf|print|grep|egrep|awk|sed|logger|cat|match|search|pattern|"""
    r"""waiting|looking|append|cmdline)\b""",
    re.IGNORECASE,
)
#: Words before a first line that are a quotation's, or a log's name for itself.
_TALKING = re.compile(r"\b(?:expect|wait|test|assert|run|case)\b", re.IGNORECASE)
#: The same rule for a line whose origin is in doubt.
_DOUBTED = {rule: replace(rule, needs_trace=True) for rule in RULES}

_ANCHORS = tuple(dict.fromkeys(rule.anchor for rule in RULES))
_RULES_OF = {anchor: tuple(rule for rule in RULES if rule.anchor == anchor) for anchor in _ANCHORS}
_ORDER = {rule: place for place, rule in enumerate(RULES)}


def _applicable(words: str) -> Sequence[Rule]:
    """The rules whose anchor the line contains, in order of precedence."""
    present = [anchor for anchor in _ANCHORS if anchor in words]
    if len(present) == 1:
        return _RULES_OF[present[0]]
    return sorted(
        (rule for anchor in present for rule in _RULES_OF[anchor]), key=_ORDER.__getitem__
    )


def _find_behind_name(words: str, rules: Sequence[Rule]) -> tuple[Rule, re.Match[str]] | None:
    """A first line behind what some vendor puts between the kernel's time and its words."""
    for rule in rules:
        if rule.needs_trace or rule.is_vague:
            continue
        match = rule.pattern.search(words)
        if match is not None and not words[: match.start()].endswith("[ end "):
            return _DOUBTED[rule], match
    return None


class TriggerFinder:
    """Knows of a console what it takes to doubt a line: whether its kernel stamps its lines."""

    def __init__(self) -> None:
        #: Whether this console's kernel marks its lines with time or caller.
        self.stamped_log = False
        self._quoted = ""

    def find(self, line: KernelLine) -> tuple[Rule, re.Match[str]] | None:
        """The rule whose first line this is, and its match; None for an ordinary line."""
        words = line.text.strip()
        if not line.stamped and words in self._quoted:
            # What a command quoted, it prints: "# echo 'Kernel panic - not syncing: test'".
            return None
        rules = _applicable(words)
        for rule in rules:
            match = rule.pattern.match(words)
            if match is not None:
                doubted = not line.stamped and (self.stamped_log or rule.is_vague)
                return (_DOUBTED[rule] if doubted else rule), match
        if line.stamped:
            return _find_behind_name(words, rules)
        return self._find_glued(words, rules)

    def _find_glued(self, words: str, rules: Sequence[Rule]) -> tuple[Rule, re.Match[str]] | None:
        """A first line behind a prompt or a program's unfinished line."""
        for rule in rules:
            if rule.needs_trace or rule.is_vague:
                continue
            match = rule.pattern.search(words)
            if match is None:
                continue
            before = words[: match.start()]
            if before.endswith("[ end "):
                return None
            if _QUOTING.search(before):
                self._quoted = words
                return None
            doubted = self.stamped_log or _TALKING.search(before)
            return (_DOUBTED[rule] if doubted else rule), match
        if _QUOTING.search(words):
            self._quoted = words
        return None
