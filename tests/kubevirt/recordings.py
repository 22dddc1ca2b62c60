"""The recordings of a real KubeVirt, beside the checkout: ``../shared/kubevirt``."""

from __future__ import annotations

import gzip
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


#: Later recordings name what they watch as the API does.
_SHORT = {"virtualmachines": "vm", "virtualmachineinstances": "vmi", "pods": "pod"}


def rows(name: str, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of one kind in a recording, in their order."""
    path = RECORDINGS / f"{name}.jsonl"
    packed = path.with_suffix(".jsonl.gz")
    with path.open("rb") if path.is_file() else gzip.open(packed) as file:
        for line in file:
            row = json.loads(line)
            if row["kind"] == kind:
                if "resource" in row:
                    row["resource"] = _SHORT.get(row["resource"], row["resource"])
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
