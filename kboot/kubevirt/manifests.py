"""What kboot puts on a cluster, its names and labels: functions of values to lists of objects."""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kboot import templates
from kboot.config import ClusterConfig
from kboot.errors import ClusterError
from kboot.kubevirt import patch

#: Which run an object belongs to.
RUN_LABEL = "kboot.dev/run"
#: Which of the run's machines an object belongs to.
MACHINE_LABEL = "kboot.dev/machine"
#: How a machine that stays is called, and by whom.
NAME_LABEL = "kboot.dev/name"
OWNER_LABEL = "kboot.dev/owner"
#: On everything that kboot has made; what is without it, kboot never touches.
MANAGED_BY = "app.kubernetes.io/managed-by"

#: A DNS label; Services, and host names made of machines' names, take no more.
_LONGEST = 63


def new_run() -> str:
    """An identifier for a run: 10 characters that may begin, end and fill a DNS label."""
    return "r" + secrets.token_hex(5)[:9]


def object_name(run: str, what: str = "") -> str:
    """The name of an object of a run: ``kboot-<run>``, or ``kboot-<run>-<what>``.

    Valid as a DNS label whatever `what` is, and different for different ones: what has to be
    changed or cut short ends in a hash of the whole.
    """
    prefix = f"kboot-{run}"
    if not what:
        return prefix
    return f"{prefix}-{label(what, _LONGEST - len(prefix) - 1)}"


def label(text: str, longest: int = _LONGEST) -> str:
    """`text` as a DNS label, and different for different ones; see `object_name`."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if plain == text and len(plain) <= longest:
        return plain
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    kept = plain[: longest - len(digest) - 1].rstrip("-")
    return f"{kept}-{digest}" if kept else digest


def labels(run: str, *, component: str) -> dict[str, str]:
    """The labels of an object of a run."""
    return {
        "app.kubernetes.io/name": "kboot",
        "app.kubernetes.io/instance": object_name(run),
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "kboot",
        MANAGED_BY: "kboot",
        RUN_LABEL: run,
    }


def selector(run: str | None = None) -> str:
    """The label selector for the objects of a run, or of all runs of kboot."""
    ours = f"{MANAGED_BY}=kboot"
    return f"{ours},{RUN_LABEL}={run}" if run else ours


Manifest = dict[str, Any]

HTTP_PORT = 8080
UPLOAD_PORT = 8081

HEARTBEAT = "kboot.dev/heartbeat"
TTL = "kboot.dev/ttl-seconds"
USER = "kboot.dev/user"
#: Who looks after a machine that stays, see `kboot.kubevirt.ownership`.
HOLDER = "kboot.dev/holder"
#: The process of a run that ends with it, in the same form.
PROCESS = "kboot.dev/process"

_TOKEN_FILE = "token.conf"  # noqa: S105  a file's name
_TOKEN = re.compile(r'"(\w+)" 1;')

#: A run whose heartbeat is older than this is dead.
TTL_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, as its objects know it."""

    #: From `kboot.kubevirt.manifests.new_run`.
    identifier: str
    namespace: str
    #: The uid of its owner object; empty before that is there, and for people who only read.
    owner_uid: str = ""

    @property
    def name(self) -> str:
        """The name of the owner, the boot server and its Service."""
        return object_name(self.identifier)

    @property
    def note_name(self) -> str:
        """The name of the Secret that is kept beside a machine that stays."""
        return f"{self.name}-note"

    @property
    def nginx_name(self) -> str:
        """The name of the ConfigMap with the boot server's configuration."""
        return f"{self.name}-nginx"


def timestamp(moment: datetime.datetime) -> str:
    """A time as Kubernetes writes it."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now() -> str:
    """The present time as Kubernetes writes it."""
    return timestamp(datetime.datetime.now(datetime.UTC))


def owner(run: Run, *, user: str, now: datetime.datetime) -> Manifest:
    """The object that owns all others of the run, and says that the run lives."""
    (manifest,) = _parse(
        "nginx/kubernetes/run.yaml",
        object_name=run.name,
        namespace=run.namespace,
        run=run.identifier,
        user=user,
        heartbeat=timestamp(now),
        ttl_s=TTL_S,
    )
    return manifest


def note(run: Run, texts: Mapping[str, str]) -> Manifest:
    """What is kept beside a machine that stays. It has the password of its guest in it."""
    (manifest,) = _parse(
        "nginx/kubernetes/note.yaml",
        object_name=run.name,
        namespace=run.namespace,
        run=run.identifier,
        owner_uid=run.owner_uid,
    )
    return {**manifest, "stringData": dict(texts)}


def boot_server(run: Run, settings: ClusterConfig, *, token: str) -> list[Manifest]:
    """Secret, ConfigMap, Service, Pod and NetworkPolicy of the boot server, in that order.

    `token` is what opens the port for uploads.
    """
    nginx_conf = templates.render(
        "nginx/kubernetes/nginx.conf",
        run=run.identifier,
        http_port=HTTP_PORT,
        upload_port=UPLOAD_PORT,
    )
    manifests = _parse(
        "nginx/kubernetes/server.yaml",
        object_name=run.name,
        namespace=run.namespace,
        run=run.identifier,
        owner_uid=run.owner_uid,
        token=token,
        nginx_conf=nginx_conf,
        image=settings.cluster_nginx_image,
        pull_secrets=settings.cluster_pull_secrets,
        claim=settings.cluster_claim,
        http_port=HTTP_PORT,
        upload_port=UPLOAD_PORT,
    )
    return [patch.apply(settings.cluster_patch, manifest) for manifest in manifests]


def token_of(secret: Manifest) -> str:
    """What opens the port for uploads, from the boot server's Secret as the cluster has it.

    `ClusterError` if it is not in there.
    """
    text = base64.b64decode(secret.get("data", {}).get(_TOKEN_FILE, "")).decode()
    if match := _TOKEN.search(text):
        return match[1]
    raise ClusterError(f"the Secret {secret['metadata']['name']} has no token for uploads")


def storage(namespace: str, settings: ClusterConfig) -> Manifest:
    """The claim for artifacts that outlive runs. It belongs to none, and stays."""
    (manifest,) = _parse(
        "nginx/kubernetes/storage.yaml",
        claim=settings.cluster_claim,
        namespace=namespace,
        storage_class=settings.cluster_storage_class,
        size_gib=settings.cluster_storage_gib,
    )
    return patch.apply(settings.cluster_patch, manifest)


def to_yaml(manifests: list[Manifest]) -> str:
    """Manifests as text for ``kubectl apply -f -``."""
    import yaml  # noqa: PLC0415

    text: str = yaml.safe_dump_all(manifests, sort_keys=False)
    return text


def from_yaml(text: str) -> Manifest:
    """The one manifest in a text that `to_yaml` has made."""
    import yaml  # noqa: PLC0415

    manifest: Manifest = yaml.safe_load(text)
    return manifest


def _parse(template: str, **values: object) -> list[Manifest]:
    import yaml  # noqa: PLC0415

    return list(yaml.safe_load_all(templates.render(template, **values)))
