"""Write ``nginx/kubernetes/boot-server.yaml``: ``python -m tests.kubevirt.sample_manifests``."""

from __future__ import annotations

import datetime
from pathlib import Path

from kboot.config import ClusterConfig
from kboot.kubevirt import manifests

PATH = Path(__file__).parents[2] / "nginx" / "kubernetes" / "boot-server.yaml"

_HEAD = """\
# A boot server on a cluster, as a run creates it. `kboot manifests | kubectl apply -f -` makes one
# by hand, with a name and a token of its own; change the token below before you apply this file.

"""


def text() -> str:
    """The file's text."""
    run = manifests.Run(identifier="example", namespace="default")
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    server = manifests.boot_server(run, ClusterConfig(), token="change-me")
    return _HEAD + manifests.to_yaml([manifests.owner(run, user="kubectl", now=now), *server])


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
