"""What kboot costs a pytest run that has nothing to do with it."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench.figure import Figure, interleaved, median_difference
from kboot import process


def run(*, quick: bool) -> dict[str, Figure]:
    """``collect_overhead_ms``: how much longer ``pytest --collect-only`` takes with the plugin."""
    with tempfile.TemporaryDirectory(prefix="kboot-bench-") as directory:
        tests = Path(directory, "test_unrelated.py")
        tests.write_text("def test_nothing():\n    assert True\n", encoding="utf-8")

        def with_plugin() -> float:
            return _collect_ms(tests)

        def without_plugin() -> float:
            return _collect_ms(tests, "-p", "no:kboot")

        # The first ones compile.
        with_plugin(), without_plugin()
        pairs = interleaved(with_plugin, without_plugin, rounds=5 if quick else 21)
    return {"collect_overhead_ms": median_difference(pairs, unit="ms")}


def _collect_ms(tests: Path, *options: str) -> float:
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", *options, str(tests)]
    # Compiled once, as on a user's machine, whatever the environment here says about it.
    env = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tests.parent / "compiled")}
    begin = time.perf_counter()
    process.run(argv, timeout_s=120, cwd=tests.parent, env=env)
    return (time.perf_counter() - begin) * 1000
