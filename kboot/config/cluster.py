"""The settings that are about a cluster; see `kboot.kubevirt`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from kboot.config import parse
from kboot.config.about import about

Attach = Literal["running", "paused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """What the user has decided about the cluster."""

    context: str | None = field(
        default=None,
        metadata=about(
            "the context of the kubeconfig that names the cluster; else its current one",
            "NAME",
            parse.word,
        ),
    )
    namespace: str | None = field(
        default=None,
        metadata=about("the cluster's namespace; else the context's", "NAME", parse.word),
    )
    nginx_image: str = field(
        default="docker.io/library/nginx:1.28-alpine",
        metadata=about("the boot server's image: nginx with its DAV module", "IMAGE", parse.word),
    )
    pull_secrets: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "a secret of the namespace to pull images with; may be repeated",
            "NAME",
            parse.words,
            name="pull_secret",
            repeated=True,
        ),
    )
    cluster_domain: str = field(
        default="cluster.local",
        metadata=about("how the cluster's DNS names end", "DOMAIN", parse.word),
    )
    claim: str = field(
        default="",
        metadata=about(
            "a volume claim that keeps artifacts on the cluster when the run is over; made if it "
            "is not there",
            "NAME",
            parse.text,
        ),
    )
    storage_class: str = field(
        default="",
        metadata=about("the storage class of a claim that is made", "NAME", parse.text),
    )
    storage_gib: int = field(
        default=10,
        metadata=about(
            "the size of a claim that is made, in GiB",
            "N",
            parse.number(1, 100_000),
            name="storage_size",
        ),
    )
    ipxe_disk: str = field(
        default="",
        metadata=about(
            "a disk with iPXE for UEFI machines on a cluster: an image, or pvc:NAME",
            "IMAGE|pvc:NAME",
            parse.text,
        ),
    )
    owner: str = field(
        default="",
        metadata=about(
            "whose the machines are that stay on a cluster; else the login name",
            "NAME",
            parse.text,
        ),
    )
    keep_s: float = field(
        default=86400.0,
        metadata=about(
            "how long a machine stays on a cluster when nothing looks after it: 90m, 24h",
            "TIME",
            parse.seconds,
            name="keep",
        ),
    )
    attach: Attach = field(
        default="running",
        metadata=about(
            "when a cluster's console is attached: once the machine runs, or, paused, before its "
            "first instruction",
            "NAME",
            choices=get_args(Attach),
        ),
    )
    patch: Path | None = field(
        default=None,
        metadata=about(
            "a YAML file with strategic merge patches for what is made on a cluster",
            "FILE",
            parse.path,
        ),
    )
