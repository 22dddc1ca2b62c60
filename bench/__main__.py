"""``python -m bench [--quick] [NAME...]``: a table on stdout, the figures in build/bench.json."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pkgutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bench
from bench.figure import Figure

RESULT = Path("build/bench.json")


def benchmarks() -> dict[str, Callable[..., dict[str, Figure]]]:
    """The ``run`` functions of the modules in this package, by module name."""
    names = [info.name for info in pkgutil.iter_modules(bench.__path__) if info.name != "__main__"]
    modules = {name: importlib.import_module(f"bench.{name}") for name in sorted(names)}
    return {name: module.run for name, module in modules.items() if hasattr(module, "run")}


def table(figures: dict[str, Figure]) -> str:
    """The figures as lines for people: name, value, unit, and the spread of the runs."""
    width = max(map(len, figures), default=0)
    lines = []
    for name, figure in figures.items():
        line = f"{name:<{width}}  {figure.value:>10.3f} {figure.unit}"
        if figure.runs:
            low, high = min(figure.runs), max(figure.runs)
            line += f"  ({len(figure.runs)} runs, {low:.3f} to {high:.3f})"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Run what the command line names, or everything."""
    known = benchmarks()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="a rough figure in seconds")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(known):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    # As Ctrl-C: what was made for a benchmark goes with it.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    figures: dict[str, Figure] = {}
    names = arguments.names or list(known)
    for number, name in enumerate(names):
        sys.stderr.write(f"bench: {name} ({number + 1} of {len(names)})\n")
        begin = time.monotonic()
        figures.update(known[name](quick=arguments.quick))
        sys.stderr.write(f"bench: {name} took {time.monotonic() - begin:.0f} s\n")
    sys.stdout.write(table(figures) + "\n")
    RESULT.parent.mkdir(exist_ok=True)
    values = {name: dataclasses.asdict(figure) for name, figure in figures.items()}
    RESULT.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
