"""The boot server by HTTPS, seen by a client that verifies what it is shown."""

from __future__ import annotations

import http.client
import os
import ssl
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot import state
from kboot.certificates import Authority, new_authority, read_authority, signature_list
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.nginx import Nginx, serve
from kboot.server_tls import CERTIFICATES, Certificate
from kboot.testing import FakeBackend

CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority()


@pytest.fixture(scope="module")
def authority_file(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a user of `TRUST=` has it."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    key = authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_text(authority.pem + key.decode())
    return path


@pytest.fixture(scope="module")
def server(authority_file: Path) -> Iterator[Nginx]:
    with (
        state.run_directory() as run,
        serve(
            run,
            guest_host="127.0.0.1",
            program="nginx",
            deadline=Deadline(20),
            tls_authority=authority_file,
        ) as nginx,
    ):
        yield nginx


@pytest.fixture(scope="module")
def image(server: Nginx, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a file, by HTTP."""
    path = tmp_path_factory.mktemp("image") / "image"
    path.write_bytes(CONTENT)
    return server.put(path)


def get(url: str, trusted: str) -> bytes:
    context = ssl.create_default_context(cadata=trusted)
    # As Python does of its own accord, from 3.13 on.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        with urllib.request.urlopen(url, context=context, timeout=20) as answer:  # noqa: S310
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        # It holds the answer.
        error.close()
        raise


def test_a_file_is_served_by_https_and_logged_as_by_http(
    server: Nginx, image: str, authority: Authority
) -> None:
    url = server.https(f"{image}?m=m0&b=1")
    assert url.startswith("https://127.0.0.1:")
    assert get(url, authority.pem) == CONTENT
    fetch = server.fetches()[-1]
    assert (fetch.query, fetch.status, fetch.size, fetch.complete) == ("m=m0&b=1", 200, 300_000, 1)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server.https("nothing"), authority.pem)


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        ("expired", "certificate has expired"),
        ("other-name", "IP address mismatch"),
        ("untrusted", "self-signed certificate in certificate chain"),
    ],
)
def test_a_bad_certificate_is_bad_in_one_way(
    server: Nginx, image: str, authority: Authority, certificate: Certificate, words: str
) -> None:
    with pytest.raises(urllib.error.URLError, match=words):
        get(server.https(image, certificate), authority.pem)


def test_faults_are_met_by_https_as_well(server: Nginx, image: str, authority: Authority) -> None:
    url = server.https(image)
    with server.fault(image, status=503) as fault:
        with pytest.raises(urllib.error.HTTPError, match="503"):
            get(url, authority.pem)
        assert fault.hits == 1
    with server.fault(image, "truncated", after=1000), pytest.raises(http.client.IncompleteRead):
        get(url, authority.pem)
    assert get(url, authority.pem) == CONTENT


def test_the_evidence_has_the_authority_and_no_key(server: Nginx, tmp_path: Path) -> None:
    server.https("x")
    server.evidence(tmp_path)
    assert {"ca.pem", "tls-on.conf", "tls-on.log"} <= {path.name for path in tmp_path.iterdir()}
    assert not any("PRIVATE KEY" in path.read_text() for path in tmp_path.iterdir())


def test_without_https_nothing_is_started_for_it_and_what_ends_is_told(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with (
        state.run_directory() as run,
        serve(run, guest_host="127.0.0.1", program="nginx", deadline=Deadline(20)) as nginx,
    ):
        assert not list(nginx.prefix.glob("tls-*"))
        assert set(threading.enumerate()) == before
        assert get(nginx.https("beacon/x"), nginx.serve_tls("on").authority) == b"ok\n"
        pid = int((nginx.prefix / "tls-on.pid").read_text())
        os.kill(pid, 9)
        # A child that has ended stays until somebody asks for it.
        stat = Path(f"/proc/{pid}/stat")
        while stat.exists() and ") Z" not in stat.read_text():
            time.sleep(0.01)
        with pytest.raises(InfraError, match="nginx for HTTPS has ended"):
            nginx.check()


def test_each_certificate_has_a_name_and_others_are_refused(server: Nginx) -> None:
    assert {server.https("x", each) for each in CERTIFICATES} == {
        server.serve_tls(each).base + "x" for each in CERTIFICATES
    }
    with pytest.raises(ConfigError, match="no certificate 'good'; there are: on, expired"):
        server.https("x", "good")  # type: ignore[arg-type]
    with FakeBackend().serve(Deadline(1)) as fake, pytest.raises(ConfigError, match="nothing by H"):
        fake.https("x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file"),
        ("", "must have a certificate and its key"),
        ("certificate", "must have a certificate and its key"),
        ("another key", "is not that of its certificate"),
    ],
)
def test_what_is_no_authority_is_refused(
    authority: Authority, authority_file: Path, tmp_path: Path, text: str | None, words: str
) -> None:
    path = tmp_path / "ca.pem"
    if text == "another key":
        key = authority_file.read_text().removeprefix(authority.pem)
        path.write_text(new_authority().pem + key)
    elif text is not None:
        path.write_text(authority.pem if text else "")
    with pytest.raises(ConfigError, match=f"tls_ca: .*{words}"):
        read_authority(path)


def test_uefi_is_told_an_authority_in_its_own_format(authority: Authority) -> None:
    data = signature_list(authority.pem)
    kind, size, head, each = struct.unpack("<16sIII", data[:28])
    assert kind.hex() == "a159c0a5e494a74a87b5ab155c2bf072"
    assert (size, head, each) == (len(data), 0, len(data) - 28)
    assert ssl.DER_cert_to_PEM_cert(data[44:]).split() == authority.pem.split()
