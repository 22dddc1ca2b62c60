"""What the user may choose about the cluster, as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kboot.config import Config
from kboot.config.values import Attach, ClusterConfig
from kboot.kubevirt import patch

#: nginx with its DAV module, and a user 101.
NGINX_IMAGE = ClusterConfig().nginx_image


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How kboot uses a cluster."""

    #: Of the kubeconfig file; None for its current one, or for the pod that we run in.
    context: str | None = None
    #: None for the context's own.
    namespace: str | None = None
    nginx_image: str = NGINX_IMAGE
    #: Secrets that are there already, for the pulling of images.
    pull_secrets: tuple[str, ...] = ()
    #: How the cluster's DNS names end.
    domain: str = "cluster.local"
    #: A claim for artifacts that outlive the run; empty: they go with it.
    claim: str = ""
    storage_class: str = ""
    storage_gib: int = 10
    #: A disk with iPXE for UEFI: a container image, or ``pvc:<claim>``; empty for none.
    ipxe_disk: str = ""
    #: Whose the machines are that stay; empty for the login name.
    owner: str = ""
    #: How long they stay when nothing looks after them.
    keep_s: float = ClusterConfig().keep_s
    #: When the console is attached: as soon as the machine runs, or before its first instruction,
    #: for which it is started paused.
    attach: Attach = "running"
    #: What `kboot.kubevirt.patch.read` returns.
    patches: tuple[dict[str, Any], ...] = ()


def settings_from(config: Config) -> ClusterSettings:
    """The cluster settings of a configuration. `ConfigError` if its patch file is not one."""
    return ClusterSettings(
        context=config.context,
        namespace=config.namespace,
        nginx_image=config.nginx_image,
        pull_secrets=config.pull_secrets,
        domain=config.cluster_domain,
        claim=config.claim,
        storage_class=config.storage_class,
        storage_gib=config.storage_gib,
        ipxe_disk=config.ipxe_disk,
        owner=config.owner,
        keep_s=config.keep_s,
        attach=config.attach,
        patches=patch.read(config.patch) if config.patch else (),
    )
