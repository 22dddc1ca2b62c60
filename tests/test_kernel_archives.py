"""Kernels in archives: tar of every compression, RPM, and packages of Arch and Alpine."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import zstandard

from kboot.errors import ConfigError
from kboot.kernel import read_kernel
from kboot.testing import write_kernel

RELEASE = "6.99.1-packed"
MODULE = f"lib/modules/{RELEASE}/kernel/x.ko"
#: As ``make tar-pkg``, Arch and Alpine lay it out.
TAR_PKG = {"./boot/vmlinuz-" + RELEASE: "image", "./boot/config-" + RELEASE: "config"}
ARCH = {f"usr/lib/modules/{RELEASE}/vmlinuz": "image"}
ALPINE = {"boot/vmlinuz-lts": "image", f"boot/config-{RELEASE}": "config"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def contents(directory: Path) -> dict[str, bytes]:
    image = write_kernel(directory / "image", RELEASE).read_bytes()
    return {"image": image, "config": b"CONFIG_X=y\n", "module": b"module"}


def tar(files: Mapping[str, str], directory: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, which in files.items():
            content = contents(directory)[which]
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def hold_to_account(package: Path, modules: str) -> None:
    """It is the kernel that was packed, with all that came with it."""
    kernel = read_kernel(package)
    assert (kernel.release, kernel.source) == (RELEASE, package)
    assert kernel.modules
    assert (kernel.modules / "kernel" / "x.ko").read_bytes() == b"module"
    assert str(kernel.modules).endswith(modules)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("packer", PACKERS)
def test_a_tar_package_of_every_compression_is_a_kernel(packer: str, tmp_path: Path) -> None:
    packed = PACKERS[packer](tar(TAR_PKG | {f"./{MODULE}": "module"}, tmp_path))
    package = tmp_path / "linux.tar.any"
    package.write_bytes(packed)
    hold_to_account(package, RELEASE)
    assert read_kernel(package).config() == "CONFIG_X=y\n"


def test_a_package_of_arch_is_a_kernel(tmp_path: Path) -> None:
    plain = tar(ARCH | {f"usr/{MODULE}": "module"}, tmp_path)
    packed = subprocess.run(["zstd", "-c"], input=plain, check=True, stdout=-1)
    package = tmp_path / "linux-6.99-x86_64.pkg.tar.zst"
    package.write_bytes(packed.stdout)
    hold_to_account(package, RELEASE)


def test_a_package_of_alpine_is_a_kernel(tmp_path: Path) -> None:
    """Its parts are gzip members; all but the last have no end of an archive."""
    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(".PKGINFO"))
        end = control.tell()
    package = tmp_path / "linux-lts.apk"
    data = tar(ALPINE | {MODULE: "module"}, tmp_path)
    package.write_bytes(gzip.compress(control.getvalue()[:end]) + gzip.compress(data))
    hold_to_account(package, RELEASE)


@pytest.mark.parametrize("compression", ["w9.gzdio", "w3.zstdio", "w6.xzdio", "w9.bzdio"])
def test_an_rpm_package_is_a_kernel(compression: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name, which in {**ARCH, f"boot/config-{RELEASE}": "config", MODULE: "module"}.items():
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents(tmp_path)[which])
    spec = tmp_path / "kernel.spec"
    spec.write_text(
        "Name: kernel\nVersion: 6.99.1\nRelease: 1\nSummary: x\nLicense: GPL\n"
        f"%description\nx\n%install\ncp -a {root}/. %{{buildroot}}\n%files\n/usr\n/boot\n/lib\n"
    )
    defines = {"_topdir": str(tmp_path / "rpm"), "_binary_payload": compression}
    words = [word for key, value in defines.items() for word in ("--define", f"{key} {value}")]
    subprocess.run(
        ["rpmbuild", "-bb", "--quiet", "--nodeps", *words, spec], check=True, capture_output=True
    )
    (package,) = (tmp_path / "rpm" / "RPMS").rglob("*.rpm")
    hold_to_account(package, RELEASE)
    cut = tmp_path / "cut.rpm"
    cut.write_bytes(package.read_bytes()[:3000])
    with pytest.raises(ConfigError, match=r"cut off|truncated|cut\.rpm: corrupt"):
        read_kernel(cut)


@pytest.mark.parametrize("packer", PACKERS)
def test_an_archive_that_is_broken_in_a_files_midst_is_named(packer: str, tmp_path: Path) -> None:
    # Of what does not compress, as in a real kernel: most of an archive is in a file's midst.
    noise = random.Random(1)
    content = write_kernel(tmp_path / "image", RELEASE).read_bytes() + noise.randbytes(2 << 20)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name in (f"boot/vmlinuz-{RELEASE}", MODULE):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
            content = noise.randbytes(2 << 20)
    whole = PACKERS[packer](plain.getvalue())
    for wrong, place in (("cut", 0.3), ("cut", 0.8), ("damaged", 0.3), ("damaged", 0.8)):
        at = int(len(whole) * place)
        rest = b"" if wrong == "cut" else bytes(64) + whole[at + 64 :]
        package = tmp_path / f"{wrong}{place}"
        package.write_bytes(whole[:at] + rest)
        if packer in {"plain", "zstd"} and wrong == "damaged":
            continue  # without a checksum, as these are here, it is what it is
        with pytest.raises(ConfigError, match=rf"{package.name}: .*(corrupt|truncated)"):
            assert read_kernel(package).modules


def test_an_archive_without_a_kernel_says_so(tmp_path: Path) -> None:
    package = tmp_path / "x.tar"
    package.write_bytes(tar({"etc/x": "config"}, tmp_path))
    with pytest.raises(ConfigError, match="a tar archive without a kernel"):
        read_kernel(package)
