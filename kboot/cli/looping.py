"""The restart loop: boots one after another, told as they come, and summed up."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import click

from kboot.cli.live import Screen, open_screen, say_rate
from kboot.cli.naming import print_json
from kboot.cli.restart import write_json
from kboot.cli.terminal import print_table
from kboot.loop import Outcome, Summary, summarise
from kboot.machines.client import ask


class Loop:
    """Restarts a machine again and again. What was seen so far can be told at any time."""

    def __init__(
        self, name: str, how: str, *, until_fail: bool, until_panic: bool, interval_s: float
    ) -> None:
        self._name = name
        self._how = how
        self._until_fail = until_fail
        self._until_panic = until_panic
        self._interval_s = interval_s
        self._evidence = Path(ask(name, "status")["evidence"])
        self._outcomes: list[Outcome] = []
        self._raw: list[dict[str, Any]] = []

    def run(self, count: int | None, *, quiet: bool) -> None:
        """Restart so many times, or until what is waited for has come."""
        with open_screen(quiet=quiet) as screen:
            while count is None or len(self._outcomes) < count:
                if self._outcomes:
                    time.sleep(self._interval_s)
                outcome = self._boot(screen)
                if outcome.failure and (
                    self._until_fail or (self._until_panic and outcome.crashed)
                ):
                    return

    def _boot(self, screen: Screen) -> Outcome:
        raw = ask(self._name, "restart", how=self._how, on_event=screen.see)
        outcome = outcome_of(raw, len(self._outcomes) + 1)
        self._raw.append(raw)
        self._outcomes.append(outcome)
        screen.end(self._outcomes, self._keep_console(raw, outcome) if outcome.failure else None)
        return outcome

    @property
    def exit_code(self) -> int:
        """0 if all came up, 1 if a kernel failed, 3 if only the host did."""
        failed = [each for each in self._outcomes if each.failure]
        return 1 if any(not each.infra for each in failed) else 3 if failed else 0

    def tell(self, file: Path | None, *, as_json: bool) -> None:
        """Print the summary, and write the report."""
        found = summarise(self._outcomes)
        report = {"summary": dataclasses.asdict(found), "boots": self._raw}
        if file:
            write_json(file, report)
        if as_json:
            print_json(report)
        else:
            _print_summary(found)

    def _keep_console(self, raw: dict[str, Any], outcome: Outcome) -> Path:
        """Cut the console of a boot that failed out of the record."""
        begin, end = raw["console"]
        with (self._evidence / "serial.log").open("rb") as record:
            record.seek(begin)
            console = record.read(end - begin)
        words = re.sub(r"[^\w.-]+", "-", outcome.failure or "")[:60].strip("-")
        # Where it begins in the record tells it from boots of an earlier loop.
        path = self._evidence / f"failed-{outcome.number:04d}-{begin}-{words}.log"
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


def _print_summary(found: Summary) -> None:
    click.echo(f"\n{say_rate(found)}")
    if found.infra:
        more = "boot" if found.infra == 1 else "boots"
        click.echo(f"{found.infra} more {more} failed because of the host")
    for cluster in found.clusters:
        numbers = ", ".join(map(str, cluster.boots[:10]))
        more = ", ..." if len(cluster.boots) > 10 else ""
        which = "boot" if len(cluster.boots) == 1 else "boots"
        click.echo(f"  {len(cluster.boots):4} x {cluster.failure}  ({which} {numbers}{more})")
    if found.spreads:
        rows = [["PHASE", "MEDIAN", "95 %", "MIN", "MAX", "OUTLIERS"]]
        for each in found.spreads:
            times_s = (each.median_s, each.p95_s, each.minimum_s, each.maximum_s)
            outliers = ", ".join(map(str, each.outliers))
            rows.append([each.phase, *(f"{time_s:.2f} s" for time_s in times_s), outliers])
        click.echo("")
        print_table(rows)
