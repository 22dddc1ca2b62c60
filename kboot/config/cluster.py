"""What can be decided about a cluster, and what holds if nobody decides."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from kboot.config import parse
from kboot.config.parse import about
from kboot.errors import ConfigError

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
    kubeconfig: str = field(
        default="",
        metadata=about(
            "the kubeconfig file with the context; else what the variable KUBECONFIG names, or "
            "~/.kube/config",
            "FILE",
            parse.search_path,
        ),
    )
    namespace: str | None = field(
        default=None,
        metadata=about("the cluster's namespace; else the context's", "NAME", parse.word),
    )
    cluster_nginx_image: str = field(
        default="docker.io/library/nginx:1.28-alpine",
        metadata=about("the boot server's image: nginx with its DAV module", "IMAGE", parse.word),
    )
    cluster_pull_secrets: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "a secret of the namespace to pull images with; may be repeated",
            "NAME",
            parse.words,
            name="cluster_pull_secret",
            repeated=True,
        ),
    )
    cluster_domain: str = field(
        default="cluster.local",
        metadata=about("the cluster's DNS domain", "DOMAIN", parse.word),
    )
    cluster_claim: str = field(
        default="",
        metadata=about(
            "a volume claim that keeps artifacts on the cluster after the run; created if missing",
            "NAME",
            parse.text,
        ),
    )
    cluster_storage_class: str = field(
        default="",
        metadata=about("the storage class of a new claim", "NAME", parse.text),
    )
    cluster_storage_gib: int = field(
        default=10,
        metadata=about(
            "the size of a new claim, in GiB",
            "N",
            parse.number(1, 100_000),
            name="cluster_storage_size",
        ),
    )
    cluster_ipxe_disk: str = field(
        default="",
        metadata=about(
            "a disk with iPXE for UEFI machines on a cluster: an image, or pvc:NAME",
            "IMAGE|pvc:NAME",
            parse.text,
        ),
    )
    cluster_network: str = field(
        default="",
        metadata=about(
            "a NetworkAttachmentDefinition (Multus) on which the machines of a fleet on a cluster "
            "are, besides the network that they boot from; else that one",
            "[NAMESPACE/]NAME",
            parse.matching(
                r"|([a-z0-9][a-z0-9-]*/)?[a-z0-9][a-z0-9.-]*",
                "the name of a NetworkAttachmentDefinition, such as lab or networks/lab",
            ),
        ),
    )
    cluster_registry: str = field(
        default="",
        metadata=about(
            "a registry that the cluster pulls from, for disks of kboot's making (the iPXE of UEFI "
            "machines): registry.example/team, or http://... for one without TLS",
            "REGISTRY/PATH",
            parse.matching(
                r"|(https?://)?(localhost|[\w-]+(\.[\w-]+)+|[\w-]+(?=:))(:\d+)?(/[a-z0-9._-]+)*/?",
                "a registry and a path, such as registry.example/team",
            ),
        ),
    )
    cluster_owner: str = field(
        default="",
        metadata=about(
            "owner of persistent machines on a cluster; else the login name",
            "NAME",
            parse.text,
        ),
    )
    cluster_keep_s: float = field(
        default=86400.0,
        metadata=about(
            "how long a persistent machine stays on a cluster without a supervisor: 90m, 24h",
            "TIME",
            parse.seconds,
            name="cluster_keep",
        ),
    )
    cluster_attach: Attach = field(
        default="running",
        metadata=about(
            "when a cluster's console is attached: once the machine runs, or, paused, before its "
            "first instruction",
            "NAME",
            choices=get_args(Attach),
        ),
    )
    cluster_patch: Path | None = field(
        default=None,
        metadata=about(
            "a YAML file with strategic merge patches for what is made on a cluster",
            "FILE",
            parse.path,
        ),
    )

    def __post_init__(self) -> None:
        """Make every value what its field's type says."""
        here = parse.working_directory()
        for each in fields(self):
            value = getattr(self, each.name)
            if value == each.default:
                continue
            try:
                parsed = each.metadata["parse"](value, here)
            except ValueError as error:
                raise ConfigError(
                    f"{type(self).__name__}({each.name}=...): {value!r} is not {error}"
                ) from None
            object.__setattr__(self, each.name, parsed)
