"""``kboot restart``, ``reset``, ``panic``: once, or in a loop with statistics."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from kboot.cli import output
from kboot.cli.options import json_option, machine_argument
from kboot.cli.output import print_json, print_table, say_state, show_event
from kboot.errors import ConfigError, KbootError
from kboot.results.restart_loop import outcome_of
from kboot.statistics import Outcome, Summary, summarise
from kboot.supervisor.client import ask

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live


#: Failures shown while the loop runs; the summary has them all.
_CLUSTERS = 8


class Screen(Protocol):
    """Shows the progress of the loop."""

    def see(self, event: dict[str, Any]) -> None:
        """An event of the current boot."""

    def end(self, outcomes: Sequence[Outcome], kept: Path | None) -> None:
        """The last of `outcomes` has just ended; `kept` is its console log, if it failed."""


@contextlib.contextmanager
def open_screen(*, quiet: bool) -> Iterator[Screen]:
    """A table that changes on a terminal, a line for each boot elsewhere; nothing if `quiet`."""
    if quiet:
        yield _Nobody()
    elif not output.is_terminal():
        yield _Lines()
    else:
        from rich.live import Live  # noqa: PLC0415  --help and pipes do without

        with Live(console=output.console(), transient=True, auto_refresh=False) as live:
            yield _Table(live)


class _Nobody:
    def see(self, event: dict[str, Any]) -> None:
        """Nothing."""

    def end(self, outcomes: Sequence[Outcome], kept: Path | None) -> None:
        """Nothing."""


class _Lines:
    def see(self, event: dict[str, Any]) -> None:
        """A line for each boot is enough."""

    def end(self, outcomes: Sequence[Outcome], kept: Path | None) -> None:
        """A line."""
        click.echo(say_boot(outcomes[-1], kept))


class _Table:
    """A line for each boot, and below them the statistics so far."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._outcomes: Sequence[Outcome] = ()
        self._began = time.monotonic()
        self._draw("begins")

    def see(self, event: dict[str, Any]) -> None:
        """Name the phase."""
        if event["event"] == "phase":
            self._draw(f"{event['phase']} after {event['seconds']:z.1f} s")

    def end(self, outcomes: Sequence[Outcome], kept: Path | None) -> None:
        """Add a line, and count."""
        from rich.text import Text  # noqa: PLC0415

        self._outcomes = outcomes
        self._live.console.print(Text.from_ansi(say_boot(outcomes[-1], kept)))
        self._draw("begins")

    def _draw(self, phase: str) -> None:
        self._live.update(self._content(phase), refresh=True)

    def _content(self, phase: str) -> Group:
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        found = summarise(self._outcomes)
        parts: list[Any] = [Text(say_rate(found), style="bold")]
        if found.clusters:
            rows = [["BOOTS", "FAILED BY", "LAST"]]
            rows += [
                [str(len(each.boots)), each.failure, str(each.boots[-1])]
                for each in found.clusters[:_CLUSTERS]
            ]
            parts.append(output.rich_table(rows))
        parts.append(Text(f"boot {len(self._outcomes) + 1}: {phase}", style="cyan"))
        return Group(*parts)


def say_boot(outcome: Outcome, kept: Path | None) -> str:
    """One line about one boot."""
    what = say_state("failed", outcome.failure) if outcome.failure else say_state("ready")
    where = f"  ({kept})" if kept else ""
    return f"{outcome.number:5}  {outcome.duration_s:z6.1f} s  {what}{where}"


def say_rate(found: Summary) -> str:
    """The share of boots that failed, with its confidence interval."""
    if not found.boots:
        return "no boot so far"
    boots = "1 boot" if found.boots == 1 else f"{found.boots} boots"
    return (
        f"{boots}, {found.failures} failed: {100 * found.rate:.1f} %, "
        f"with 95 % confidence between {100 * found.low:.1f} and {100 * found.high:.1f} %"
    )


class Loop:
    """Restarts a machine again and again; `tell` reports at any time."""

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
        """Restart `count` times, or until the first failure or crash, as asked for."""
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
            rows.append([each.phase, *(f"{time_s:z.2f} s" for time_s in times_s), outliers])
        click.echo("")
        print_table(rows)


#: What ``--json`` without a file stands for.
_STDOUT = "-"


@click.command(
    epilog="""\
\b
Examples:
  kboot restart
  kboot restart lab --count 200 --until-fail
  kboot restart lab --count 50 --json=boots.json
  kboot restart lab --until-panic --interval 10

Exit codes: 0 every boot came up, 1 one failed, 3 the host failed.
""",
)
@machine_argument
@click.option("--hard", "how", flag_value="hard", default=True, help="Power cycle.  [default]")
@click.option("--reset", "how", flag_value="reset", help="Press the reset button.")
@click.option("--soft", "how", flag_value="soft", help="Reboot from within the guest.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Restart N times.")
@click.option("--until-fail", is_flag=True, help="Stop at the first boot that fails.")
@click.option("--until-panic", is_flag=True, help="Stop at the first kernel crash.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Pause between boots.",
)
@click.option(
    "--json",
    "report",
    is_flag=False,
    flag_value=_STDOUT,
    metavar="[FILE]",
    help="Write boots and statistics as JSON, to FILE, or to standard output instead of tables.",
)
def restart(
    *,
    name: str,
    how: str,
    count: int | None,
    until_fail: bool,
    until_panic: bool,
    interval_s: float,
    report: str | None,
) -> None:
    """Restart the machine NAME, and prove that the kernel it boots is the one that was pushed."""
    file = _file(report)
    if count is None and not (until_fail or until_panic):
        restart_once(name, how, as_json=report == _STDOUT, file=file)
        return

    loop = Loop(name, how, until_fail=until_fail, until_panic=until_panic, interval_s=interval_s)
    try:
        loop.run(count, quiet=report == _STDOUT)
    finally:
        # Ctrl-C ends with the summary, too.
        loop.tell(file, as_json=report == _STDOUT)
    click.get_current_context().exit(loop.exit_code)


def ask_restart(
    name: str, how: str = "hard", *, on_event: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Restart and follow the boot; how it went, see `kboot.supervisor.session`."""
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    outcome: dict[str, Any] = ask(name, "restart", how=how, on_event=on_event)
    return outcome


def restart_once(name: str, how: str, *, as_json: bool, file: Path | None = None) -> None:
    """Restart, follow the boot, and print its outcome; raises what failed."""
    outcome = ask_restart(name, how, on_event=(lambda _: None) if as_json else show_event)
    if file:
        write_json(file, outcome)
    if as_json:
        print_json(outcome)
    say_outcome(name, outcome, quiet=as_json)


def restart_watched(name: str) -> None:
    """Restart with the console attached, and print the outcome after detaching."""
    from kboot.cli.console import attach_to  # noqa: PLC0415  --help does not need it
    from kboot.supervisor.client import ask  # noqa: PLC0415

    outcomes: list[dict[str, Any] | KbootError] = []
    done = threading.Event()

    def follow() -> None:
        try:
            outcomes.append(ask_restart(name))
        except KbootError as error:
            outcomes.append(error)
        finally:
            done.set()

    position = ask(name, "status")["console_bytes"]
    # If the user detaches in the middle of the boot, nobody waits for its end.
    threading.Thread(target=follow, daemon=True).start()
    attach_to(name, str(position), write=None, until=done)
    for outcome in outcomes:
        if isinstance(outcome, KbootError):
            raise outcome
        say_outcome(name, outcome)


def say_outcome(name: str, outcome: dict[str, Any], *, quiet: bool = False) -> None:
    """Print that a boot succeeded, or raise why it did not."""
    from kboot.rpc import to_error  # noqa: PLC0415  --help does not need it

    if outcome["error"]:
        raise to_error(outcome["error"])
    if not quiet:
        # What a disk has booted was given no nonce.
        kind = "nonce" if "script" in outcome["phases_s"] else "boot_id"
        click.echo(f"{name}: Linux {outcome['release']}, proved by its {kind} {outcome[kind]}")


def write_json(file: Path, value: object) -> None:
    """Write a value for programs. `ConfigError` if the file cannot be written."""
    import json  # noqa: PLC0415

    try:
        file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error


def _file(report: str | None) -> Path | None:
    """The file to write to, if one was named. `ConfigError` if it cannot be meant."""
    if report is None or report == _STDOUT:
        return None
    from kboot import service  # noqa: PLC0415
    from kboot.supervisor.registry import KIND  # noqa: PLC0415

    if any(each.name == report for each in service.known(KIND)):
        raise ConfigError(
            f"--json {report}: that is a machine; say kboot restart {report} --json, or "
            f"--json ./{report} for a file"
        )
    file = Path(report)
    if not file.absolute().parent.is_dir():
        # Before hours of boots, not after them.
        raise ConfigError(f"{file}: its directory is not there; make it first")
    return file


@click.command()
@machine_argument
@json_option
def reset(*, name: str, as_json: bool) -> None:
    """Press the reset button of the machine NAME: kboot restart --reset."""
    restart_once(name, "reset", as_json=as_json)


@click.command()
@machine_argument
@json_option
def panic(*, name: str, as_json: bool) -> None:
    """Panic the kernel of the machine NAME (sysrq c), and wait until it has rebooted."""
    from kboot.rpc import to_error  # noqa: PLC0415
    from kboot.supervisor.client import ask  # noqa: PLC0415  --help does not need it

    outcome = ask(name, "panic", on_event=(lambda _: None) if as_json else show_event)
    if as_json:
        print_json(outcome)
    else:
        click.echo(f"crashed: {outcome['crash']}")
    if outcome["error"]:
        raise to_error(outcome["error"])
    if not as_json:
        click.echo(f"{name}: back after {outcome['duration_s']:.1f} s, Linux {outcome['release']}")
