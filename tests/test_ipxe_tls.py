"""iPXE and HTTPS: builds that have it, that trust, and that have it not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.errors import InfraError, KbootError
from kboot.machine.ipxe_machine import IpxeMachine
from kboot.server_tls import Certificate
from kboot.session import Session, open_session

#: Debian 13's, which has HTTPS; ``make build/ipxe/trixie/ipxe.efi`` fetches it.
TRIXIE = Path(__file__).parent.parent / "build" / "ipxe" / "trixie" / "ipxe.efi"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with open_session(Config(accel="tcg"), evidence=tmp_path_factory.mktemp("evidence")) as opened:
        yield opened


@pytest.fixture(scope="module")
def ipxe(session: Session) -> Iterator[IpxeMachine]:
    """At its prompt, with its first script fetched by HTTPS: UEFI was told whom to trust."""
    if not TRIXIE.is_file():
        pytest.fail(f"no iPXE at {TRIXIE}: run make {TRIXIE.relative_to(Path.cwd())}")
    config = replace(session.config, firmware="uefi", ipxe=TRIXIE, tls="on")
    with session.ipxe(config, name="tls") as machine:
        yield machine


def test_a_script_and_files_come_by_https(ipxe: IpxeMachine, tmp_path: Path) -> None:
    assert ipxe.spec.boot_file.startswith("https://")
    (tmp_path / "image").write_bytes(bytes(300_000))
    url = ipxe.server.put(tmp_path / "image")
    ipxe.succeed(f"imgfetch --name image {ipxe.server.https(url)}")
    assert "300000 bytes" in ipxe.succeed("imgstat image")
    ipxe.boot(f"#!ipxe\nimgfree image\nchain {ipxe.server.https('none')} || shell\n")
    ipxe.wait()


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        ("expired", "certificate expired or not yet valid"),
        ("other-name", "certificate of another name"),
        ("untrusted", "root certificate not trusted|no usable certificate"),
    ],
)
def test_a_bad_certificate_is_told_in_words(
    ipxe: IpxeMachine, certificate: Certificate, words: str
) -> None:
    result = ipxe.run(f"imgfetch {ipxe.server.https('beacon/x', certificate)}")
    assert result.errno is not None
    assert re.search(words, result.errno.describe())


def test_a_build_without_https_or_without_trust_is_told_at_once(session: Session) -> None:
    # Debian 12's ROM, and Debian 13's.
    with (
        pytest.raises(
            KbootError,
            match=r"this build of iPXE has no HTTPS: iPXE 1|no usable certificate",
        ),
        session.ipxe(replace(session.config, tls="on"), name="rom"),
    ):
        pass


def test_a_machine_without_a_boot_file_is_told_at_once(session: Session) -> None:
    with (
        pytest.raises(InfraError, match="firmware found nothing to boot: No more network devices"),
        session.ipxe(replace(session.config, dhcp="no-file"), name="none"),
    ):
        pass
