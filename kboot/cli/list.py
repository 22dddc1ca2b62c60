"""``kboot list``: the machines that stay."""

from __future__ import annotations

from typing import Any

import click

from kboot.cli.naming import json_option, print_json, say_state
from kboot.cli.terminal import print_table


@click.command("list")
@json_option
def list_machines(*, as_json: bool) -> None:
    """List the machines that were started with ``kboot up``."""
    from kboot.machines.client import ask, live_places  # noqa: PLC0415  --help does not need it

    found: list[dict[str, Any]] = [ask(place.name, "status") for place in live_places()]
    if as_json:
        print_json(found)
    elif not found:
        click.echo("there are no machines; start one: kboot up --kernel FILE")
    else:
        rows = [["NAME", "STATE", "KERNEL", "BOOTS", "UP", "MACHINE"]]
        rows += [
            [
                each["name"],
                say_state(each["state"], each["what"]),
                each["release"],
                str(each["boots"]),
                f"{each['up_s'] / 60:.0f} min",
                each["machine"],
            ]
            for each in found
        ]
        print_table(rows)
