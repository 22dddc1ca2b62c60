"""``kboot restart``: once, or in a loop with statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kboot.cli.naming import json_option, machine_argument, print_json, show_event


@click.command(
    epilog="""\
\b
Examples:
  kboot restart
  kboot restart --count 200 --until-fail
  kboot restart --count 50 --report boots.json

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
@click.option("--interval", "interval_s", default=0.0, metavar="SECONDS", help="Between boots.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all boots and their statistics to this file, as JSON.",
)
@json_option
def restart(
    *,
    name: str,
    how: str,
    count: int | None,
    until_fail: bool,
    until_panic: bool,
    interval_s: float,
    report: Path | None,
    as_json: bool,
) -> None:
    """Restart the machine NAME and prove that it boots what it is to boot."""
    if count is None and not (until_fail or until_panic):
        restart_once(name, how, as_json=as_json)
        return
    from kboot.cli.looping import Loop  # noqa: PLC0415  --help does not need it

    loop = Loop(
        name,
        how,
        until_fail=until_fail,
        until_panic=until_panic,
        interval_s=interval_s,
        quiet=as_json,
    )
    try:
        loop.run(count)
    finally:
        # Ctrl-C ends with the summary, too.
        loop.tell(report, as_json=as_json)
    click.get_current_context().exit(loop.exit_code)


def restart_once(name: str, how: str, *, as_json: bool) -> None:
    """Restart, follow the boot, and say how it went; exits with 1 or 3 if it failed."""
    from kboot.machines.client import ask  # noqa: PLC0415  --help does not need it
    from kboot.wire import to_error  # noqa: PLC0415

    outcome: dict[str, Any] = ask(
        name, "restart", how=how, on_event=(lambda _: None) if as_json else show_event
    )
    if as_json:
        print_json(outcome)
    if outcome["error"]:
        raise to_error(outcome["error"])
    if not as_json:
        click.echo(f"{name}: Linux {outcome['release']}, proved by its nonce {outcome['nonce']}")
