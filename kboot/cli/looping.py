"""The restart loop: boots one after another, told as they come, and summed up."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import click

from kboot.cli.naming import print_json, say_state, table
from kboot.errors import ConfigError
from kboot.loop import Outcome, summarise
from kboot.machines.client import ask


class Loop:
    """Restarts a machine again and again. What was seen so far can be told at any time."""

    def __init__(
        self,
        name: str,
        how: str,
        *,
        until_fail: bool,
        until_panic: bool,
        interval_s: float,
        quiet: bool,
    ) -> None:
        self._name = name
        self._how = how
        self._until_fail = until_fail
        self._until_panic = until_panic
        self._interval_s = interval_s
        self._quiet = quiet
        self._evidence = Path(ask(name, "status")["evidence"])
        self._outcomes: list[Outcome] = []
        self._raw: list[dict[str, Any]] = []

    def run(self, count: int | None) -> None:
        """Restart so many times, or until what is waited for has come."""
        while count is None or len(self._outcomes) < count:
            if self._outcomes:
                time.sleep(self._interval_s)
            raw = ask(self._name, "restart", how=self._how)
            outcome = outcome_of(raw, len(self._outcomes) + 1)
            self._raw.append(raw)
            self._outcomes.append(outcome)
            where = self._keep_console(raw, outcome) if outcome.failure else None
            if not self._quiet:
                _show(outcome, where)
            if outcome.failure and (self._until_fail or (self._until_panic and outcome.crashed)):
                return

    @property
    def exit_code(self) -> int:
        """0 if all came up, 1 if a kernel failed, 3 if only the host did."""
        failed = [each for each in self._outcomes if each.failure]
        return 1 if any(not each.infra for each in failed) else 3 if failed else 0

    def tell(self, report: Path | None, *, as_json: bool) -> None:
        """Print the summary, and write the report."""
        found = dataclasses.asdict(summarise(self._outcomes))
        if report is not None:
            text = json.dumps({"summary": found, "boots": self._raw}, indent=2)
            try:
                report.write_text(text + "\n", encoding="utf-8")
            except OSError as error:
                raise ConfigError(f"{report}: cannot be written: {error.strerror}") from error
        if as_json:
            print_json(found)
        else:
            click.echo("\n".join(_summary(found)))

    def _keep_console(self, raw: dict[str, Any], outcome: Outcome) -> Path:
        """Cut the console of a boot that failed out of the record."""
        begin, end = raw["console"]
        with (self._evidence / "serial.log").open("rb") as record:
            record.seek(begin)
            console = record.read(end - begin)
        words = re.sub(r"[^\w.-]+", "-", outcome.failure or "")[:60].strip("-")
        path = self._evidence / f"failed-{outcome.number:04d}-{words}.log"
        path.write_bytes(console)
        return path


def outcome_of(raw: dict[str, Any], number: int) -> Outcome:
    """A supervisor's answer as a value for statistics."""
    error, title = raw["error"], raw["title"]
    hung = error and title is None
    return Outcome(
        number=number,
        failure=f"in {raw['phase']}: {_timeless(error['message'])}" if hung else title,
        crashed=title is not None,
        infra=bool(error) and error["exit_code"] == 3,
        duration_s=raw["duration_s"],
        phases_s=raw["phases_s"],
    )


def _timeless(message: str) -> str:
    """A message without what differs between two boots that fail alike."""
    return re.sub(r"\b\d+(?:\.\d+)? s\b", "N s", message)


def _show(outcome: Outcome, where: Path | None) -> None:
    what = say_state("failed", outcome.failure) if outcome.failure else say_state("ready")
    kept = f"  ({where})" if where else ""
    click.echo(f"{outcome.number:5}  {outcome.duration_s:6.1f} s  {what}{kept}")


def _summary(found: dict[str, Any]) -> list[str]:
    lines = [
        "",
        f"{found['boots']} boots, {found['failures']} failed: {100 * found['rate']:.1f} %, "
        f"with 95 % confidence between {100 * found['low']:.1f} and {100 * found['high']:.1f} %",
    ]
    if found["infra"]:
        lines.append(f"{found['infra']} more boots failed because of the host")
    for cluster in found["clusters"]:
        numbers = ", ".join(map(str, cluster["boots"][:10]))
        more = ", ..." if len(cluster["boots"]) > 10 else ""
        lines.append(f"  {len(cluster['boots']):4} x {cluster['failure']}  (boots {numbers}{more})")
    if found["spreads"]:
        rows = [["PHASE", "MEDIAN", "95 %", "MIN", "MAX", "OUTLIERS"]]
        rows += [
            [
                each["phase"],
                *(f"{each[key]:.2f} s" for key in ("median_s", "p95_s", "minimum_s", "maximum_s")),
                ", ".join(map(str, each["outliers"])),
            ]
            for each in found["spreads"]
        ]
        lines += ["", *table(rows)]
    return lines
