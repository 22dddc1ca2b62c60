"""A run in short, for CI systems: a summary in Markdown, and annotations of failed tests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from kboot.evidence import CaseResult, Run

#: What GitHub takes: 1 MiB of summary in a step; ten annotations of each kind in a step.
_SUMMARY_BYTES = 900_000
_ROWS = 200
ANNOTATIONS = 10
_CELL = 300

#: Outcomes in the order in which they are told, with a sign that also those see who see no colours.
_SIGNS = {
    "failed": "❌",
    "error": "⚠️",
    "flaky": "🔁",
    "not run": "⏹️",
    "xpassed": "✅",
    "passed": "✅",
    "xfailed": "☑️",
    "skipped": "⏭️",
}
#: Of a test that has to be looked at.
_BAD = ("failed", "error", "flaky", "not run")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~>@-])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def markdown(run: Run) -> str:
    """The summary; whatever tests and guests say, it stays text."""
    parts = [_heading(run), _counts(run.cases)]
    parts += [f"> {_text(note)}" for note in run.notes]
    bad = [case for case in run.cases if case.outcome in _BAD]
    bad.sort(key=lambda case: _BAD.index(case.outcome))
    if bad:
        rows = [
            [
                f"{_SIGNS[case.outcome]} {case.outcome}",
                _code(case.id),
                _text(case.message),
                "<br>".join(map(_text, case.crashes)),
            ]
            for case in bad[:_ROWS]
        ]
        parts.append(_table(["Outcome", "Test", "Why", "The kernel reported"], rows))
    if len(bad) > _ROWS:
        parts.append(f"{len(bad) - _ROWS} more are in the report.")
    if titles := _crashes(run):
        rows = [[str(count), _text(title)] for title, count in titles]
        parts.append("### Reports of the kernel\n\n" + _table(["Machines", "Title"], rows))
    if rows := _boots(run):
        parts.append(
            "### Boots\n\n" + _table(["Machine", "Kernel", "Ready after", "Verdict"], rows)
        )
    text = "\n\n".join(filter(None, parts)) + "\n"
    return text.encode(errors="replace")[:_SUMMARY_BYTES].decode(errors="ignore")


def github_annotations(run: Run, place: Callable[[CaseResult], str]) -> list[str]:
    """Workflow commands that mark failed tests in the files of a repository.

    `place` is the path of a test's file in it; empty if it is not there.
    """
    lines = []
    for outcome, command in (("failed", "error"), ("error", "error"), ("flaky", "warning")):
        cases = [case for case in run.cases if case.outcome == outcome]
        # GitHub shows the first ones, and those of subtests say more than that of their test.
        whole = {case.part_of for case in cases}
        shown = [case for case in cases if case.id not in whole][:ANNOTATIONS]
        lines += [_annotation(command, case, place(case)) for case in shown]
    return lines


def _annotation(command: str, case: CaseResult, path: str) -> str:
    what = "the host failed" if case.outcome == "error" else case.outcome
    properties = {"title": f"{case.id}: {what}"}
    if path:
        properties = {"file": path, "line": str(case.line or 1), **properties}
    told = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    message = "\n".join([case.message, *(f"kernel: {title}" for title in case.crashes)])
    return f"::{command} {told}::{_data(message)}"


def path_in(repository: Path, root: Path) -> Callable[[CaseResult], str]:
    """For `github_annotations`: tests lie below `root`, pytest's root directory."""

    def place(case: CaseResult) -> str:
        path = Path(root / case.file).resolve()
        inside = bool(case.file) and path.is_relative_to(repository.resolve())
        return path.relative_to(repository.resolve()).as_posix() if inside else ""

    return place


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _heading(run: Run) -> str:
    releases = sorted({each.kernel["release"] for each in run.machines if each.kernel})
    failed = any(case.outcome == "failed" for case in run.cases)
    error = any(case.outcome in ("error", "not run") for case in run.cases)
    sign = _SIGNS["failed" if failed else "error" if error else "passed"]
    what = ", ".join(f"Linux {release}" for release in releases) or "kboot"
    return f"## {sign} {_text(what)}"


def _counts(cases: Sequence[CaseResult]) -> str:
    counts = Counter(case.outcome for case in cases)
    names = [*_SIGNS, *sorted(counts.keys() - _SIGNS.keys())]
    return ", ".join(f"**{counts[name]}** {_text(name)}" for name in names if counts[name])


def _crashes(run: Run) -> list[tuple[str, int]]:
    """Titles of the kernel's reports, with the number of machines that had each."""
    counts = Counter(
        title for each in run.machines for title in {report.title for report in each.crashes}
    )
    return counts.most_common(20)


def _boots(run: Run) -> list[list[str]]:
    """The machines that were booted, or of many the slowest and those that failed."""
    booted = [each for each in run.machines if each.restored_from is None and each.boots]
    booted.sort(key=lambda each: (each.verdict == "passed", -each.boots[0].duration_s))
    return [
        [
            _code(each.directory.name),
            _text(each.kernel["release"]),
            f"{each.boots[0].duration_s:.1f} s" if each.boots[0].ready else "never",
            _text(each.verdict),
        ]
        for each in booted[:10]
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """One line that Markdown takes for nothing but text."""
    escaped = _MARKDOWN.sub(r"\\\1", _CONTROL.sub(" ", text)[:_CELL])
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _code(text: str) -> str:
    """The same in a fixed width; as HTML, since backquotes cannot be escaped in Markdown's own."""
    plain = _CONTROL.sub(" ", text)[:_CELL]
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;")):
        plain = plain.replace(letter, entity)
    # Inside of HTML, Markdown goes on.
    escaped = re.sub(r"([\\`*\[\]~@])", lambda match: f"&#{ord(match[1])};", plain)
    return f"<code>{escaped}</code>"
