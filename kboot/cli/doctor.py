"""``kboot doctor``: is everything here that kboot needs?"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from kboot.cli.options import config_options, load_config
from kboot.errors import InfraError

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command(
    epilog="Exit code 0: all fine, or warnings only. 3: something has to be mended before a boot."
)
@config_options("memory", "firmware", "accel", "qemu", "nginx")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a JSON list.")
@click.pass_context
def doctor(context: click.Context, /, *, as_json: bool, **options: Any) -> None:
    """Look for what kboot needs on this host, and say what to do about what is missing."""
    # It brings in most of kboot, which --help and completion can do without.
    from kboot.doctor import LOCAL_CHECKS, examine  # noqa: PLC0415

    findings = examine(load_config(options), LOCAL_CHECKS)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            level = click.style(f"{finding.level:<7}", fg=_COLOURS[finding.level])
            click.echo(f"{level}  {finding.subject:<11}  {finding.text}")
            if finding.remedy:
                click.echo(f"{'':22}-> {finding.remedy}")
    if any(finding.level == "error" for finding in findings):
        context.exit(InfraError.exit_code)
