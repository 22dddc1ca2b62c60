"""Push a container image to a registry, by the OCI distribution specification.

Credentials are those of ``docker login`` and ``podman login``, as they keep them in files. Without
TLS only where the user says ``http://``, or on a loopback address, as Docker does.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urljoin, urlsplit

from kboot.errors import ConfigError, InfraError
from kboot.https import authorities, innermost, tls_fault

if TYPE_CHECKING:
    import requests

_CONNECT_LIMIT_S, _READ_LIMIT_S = 10.0, 60.0
_MEDIA_TYPE = "application/vnd.oci.image"
#: Docker's own registry is called otherwise than it is reached, and otherwise in its files.
_DOCKER, _DOCKER_HOST, _DOCKER_KEY = "docker.io", "registry-1.docker.io", "index.docker.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerImage:
    """An image: its configuration, JSON, and its layers, each a tar archive."""

    config: bytes
    layers: tuple[bytes, ...]

    def manifest(self) -> bytes:
        """What names its parts."""
        return to_json(
            {
                "schemaVersion": 2,
                "mediaType": f"{_MEDIA_TYPE}.manifest.v1+json",
                "config": descriptor("config.v1+json", self.config),
                "layers": [descriptor("layer.v1.tar", layer) for layer in self.layers],
            }
        )


def to_json(value: object) -> bytes:
    """As it is in images: the same value gives the same bytes."""
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def descriptor(kind: str, content: bytes) -> dict[str, Any]:
    """What names a part of an image: ``manifest.v1+json``, ``config.v1+json``, ``layer.v1.tar``."""
    return {
        "mediaType": f"{_MEDIA_TYPE}.{kind}",
        "digest": _digest(content),
        "size": len(content),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """Where a registry has the images of one name."""

    #: As users say it: ``registry.example:5000``.
    host: str
    #: ``team/kboot-ipxe``.
    name: str
    is_plain: bool

    @classmethod
    def parse(cls, where: str, image: str) -> Self:
        """That of `image` below ``registry.example/team``, or ``http://registry.example/team``."""
        scheme, _, rest = where.rpartition("://")
        host, _, path = rest.partition("/")
        name = "/".join(filter(None, [path.strip("/"), image]))
        plain = scheme == "http" or (not scheme and _is_loopback(host))
        return cls(host=host, name=name, is_plain=plain)

    def reference(self, tag: str) -> str:
        """As who pulls the image names it."""
        return f"{self.host}/{self.name}:{tag}"

    @property
    def url(self) -> str:
        """Of its interface, with a slash at the end."""
        host = _DOCKER_HOST if self.host == _DOCKER else self.host
        return f"http{'' if self.is_plain else 's'}://{host}/v2/{self.name}/"


def push(repository: Repository, tag: str, make: Callable[[], ContainerImage]) -> None:
    """Have an image there; nothing is made or sent if there is one with this tag.

    `ConfigError` if the registry does not allow it, `InfraError` if it cannot do it.
    """
    with _Connection(repository) as registry:
        if registry.has(f"manifests/{tag}"):
            return
        image = make()
        for blob in (image.config, *image.layers):
            if not registry.has(f"blobs/{_digest(blob)}"):
                registry.upload(blob)
        kind = f"{_MEDIA_TYPE}.manifest.v1+json"
        registry.put(f"manifests/{tag}", image.manifest(), kind)


def credentials(repository: Repository, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """User and password for a registry, as ``podman login`` or ``docker login`` has kept them.

    None if there are none. `ConfigError` for a file that is not as they write it.
    """
    for path in _credential_files(environ):
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            for key in _keys(repository, known.get("auths") or {}):
                if auth := known["auths"][key].get("auth"):
                    user, _, password = base64.b64decode(auth).decode().partition(":")
                    return user, password
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"{path}, with credentials of registries: {error}") from error
    return None


# ------------------------------------------------------------------------------------------ inside


class _Connection:
    """What is asked of one repository. A context manager."""

    def __init__(self, repository: Repository) -> None:
        import requests  # noqa: PLC0415  few runs push anything

        self._repository = repository
        self._session = requests.Session()
        # As programs of Go have it: no proxy leads to this host.
        self._session.trust_env = not _is_loopback(repository.host)
        self._session.verify = authorities(repository.url)
        self._failure: type[Exception] = requests.RequestException
        self._distrust: type[Exception] = requests.exceptions.SSLError
        self._authorization = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def has(self, path: str) -> bool:
        accept = {"Accept": f"{_MEDIA_TYPE}.manifest.v1+json"}
        answer = self._ask("HEAD", path, {HTTPStatus.OK, HTTPStatus.NOT_FOUND}, headers=accept)
        return answer.status_code == HTTPStatus.OK

    def upload(self, blob: bytes) -> None:
        begun = self._ask("POST", "blobs/uploads/", {HTTPStatus.ACCEPTED})
        place = urljoin(begun.url, begun.headers.get("Location", ""))
        place += f"{'&' if '?' in place else '?'}digest={_digest(blob)}"
        self.put(place, blob, "application/octet-stream")

    def put(self, path: str, content: bytes, kind: str) -> None:
        headers = {"Content-Type": kind}
        self._ask("PUT", path, {HTTPStatus.CREATED}, headers=headers, data=content)

    # -------------------------------------------------------------------------------- inside

    def _ask(self, method: str, path: str, good: set[HTTPStatus], **more: Any) -> requests.Response:
        url = urljoin(self._repository.url, path)
        answer = self._send(method, url, auth=self._authorize, **more)
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            self._log_in(answer.headers.get("WWW-Authenticate", ""))
            answer = self._send(method, url, auth=self._authorize, **more)
        if answer.status_code not in good:
            raise self._refusal(method, answer)
        return answer

    def _send(self, method: str, url: str, **more: Any) -> requests.Response:
        limits_s = (_CONNECT_LIMIT_S, _READ_LIMIT_S)
        try:
            return self._session.request(method, url, timeout=limits_s, **more)
        except self._distrust as error:
            host = self._repository.host
            fault = tls_fault(error, plain=f"http://{host}")
            raise InfraError(f"the registry {host}: {fault}") from error
        except self._failure as error:
            raise InfraError(
                f"the registry {self._repository.host} cannot be reached: {innermost(error)}"
            ) from error

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """For `requests`, which else would look into ~/.netrc."""
        elsewhere = urlsplit(request.url or "").netloc != urlsplit(self._repository.url).netloc
        if self._authorization and not elsewhere:
            request.headers["Authorization"] = self._authorization
        return request

    def _log_in(self, challenge: str) -> None:
        """Find out what to say who we are (RFC 7617, and Docker's "token authentication")."""
        kind, _, rest = challenge.partition(" ")
        said = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        found = credentials(self._repository, os.environ)
        basic = f"Basic {base64.b64encode(':'.join(found).encode()).decode()}" if found else ""
        if kind.lower() != "bearer":
            self._authorization = basic
            return
        realm = said.get("realm", "")
        if not realm.startswith("https://") and not self._repository.is_plain:
            raise InfraError(
                f"the registry {self._repository.host} wants its password sent without TLS, to "
                f"{realm or 'nobody'}"
            )
        asked = {"scope": f"repository:{self._repository.name}:pull,push"}
        if service := said.get("service"):
            asked["service"] = service

        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if basic:
                request.headers["Authorization"] = basic
            return request

        answer = self._send("GET", realm, params=asked, auth=authorize)
        if answer.status_code != HTTPStatus.OK:
            raise self._refusal("GET", answer)
        try:
            given = answer.json()
            token = given.get("token") or given["access_token"]
        except (ValueError, AttributeError, KeyError) as error:
            raise InfraError(f"{realm} gives no token for {self._repository.host}") from error
        self._authorization = f"Bearer {token}"

    def _refusal(self, method: str, answer: requests.Response) -> Exception:
        repository = self._repository
        said = _said(answer)
        if answer.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return ConfigError(
                f"the registry {repository.host} does not take {repository.name}{said}; log in "
                f"with an account that may push there: podman login {repository.host}, or docker "
                "login (kboot reads auths in REGISTRY_AUTH_FILE or ~/.docker/config.json, and "
                "asks no credential helper)"
            )
        return InfraError(
            f"the registry {repository.host} answers {answer.status_code} to {method} "
            f"{urlsplit(answer.url).path}{said}"
        )


def _said(answer: requests.Response) -> str:
    """What a registry says is wrong, behind a colon."""
    try:
        first = answer.json()["errors"][0]
        return f": {' '.join(str(first.get('message') or first['code']).split())}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""


def _credential_files(environ: Mapping[str, str]) -> Iterator[Path]:
    """In the order in which podman reads them (containers-auth.json(5))."""
    if named := environ.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
        return
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    if docker := environ.get("DOCKER_CONFIG"):
        yield Path(docker) / "config.json"
    elif home := environ.get("HOME"):
        yield Path(home) / ".docker" / "config.json"


def _keys(repository: Repository, auths: Mapping[str, Any]) -> Sequence[str]:
    """Under which of these keys its credentials are, the narrowest first."""
    parts = [repository.host, *repository.name.split("/")]
    wanted = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    hosts = {repository.host, _DOCKER_KEY} if repository.host == _DOCKER else {repository.host}

    def host_of(key: str) -> str:
        # Docker's are URLs at times: https://index.docker.io/v1/.
        return key.rpartition("://")[2].partition("/")[0]

    exact = [key for key in wanted if key in auths]
    return [*exact, *(key for key in auths if "://" in key and host_of(key) in hosts)]


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
