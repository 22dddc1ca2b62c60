"""``kboot kcidb``: a run's evidence as a report for KernelCI's database, and its submission."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from kboot.cli.options import config_options, load_config
from kboot.cli.report import check_output
from kboot.errors import ConfigError

_SETTINGS = ("kcidb_origin", "kcidb_build", "kcidb_repository", "kcidb_commit")


@click.command(
    epilog="""\
\b
Examples:
  kboot kcidb evidence -o kcidb.json
  KCIDB_REST=https://TOKEN@HOST kboot kcidb evidence --submit --kcidb-origin ours

Exit codes: 0 done, 2 bad input or a token that is refused, 3 the server cannot be reached.
""",
)
@click.argument("evidence", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report here.  [default: standard output, unless it is submitted]",
)
@click.option(
    "--submit",
    is_flag=True,
    help="Send it; the variable KCIDB_REST has the address and the token.",
)
@config_options(*_SETTINGS, short=False)
def kcidb(*, evidence: tuple[Path, ...], output: Path | None, submit: bool, **options: Any) -> None:
    """Make a report for KCIDB of EVIDENCE: directories of runs or machines.

    It is the one that pytest --kboot-kcidb makes at the end of a run. Nothing is sent without
    --submit, whatever the settings say; what was sent before is there once.
    """
    # --help does not need them.
    from kboot.evidence import read_run  # noqa: PLC0415
    from kboot.results import kcidb as reports  # noqa: PLC0415

    if output:
        check_output(output)
    rest = os.environ.get(reports.VARIABLE, "")
    if submit:
        reports.address(rest)
    report = reports.kcidb_report(read_run(*evidence), reports.source_of(load_config(options)))
    text = json.dumps(report, indent=1) + "\n"
    if output:
        try:
            output.write_text(text, encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"{output}: cannot be written: {error.strerror}") from error
    elif not submit:
        click.echo(text, nl=False)
    if submit:
        sent = reports.submit(report, rest)
        click.echo(f"submitted to KCIDB: {sent}", err=True)
