"""``kboot reset``: push a machine's reset button."""

from __future__ import annotations

import click

from kboot.cli.naming import json_option, machine_argument
from kboot.cli.restart import restart_once


@click.command()
@machine_argument
@json_option
def reset(*, name: str, as_json: bool) -> None:
    """Push the reset button of the machine NAME: kboot restart --reset."""
    restart_once(name, "reset", as_json=as_json)
