from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.plot import LIMITS, svg

ROOT = Path(__file__).parent.parent


def figure(value: float) -> dict[str, object]:
    return {"value": value, "unit": "x", "runs": [value * 0.9, value, value * 1.1]}


def test_each_figure_with_a_limit_is_a_row_and_says_whether_it_holds() -> None:
    figures = {name: figure(limit.value * 1.5) for name, limit in LIMITS.items()}
    image = svg(figures | {"collect_overhead_ms": figure(5)})
    texts = [each.text for each in ET.fromstring(image).iter() if each.tag.endswith("text")]  # noqa: S314  ours
    assert set(LIMITS) <= set(texts)
    assert "collect_overhead_ms" not in texts
    failed = sum(not limit.at_least for limit in LIMITS.values())
    assert image.count('fill="#b3261e">') == failed


def test_what_was_not_measured_is_left_out() -> None:
    assert "restore_speedup_tiny" not in svg({"isolated_suite_speedup": figure(9)})


@pytest.mark.parametrize(
    ("arguments", "written", "left"),
    [
        ([], "build/performance.svg", "docs/performance.svg"),
        (["--docs"], "docs/performance.svg", "build/performance.svg"),
    ],
)
def test_the_plot_in_the_docs_changes_only_when_that_is_asked_for(
    arguments: list[str], written: str, left: str, tmp_path: Path
) -> None:
    for name in ("build", "docs"):
        (tmp_path / name).mkdir()
    (tmp_path / "build/bench.json").write_text(json.dumps({"isolated_suite_speedup": figure(9)}))
    subprocess.run(
        [sys.executable, "-m", "bench.plot", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert "isolated_suite_speedup" in (tmp_path / written).read_text()
    assert not (tmp_path / left).exists()


def test_make_bench_draws_without_touching_the_docs() -> None:
    command = ["make", "-n", "-C", str(ROOT), "bench"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "bench.plot" in done.stdout
    assert "--docs" not in done.stdout
