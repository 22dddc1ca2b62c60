"""Machines for another architecture than the usual one: which node they may run on.

What KubeVirt refuses of them is in `tests.kubevirt.cluster.admission`.
"""

from __future__ import annotations

LABEL = "kubernetes.io/arch"
NO_NODE = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
