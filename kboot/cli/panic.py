"""``kboot panic``: crash a machine's kernel on purpose."""

from __future__ import annotations

import click

from kboot.cli.naming import json_option, machine_argument, print_json, show_event


@click.command()
@machine_argument
@json_option
def panic(*, name: str, as_json: bool) -> None:
    """Have the kernel of the machine NAME panic (sysrq), and wait until it is back."""
    from kboot.machines.client import ask  # noqa: PLC0415  --help does not need it
    from kboot.wire import to_error  # noqa: PLC0415

    outcome = ask(name, "panic", on_event=(lambda _: None) if as_json else show_event)
    if as_json:
        print_json(outcome)
    else:
        click.echo(f"crashed: {outcome['crash']}")
    if outcome["error"]:
        raise to_error(outcome["error"])
    if not as_json:
        click.echo(f"{name}: back after {outcome['duration_s']:.1f} s, Linux {outcome['release']}")
