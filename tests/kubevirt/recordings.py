"""The recordings of a real KubeVirt, beside the checkout: ``../shared/kubevirt``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RECORDINGS = Path(__file__).resolve().parents[3] / "shared" / "kubevirt"

#: For tests that compare with them.
needs_recordings = pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason=f"the recordings of a real KubeVirt are not at {RECORDINGS}"
)


def rows(name: str, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of one kind in a recording, in their order."""
    with (RECORDINGS / f"{name}.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["kind"] == kind:
                yield row


def calls(name: str, method: str, path_end: str) -> list[dict[str, Any]]:
    """The calls with this method whose path ends so."""
    return [
        row
        for row in rows(name, "call")
        if row["method"] == method and row["path"].endswith(path_end)
    ]


def watched(name: str, resource: str) -> Iterator[dict[str, Any]]:
    """The objects of a watch, in the order in which they came."""
    for row in rows(name, "watch"):
        if row["resource"] == resource:
            yield row["event"]["object"]
