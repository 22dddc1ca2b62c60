"""Benchmarks: what kboot costs, measured against a reference in the same run.

A benchmark is a module here with ``run(*, quick: bool) -> dict[str, Figure]``; `quick` asks for
a rough figure in seconds. ``python -m bench`` finds them by that.
"""
