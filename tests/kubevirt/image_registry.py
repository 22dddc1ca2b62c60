"""A real registry of container images on this host."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import bcrypt
import pytest
import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

from kboot import process
from kboot.certificates import Authority, new_authority
from kboot.deadline import Deadline

PROGRAM = Path(__file__).parents[2] / "build" / "registry" / "docker-registry"
USER, PASSWORD = "ann", "s3cret:with colon"
_LISTENS = re.compile(r"listening on (127\.0\.0\.1:\d+)")


@contextlib.contextmanager
def running_registry(
    directory: Path, auth: dict[str, Any] | None = None, tls: dict[str, str] | None = None
) -> Iterator[str]:
    """A registry; its address. `auth` and `tls` as in its configuration."""
    if not PROGRAM.is_file():
        pytest.fail(f"no registry at {PROGRAM}: run make build/registry/docker-registry")
    conf = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "images")}},
        "http": {"addr": "127.0.0.1:0", **({"tls": tls} if tls else {})},
        **({"auth": auth} if auth else {}),
    }
    (directory / "registry.yml").write_text(yaml.safe_dump(conf))
    argv = [str(PROGRAM), "serve", str(directory / "registry.yml")]
    with process.spawn(argv, log=log_of(directory)) as running:
        for _ in Deadline(30).poll(0.02):
            if found := _LISTENS.search(log_of(directory).read_text()):
                yield found[1]
                return
            assert running.exit_status() is None, running.last_words()
        pytest.fail(f"the registry does not come up: {running.last_words()}")


def log_of(directory: Path) -> Path:
    """What it says, with a line for each request."""
    return directory / "registry.log"


def requests_in(directory: Path) -> list[str]:
    """The requests that it has answered so far: ``PUT /v2/...``."""
    return re.findall(r'"((?:GET|HEAD|POST|PUT|PATCH) \S+) HTTP', log_of(directory).read_text())


def htpasswd(directory: Path) -> dict[str, Any]:
    """Passwords that the registry itself compares."""
    kept = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (directory / "htpasswd").write_text(f"{USER}:{kept}\n")
    return {"htpasswd": {"realm": "images", "path": str(directory / "htpasswd")}}


def logged_in(path: Path, key: str) -> Path:
    """A file as ``podman login`` and ``docker login`` write it."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {key: {"auth": auth}}}))
    return path


def certified(directory: Path) -> dict[str, str]:
    """A certificate of an authority that nobody knows, whose own is in authority.pem."""
    authority = new_authority()
    keys = directory / "registry.pem"
    keys.write_text(authority.server("127.0.0.1", "on"))
    (directory / "authority.pem").write_text(authority.pem)
    return {"certificate": str(keys), "key": str(keys)}


@contextlib.contextmanager
def token_service(directory: Path) -> Iterator[dict[str, Any]]:
    """A service that gives those a token who have the password, as large registries have one."""
    authority = new_authority("tokens")

    class Tokens(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if self.headers.get("Authorization") != f"Basic {said}":
                self.send_error(401)
                return
            asked = parse_qs(urlsplit(self.path).query)
            body = json.dumps({"token": _token(authority, asked)}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    (directory / "tokens.pem").write_text(authority.pem)
    with ThreadingHTTPServer(("127.0.0.1", 0), Tokens) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {
            "token": {
                "realm": f"http://127.0.0.1:{server.server_port}/token",
                "service": "images",
                "issuer": "tests",
                "rootcertbundle": str(directory / "tokens.pem"),
            }
        }
        server.shutdown()
        thread.join()


def _token(authority: Authority, asked: dict[str, list[str]]) -> str:
    """Docker's "token authentication": a JSON web token that allows what was asked for."""
    (kind, name, actions) = asked["scope"][0].split(":")
    der = authority.certificate.public_bytes(serialization.Encoding.DER)
    head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
    now = int(time.time())
    claims = {
        "iss": "tests",
        "sub": USER,
        "aud": asked["service"][0],
        "nbf": now - 60,
        "exp": now + 600,
        "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
    }
    said = ".".join(_plain(json.dumps(part).encode()) for part in (head, claims))
    signature = authority.key.sign(said.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{said}.{_plain(signature)}"


def _plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
