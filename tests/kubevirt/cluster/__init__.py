"""A cluster in one process: a Kubernetes API, nginx pods that are nginx, machines that are QEMU.

Its status codes, phases and their order, and the manners of its console, are those of the
recordings; `tests.kubevirt.test_contract` holds it to them. The mock servers there are (kmock 0.8)
keep objects, but have no resource versions, so no watch that could be resumed, or answered with
410, and no websockets: and these are what kboot's part for clusters is made of.
"""

from tests.kubevirt.cluster.cluster import (
    TOKEN,
    Cluster,
    cluster_without_firmware,
    running_cluster,
)

__all__ = ["TOKEN", "Cluster", "cluster_without_firmware", "running_cluster"]
