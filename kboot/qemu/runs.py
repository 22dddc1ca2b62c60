"""Runs on this host: those that live, and what killed ones have left."""

from __future__ import annotations

from collections.abc import Iterator

from kboot import state
from kboot.backend import FoundRun
from kboot.log import age


def find_runs() -> list[FoundRun]:
    """All runs of this user on this host."""
    dead = {run.directory for run in state.stale_runs()}
    return [
        FoundRun(
            summary=f"{directory}  {'dead' if directory in dead else 'live'}",
            values={"directory": str(directory), "dead": directory in dead},
        )
        for directory in sorted(state.runs_directory().glob("run-*"))
    ]


def dead_runs(*, remove: bool) -> Iterator[str]:
    """Each dead run in a line; it is gone then, if it is to be removed."""
    for run in state.sweep() if remove else state.stale_runs():
        pids = f", processes {', '.join(map(str, run.pids))}" if run.pids else ""
        yield f"{run.directory}, {age(run.age_s)} old{pids}"
