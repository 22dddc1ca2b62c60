"""``kboot list``: the machines that stay."""

from __future__ import annotations

from typing import Any

import click

from kboot.backend import StayingMachine
from kboot.cli.gc import age
from kboot.cli.naming import json_option, place_options, print_json, say_state
from kboot.cli.terminal import print_table


@click.command("list")
@place_options
@json_option
def list_machines(*, as_json: bool, **place: Any) -> None:
    """List the machines that were started with ``kboot up``, on this host and where they stay."""
    from kboot.machines.client import ask, live_places  # noqa: PLC0415  --help does not need it
    from kboot.machines.finding import elsewhere  # noqa: PLC0415

    found: list[dict[str, Any]] = [ask(here.name, "status") for here in live_places()]
    ours = {each["identifier"] for each in found}
    found += [_describe(each) for each in elsewhere(place) if each.identifier not in ours]
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
                str(each["boots"] or ""),
                age(each["up_s"]),
                each["machine"],
            ]
            for each in found
        ]
        print_table(rows)


def _describe(machine: StayingMachine) -> dict[str, Any]:
    """A machine that no process of this host looks after, in the words of ``kboot status``."""
    return {
        "name": machine.name,
        "state": "elsewhere" if machine.holder else "unattended",
        "what": machine.holder,
        "release": "",
        "boots": None,
        "up_s": round(machine.age_s, 1),
        "machine": f"{machine.condition}, of {machine.owner}, started by {machine.user}",
        "owner": machine.owner,
        "identifier": machine.identifier,
        "silent_s": round(machine.silent_s, 1),
        "ttl_s": machine.ttl_s,
    }
