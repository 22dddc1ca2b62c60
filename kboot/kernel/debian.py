"""Packages of Debian's for other architectures: fetched from a mirror, unpacked, never installed.

A mirror's index (``Packages.xz``) says where a package lies and what its SHA-256 is. The index
itself is believed for the sake of the mirror's certificate: name it by ``https://``.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from kboot.arch import DEBIAN_MIRROR, DebianFile
from kboot.cache import keep_directory
from kboot.errors import ConfigError, InfraError
from kboot.kernel.download import download
from kboot.kernel.package import extract_file
from kboot.log import step
from kboot.state import cache_directory


def fetch_file(wanted: DebianFile, *, architecture: str, mirror: str = DEBIAN_MIRROR) -> Path:
    """A file out of a package for an architecture as Debian names it; kept in the cache.

    Once it is there, nothing is asked of the mirror any more. `InfraError` if the mirror cannot be
    reached, has no such file, or another one than its index says.
    """
    place = f"{wanted.suite}-{architecture}-{wanted.package}-{wanted.path.replace('/', '_')}"
    name = Path(wanted.path).name

    def fill(directory: Path) -> None:
        package = fetch_package(
            wanted.package, suite=wanted.suite, architecture=architecture, mirror=mirror
        )
        with (directory / name).open("wb") as target:
            if not extract_file(package, wanted.path, target):
                raise InfraError(f"{package}: there is no {wanted.path} in it")

    try:
        return keep_directory(cache_directory("debian") / place, fill) / name
    except (ConfigError, InfraError) as error:
        raise InfraError(
            f"{name} for {architecture}, from Debian's package {wanted.package}, cannot be had: "
            f"{error} (another mirror: debian_mirror = URL)"
        ) from error


def fetch_package(name: str, *, suite: str, architecture: str, mirror: str = DEBIAN_MIRROR) -> Path:
    """A package file, whole and with the checksum that the mirror's index tells; in the cache."""
    index = f"{mirror.rstrip('/')}/dists/{suite}/main/binary-{architecture}/Packages.xz"
    fields = stanza(index, name)
    path, digest = quote(fields["Filename"]), fields["SHA256"]
    return download(f"{mirror.rstrip('/')}/{path}#sha256={digest}")


def stanza(index: str, name: str) -> Mapping[str, str]:
    """What a mirror's index at this address says about a package, by field."""
    path = download(index)
    with step(f"look for {name} in {path.name}"):
        try:
            text = lzma.decompress(path.read_bytes())
        except lzma.LZMAError as error:
            raise InfraError(f"{index}: not an index of packages: {error}") from error
    start = (b"\n" + text).find(b"\nPackage: " + name.encode() + b"\n")
    if start < 0:
        raise InfraError(f"{index}: it has no package {name}")
    end = text.find(b"\n\n", start)
    lines = text[start : end if end > 0 else len(text)].decode(errors="replace")
    fields = dict(re.findall(r"^([A-Za-z0-9-]+): *(.*)$", lines, re.MULTILINE))
    if not fields.get("Filename") or not re.fullmatch("[0-9a-f]{64}", fields.get("SHA256", "")):
        raise InfraError(f"{index}: it tells no file and checksum of {name}")
    return fields
