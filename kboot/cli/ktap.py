"""``kboot ktap``: results of the kernel's own test suites, from any log."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kboot.cli.crash import LOG_HEAD_SIZE, refuse_other
from kboot.cli.output import print_table
from kboot.console.text import printable
from kboot.crash import CrashReport
from kboot.errors import ConfigError
from kboot.results import junit, ltp
from kboot.results.cases import Case, Status, count, in_words, passed, to_report
from kboot.results.ktap import read_log

_COLOURS = {
    Status.PASSED: "green",
    Status.FAILED: "red",
    Status.TIMEOUT: "red",
    Status.CRASHED: "red",
    Status.NOT_RUN: "yellow",
}


@click.command(
    epilog="Exit codes: 0 all is well, 1 a case failed, crashed or was not run, 2 bad input."
)
@click.argument("log", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE|-")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--junit",
    "junit_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write JUnit's XML, too.",
)
@click.option(
    "--no-comments", is_flag=True, help="Read no results in '#' comments, as the kernel's kunit.py."
)
@click.option("--failures", is_flag=True, help="Leave out of the table what passed or was skipped.")
@click.pass_context
def ktap(
    context: click.Context,
    /,
    *,
    log: Path,
    as_json: bool,
    junit_file: Path | None,
    no_comments: bool,
    failures: bool,
) -> None:
    """Read the results of KUnit, kselftest and others (KTAP, TAP) in the log FILE.

    LTP's results are read, too: kirk's JSON report, and the log of runltp.

    It may be a console log with whatever else the kernel prints, and cut anywhere: what was planned
    and has no result is "not run", and a crash belongs to the case that ran. With -, standard input
    is read to its end.
    """
    cases, unblamed = _results(log, comments=not no_comments)
    if junit_file:
        _write(junit_file, junit.document(cases, name=log.stem if str(log) != "-" else "ktap"))
    if as_json:
        click.echo(json.dumps(_json(cases, unblamed), indent=1))
    else:
        _print(cases, unblamed, failures=failures)
    if not cases or not passed(cases) or any(report.fatal for report in unblamed):
        context.exit(1)


def _results(log: Path, *, comments: bool) -> tuple[list[Case], list[CrashReport]]:
    """The cases in a file, and what the kernel reported there when no case ran."""
    data = _read(log)
    if (cases := ltp.read(data)) is not None:
        return cases, []
    cases, parser = read_log(data, comments=comments)
    if not parser.found:
        raise ConfigError(
            f"{_name(log)}: there are no KTAP results in it, no line such as 'KTAP version 1' or "
            "'ok 1 name'"
        )
    return cases, parser.unblamed


def _name(log: Path) -> str:
    return "standard input" if str(log) == "-" else str(log)


def _read(log: Path) -> bytes:
    if str(log) == "-":
        if sys.stdin is None:
            raise ConfigError(
                "standard input is closed; give a file, or pipe a log into kboot ktap -"
            )
        return sys.stdin.buffer.read()
    try:
        with log.open("rb") as file:
            refuse_other(log, file.peek(LOG_HEAD_SIZE))
            return file.read()
    except FileNotFoundError as error:
        raise ConfigError(f"{log}: there is no such file") from error
    except OSError as error:
        raise ConfigError(f"{log} cannot be read: {error.strerror}") from error


def _write(file: Path, document: bytes) -> None:
    try:
        file.write_bytes(document)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error


def _print(cases: Sequence[Case], unblamed: Sequence[CrashReport], *, failures: bool) -> None:
    rows = [_row(case) for case in to_report(cases) if case.bad or not failures]
    if rows:
        print_table([["RESULT", "CASE", "REASON"], *rows])
    for report in unblamed:
        click.echo(f"when no case ran, the kernel reported: {printable(report.title)}")
    click.echo(in_words(count(cases)))


def _row(case: Case) -> list[str]:
    reason = case.reason or "; ".join(report.title for report in case.reports)
    return [
        click.style(str(case.status), fg=_COLOURS.get(case.status)),
        printable(f"{case.full_name} (suite)" if case.suite else case.full_name),
        printable(reason),
    ]


def _json(cases: Sequence[Case], unblamed: Sequence[CrashReport]) -> dict[str, Any]:
    return {
        "passed": passed(cases),
        "counts": {str(status): number for status, number in count(cases).items()},
        "cases": [_fields(case) for case in cases],
        "reports": [report.title for report in unblamed],
    }


def _fields(case: Case) -> dict[str, Any]:
    fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
    return fields | {"reports": [report.title for report in case.reports]}
