"""What kboot puts on a cluster, as functions of values: lists of objects as the API takes them."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kboot import templates
from kboot.errors import ClusterError
from kboot.kubevirt import patch
from kboot.kubevirt.names import object_name
from kboot.kubevirt.settings import ClusterSettings

Manifest = dict[str, Any]

HTTP_PORT = 8080
UPLOAD_PORT = 8081

HEARTBEAT = "kboot.dev/heartbeat"
TTL = "kboot.dev/ttl-seconds"
USER = "kboot.dev/user"
#: Who looks after a machine that stays, see `kboot.kubevirt.holder`.
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

    #: From `kboot.kubevirt.names.new_run`.
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


def boot_server(run: Run, settings: ClusterSettings, *, token: str) -> list[Manifest]:
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
        image=settings.nginx_image,
        pull_secrets=settings.pull_secrets,
        claim=settings.claim,
        http_port=HTTP_PORT,
        upload_port=UPLOAD_PORT,
    )
    return [patch.apply(settings.patches, manifest) for manifest in manifests]


def token_of(secret: Manifest) -> str:
    """What opens the port for uploads, from the boot server's Secret as the cluster has it.

    `ClusterError` if it is not in there.
    """
    text = base64.b64decode(secret.get("data", {}).get(_TOKEN_FILE, "")).decode()
    if match := _TOKEN.search(text):
        return match[1]
    raise ClusterError(f"the Secret {secret['metadata']['name']} has no token for uploads")


def storage(namespace: str, settings: ClusterSettings) -> Manifest:
    """The claim for artifacts that outlive runs. It belongs to none, and stays."""
    (manifest,) = _parse(
        "nginx/kubernetes/storage.yaml",
        claim=settings.claim,
        namespace=namespace,
        storage_class=settings.storage_class,
        size_gib=settings.storage_gib,
    )
    return patch.apply(settings.patches, manifest)


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
