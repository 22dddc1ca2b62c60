"""``kboot report``: a run's evidence as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from kboot.cli.output import say_size
from kboot.errors import ConfigError


@click.command(
    epilog="""\
\b
Examples:
  kboot report evidence
  kboot report evidence -o report.html
  kboot report nightly/* boots.json -o nightly.html
""",
)
@click.argument("evidence", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("kboot-report.html"),
    show_default=True,
    metavar="FILE",
    help="The file to write.",
)
@click.option("--title", default="", metavar="TEXT", help="The page's title.")
def report(*, evidence: tuple[Path, ...], output: Path, title: str) -> None:
    """Make one HTML file of EVIDENCE: directories of runs or machines, and restart loops.

    A directory is that of --evidence, or one below it; a restart loop is a file of kboot restart
    --json.
    """
    # --help does not need them.
    from kboot.evidence import read_run  # noqa: PLC0415
    from kboot.results.report import html_report  # noqa: PLC0415
    from kboot.results.restart_loop import read_loop  # noqa: PLC0415

    check_output(output)
    directories = [path for path in evidence if path.is_dir() or not path.exists()]
    loops = {path.name: read_loop(path) for path in evidence if path.is_file()}
    text = html_report(read_run(*directories), loops=loops, title=title)
    try:
        output.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror}") from error
    click.echo(f"{output}: {say_size(len(text.encode(errors='replace')))}", err=True)


def check_output(path: Path) -> None:
    """`ConfigError` before the work, not after it."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; name a file with -o")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: its directory is not there; make it first")
