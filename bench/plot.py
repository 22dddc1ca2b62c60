"""``python -m bench.plot``: build/bench.json as build/performance.svg, ratios over their limits.

With ``--docs``, as docs/performance.svg, which is part of the source. A dot for each run and a bar
for the figure, on one logarithmic scale.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from bench.__main__ import RESULT

PLOT = Path("build/performance.svg")
PLOT_OF_DOCS = Path("docs/performance.svg")

_LEFT, _RIGHT, _ROW, _WIDTH = 220, 90, 30, 760
_LOW, _HIGH = 0.5, 100.0


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure must hold."""

    value: float
    #: Whether more is better.
    at_least: bool


#: The ratios that are plotted, in this order.
LIMITS = {
    "restore_speedup_tiny": Limit(20, at_least=True),
    "restore_speedup_debian": Limit(20, at_least=True),
    "isolated_suite_speedup": Limit(8, at_least=True),
    "parallel_efficiency_2": Limit(0.8, at_least=True),
    "firmware_shortcut_ratio": Limit(1.3, at_least=False),
    "cold_boot_overhead": Limit(1.05, at_least=False),
    "server_faults_off_ratio": Limit(1.05, at_least=False),
}


def svg(figures: dict[str, dict[str, Any]]) -> str:
    """The plot of those of the figures that have limits."""
    names = [name for name in LIMITS if name in figures]
    height = _ROW * (len(names) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *_grid(height),
    ]
    for row, name in enumerate(names):
        parts += _row(_ROW * (row + 1), name, figures[name])
    return "\n".join([*parts, "</svg>\n"])


def _x(value: float) -> float:
    share = math.log(min(max(value, _LOW), _HIGH) / _LOW) / math.log(_HIGH / _LOW)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _grid(height: int) -> list[str]:
    lines = []
    for tick in (0.5, 1, 2, 5, 10, 20, 50, 100):
        x = _x(tick)
        lines.append(
            f'<line x1="{x:.1f}" y1="20" x2="{x:.1f}" y2="{height - 30}" stroke="#ddd"/>'
            f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle" fill="#666">{tick:g}x</text>'
        )
    return lines


def _row(top: float, name: str, figure: dict[str, Any]) -> list[str]:
    limit = LIMITS[name]
    value = figure["value"]
    held = value >= limit.value if limit.at_least else value <= limit.value
    colour = "#2a7f3f" if held else "#b3261e"
    middle = top + _ROW / 2
    begin, end = sorted((_x(1), _x(value)))
    x = _x(limit.value)
    dots = [
        f'<circle cx="{_x(run):.1f}" cy="{middle:.1f}" r="2.5" fill="#333" fill-opacity="0.35"/>'
        for run in figure["runs"]
    ]
    return [
        f'<text x="{_LEFT - 10}" y="{middle + 4:.1f}" text-anchor="end">{escape(name)}</text>',
        f'<rect x="{begin:.1f}" y="{top + 8:.1f}" width="{max(end - begin, 1):.1f}" '
        f'height="{_ROW - 16}" fill="{colour}" fill-opacity="0.6"/>',
        *dots,
        f'<line x1="{x:.1f}" y1="{top + 3:.1f}" x2="{x:.1f}" y2="{top + _ROW - 3:.1f}" '
        'stroke="black" stroke-dasharray="3 2"/>',
        f'<text x="{_WIDTH - _RIGHT + 8}" y="{middle + 4:.1f}" fill="{colour}">{value:.2f}x</text>',
    ]


def main() -> None:
    """Draw the last run."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("--docs", action="store_true", help=f"write {PLOT_OF_DOCS}")
    target = PLOT_OF_DOCS if parser.parse_args().docs else PLOT
    target.write_text(svg(json.loads(RESULT.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
