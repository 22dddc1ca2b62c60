"""``kboot restart``: once, or in a loop with statistics."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kboot.cli.naming import machine_argument, print_json, show_event
from kboot.errors import ConfigError, KbootError

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
@click.option("--hard", "how", flag_value="hard", default=True, help="Cut the power.  [default]")
@click.option("--reset", "how", flag_value="reset", help="Push the reset button.")
@click.option("--soft", "how", flag_value="soft", help="Have the guest reboot itself.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="So many times.")
@click.option("--until-fail", is_flag=True, help="Until a boot fails.")
@click.option("--until-panic", is_flag=True, help="Until a kernel crashes.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Between boots.",
)
@click.option(
    "--json",
    "report",
    is_flag=False,
    flag_value=_STDOUT,
    metavar="[FILE]",
    help="Write all boots and their statistics as JSON, to FILE or instead of the tables.",
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
    """Restart the machine NAME and prove that it boots what it is to boot."""
    file = _file(report)
    if count is None and not (until_fail or until_panic):
        restart_once(name, how, as_json=report == _STDOUT, file=file)
        return
    from kboot.cli.looping import Loop  # noqa: PLC0415  --help does not need it

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
    """Restart and follow the boot; how it went, see `kboot.machines.desk`."""
    from kboot.machines.client import ask  # noqa: PLC0415  --help does not need it

    outcome: dict[str, Any] = ask(name, "restart", how=how, on_event=on_event)
    return outcome


def restart_once(name: str, how: str, *, as_json: bool, file: Path | None = None) -> None:
    """Restart, follow the boot, and say how it went; exits with 1 or 3 if it failed."""
    outcome = ask_restart(name, how, on_event=(lambda _: None) if as_json else show_event)
    if file:
        write_json(file, outcome)
    if as_json:
        print_json(outcome)
    say_outcome(name, outcome, quiet=as_json)


def restart_watched(name: str) -> None:
    """Restart with the console attached, and say how it went when that is detached."""
    from kboot.cli.console import attach_to  # noqa: PLC0415  --help does not need it
    from kboot.machines.client import ask  # noqa: PLC0415

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
    """Tell that a boot went well, or raise why it did not."""
    from kboot.wire import to_error  # noqa: PLC0415  --help does not need it

    if outcome["error"]:
        raise to_error(outcome["error"])
    if not quiet:
        click.echo(f"{name}: Linux {outcome['release']}, proved by its nonce {outcome['nonce']}")


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
    from kboot.machines.places import places  # noqa: PLC0415  --help does not need it

    if any(place.name == report for place in places()):
        raise ConfigError(
            f"--json {report}: that is a machine; say kboot restart {report} --json, or "
            f"--json ./{report} for a file"
        )
    file = Path(report)
    if not file.absolute().parent.is_dir():
        # Before hours of boots, not after them.
        raise ConfigError(f"{file}: its directory is not there; make it first")
    return file
