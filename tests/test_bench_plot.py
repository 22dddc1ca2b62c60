from __future__ import annotations

import xml.etree.ElementTree as ET

from bench.plot import LIMITS, svg


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
