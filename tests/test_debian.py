"""Files of Debian's packages from a mirror: found by its index, checked, unpacked, kept."""

from __future__ import annotations

import hashlib
import lzma
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.arch import DebianFile
from kboot.errors import InfraError
from kboot.kernel.debian import fetch_file, fetch_package, stanza
from tests.test_kernel import written
from tests.test_kernel_download import Server

TOOL = DebianFile(package="tool", path="usr/bin/tool", suite="stable")
CONTENT = b"\x7fELF of another world"
INDEX = "dists/stable/main/binary-arm64/Packages.xz"
POOL = "pool/main/t/tool/tool_1:2~3+b1_arm64.deb"


def package(folder: Path) -> bytes:
    """A package with one file, made by Debian's own program."""
    tree = folder / "tree"
    written(tree / "usr/bin/tool", CONTENT)
    control = (
        "Package: tool\nVersion: 1\nArchitecture: arm64\nMaintainer: me\nDescription: a tool\n"
    )
    written(tree / "DEBIAN/control", control.encode())
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(folder / "tool.deb")],
        check=True,
        capture_output=True,
    )
    return (folder / "tool.deb").read_bytes()


def entry(name: str, path: str, digest: str) -> str:
    return f"Package: {name}\nSource: x\nDepends: a, b\nFilename: {path}\nSHA256: {digest}\n\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Server]:
    """A mirror with one package, and others in its index whose names are like it."""
    server = Server(tmp_path)
    deb = package(tmp_path)
    written(server.files / POOL, deb)
    index = (
        entry("tool-doc", "pool/doc.deb", "0" * 64)
        + entry("tool", POOL, hashlib.sha256(deb).hexdigest())
        + entry("forged", POOL, "1" * 64)
        + entry("bare", "", "")
    )
    written(server.files / INDEX, lzma.compress(index.encode()))
    server.start()
    yield server
    server.kill()


def test_a_file_comes_out_of_its_package_and_is_asked_for_once(mirror: Server) -> None:
    path = fetch_file(TOOL, architecture="arm64", mirror=mirror.url(""))
    assert (path.name, path.read_bytes()) == ("tool", CONTENT)
    asked = [request["path"] for request in mirror.requests()]
    assert asked == [f"/{INDEX}", f"/{POOL}"]
    mirror.kill()
    assert fetch_file(TOOL, architecture="arm64", mirror=mirror.url("")) == path
    mirror.start()


def test_the_index_is_read_by_whole_names(mirror: Server) -> None:
    assert stanza(mirror.url(INDEX), "tool")["Filename"] == POOL
    with pytest.raises(InfraError, match=r"it has no package too$"):
        stanza(mirror.url(INDEX), "too")
    with pytest.raises(InfraError, match="tells no file and checksum of bare"):
        stanza(mirror.url(INDEX), "bare")


def test_a_package_that_is_not_the_one_of_the_index_is_refused(mirror: Server) -> None:
    forged = DebianFile(package="forged", path="usr/bin/tool", suite="stable")
    with pytest.raises(InfraError, match=r"its sha256 is .*, not 1111"):
        fetch_file(forged, architecture="arm64", mirror=mirror.url(""))


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (DebianFile(package="tool", path="usr/bin/other", suite="stable"), "there is no usr/bin"),
        (DebianFile(package="tool", path="usr/bin/tool", suite="future"), "says 404 Not Found"),
    ],
)
def test_what_a_mirror_does_not_have_is_told_with_what_it_was_for(
    mirror: Server, wanted: DebianFile, words: str
) -> None:
    with pytest.raises(InfraError) as caught:
        fetch_file(wanted, architecture="arm64", mirror=mirror.url(""))
    assert words in str(caught.value)
    assert f"{Path(wanted.path).name} for arm64, from Debian's package tool" in str(caught.value)
    assert "debian_mirror = URL" in str(caught.value)


def test_a_mirror_that_is_no_mirror_is_told(mirror: Server) -> None:
    written(mirror.files / "dists/odd/main/binary-arm64/Packages.xz", b"<html>sign in</html>")
    with pytest.raises(InfraError, match="not an index of packages"):
        fetch_package("tool", suite="odd", architecture="arm64", mirror=mirror.url(""))
