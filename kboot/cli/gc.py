"""``kboot gc``: remove what killed runs have left."""

from __future__ import annotations

import click

from kboot import state


@click.command(epilog="A run that still lives is never touched. The next run cleans up as well.")
@click.option("--yes", is_flag=True, help="Do it; without, only show what would go.")
def gc(*, yes: bool) -> None:
    """Remove what killed runs have left on this host: directories and processes."""
    found = state.sweep() if yes else state.stale_runs()
    for run in found:
        pids = f", processes {', '.join(map(str, run.pids))}" if run.pids else ""
        verb = "removed" if yes else "would remove"
        click.echo(f"{verb} {run.directory}, {_age(run.age_s)} old{pids}")
    if not found:
        click.echo("nothing to remove")
    elif not yes:
        click.echo("nothing was removed: say --yes to do it")


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
