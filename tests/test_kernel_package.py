"""Kernels in Debian packages: unpacked once, whole or not at all."""

from __future__ import annotations

import gzip
import io
import lzma
import re
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kboot.cache import FileStamp, keep_directory, keep_file
from kboot.errors import ConfigError, InfraError
from kboot.kernel import read_kernel
from kboot.kernel.package import AR_MAGIC, ArMember, ar_members
from tests.test_kernel import RELEASE, arm64_image, bzimage, complaint, written

KERNEL_FILES = {
    f"./boot/System.map-{RELEASE}": b"ffffffff81000000 T _text\n",
    f"./boot/config-{RELEASE}": b"CONFIG_64BIT=y\n",
    f"./boot/vmlinuz-{RELEASE}": bzimage(),
    f"./lib/modules/{RELEASE}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
    f"./lib/modules/{RELEASE}/kernel/fs/one.ko": b"one",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kboot" / "kernels"


def tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def ar(members: Mapping[str, bytes]) -> bytes:
    packed = AR_MAGIC
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        packed += header.encode() + content + b"\n" * (len(content) % 2)
    return packed


def deb(
    files: Mapping[str, bytes], *, control: str = "Package: linux-image\n", suffix: str = ".xz"
) -> bytes:
    return ar(
        {
            "debian-binary": b"2.0\n",
            "control.tar.gz": gzip.compress(tar({"./control": control.encode()})),
            f"data.tar{suffix}": PACKERS[suffix](tar(files)),
        }
    )


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_kernel_package_brings_all_of_a_kernel(
    tmp_path: Path, own_cache: Path, suffix: str
) -> None:
    path = written(tmp_path / "linux.deb", deb(KERNEL_FILES, suffix=suffix))
    kernel = read_kernel(path)
    assert (kernel.release, kernel.source) == (RELEASE, path)
    assert kernel.image.read_bytes() == bzimage()
    assert kernel.image.is_relative_to(own_cache)
    assert kernel.config() == "CONFIG_64BIT=y\n"
    assert kernel.symbols is not None
    assert kernel.symbols.read_bytes() == b"ffffffff81000000 T _text\n"
    assert kernel.modules is not None
    assert kernel.modules.name == RELEASE
    assert (kernel.modules / "kernel/fs/one.ko").read_bytes() == b"one"


def test_modules_below_usr_are_found(tmp_path: Path) -> None:
    files = {name.replace("./lib", "./usr/lib"): content for name, content in KERNEL_FILES.items()}
    kernel = read_kernel(written(tmp_path / "linux.deb", deb(files)))
    assert kernel.modules is not None
    assert (kernel.modules / "modules.builtin").is_file()


def test_an_image_that_is_called_vmlinux_is_told_from_one_with_symbols(tmp_path: Path) -> None:
    files = {f"./boot/vmlinux-{RELEASE}": arm64_image(), f"./boot/config-{RELEASE}": b"X=y\n"}
    kernel = read_kernel(written(tmp_path / "riscv.deb", deb(files)))
    assert (kernel.image.name, kernel.vmlinux) == (f"vmlinuz-{RELEASE}", None)
    files = {f"./boot/vmlinux-{RELEASE}": b"\x7fELF", f"./boot/vmlinuz-{RELEASE}": bzimage()}
    kernel = read_kernel(written(tmp_path / "both.deb", deb(files)))
    assert kernel.image.read_bytes() == bzimage()


def test_a_package_without_modules_says_so(tmp_path: Path) -> None:
    files = {f"./boot/vmlinuz-{RELEASE}": bzimage()}
    kernel = read_kernel(written(tmp_path / "linux.deb", deb(files)))
    assert kernel.modules is None
    assert kernel.config() is None


def test_modules_wait_until_they_are_asked_for(tmp_path: Path, own_cache: Path) -> None:
    kernel = read_kernel(written(tmp_path / "linux.deb", deb(KERNEL_FILES)))
    assert not [*own_cache.rglob("*.ko")]
    assert kernel.modules is not None
    assert [*own_cache.rglob("*.ko")]


def test_a_path_that_leads_out_of_the_cache_is_passed_over(tmp_path: Path, own_cache: Path) -> None:
    files = {
        **KERNEL_FILES,
        f"./lib/modules/{RELEASE}/../../../../../../escaped.ko": b"x",
        "/../escaped.ko": b"x",
    }
    assert read_kernel(written(tmp_path / "linux.deb", deb(files))).modules is not None
    assert not [*tmp_path.rglob("escaped.ko")]
    assert [*own_cache.rglob("one.ko")]


@pytest.mark.parametrize("part", [0.001, 0.3, 0.7, 0.999])
def test_a_package_cut_short_is_truncated(tmp_path: Path, own_cache: Path, part: float) -> None:
    whole = deb(KERNEL_FILES)
    path = written(tmp_path / "linux.deb", whole[: max(int(len(whole) * part), 30)])
    assert re.search(r"truncated: \d+ bytes of \d+", complaint(path))
    assert not [*own_cache.rglob("vmlinuz*")]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_broken_data_in_a_package_is_named(tmp_path: Path, suffix: str) -> None:
    packed = PACKERS[suffix](tar({f"./boot/vmlinuz-{RELEASE}": bzimage()}))
    for broken in (packed[:20] + bytes(30) + packed[50:], packed[: len(packed) // 2]):
        members = {"debian-binary": b"2.0\n", f"data.tar{suffix}": broken}
        message = complaint(written(tmp_path / "linux.deb", ar(members)))
        assert re.search(f"data.tar{suffix}.*(corrupt|truncated)", message)


def test_a_meta_package_names_the_real_one(tmp_path: Path) -> None:
    control = (
        "Package: linux-image-amd64\n"
        "Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2), kmod\n"
        "Description: Linux for 64-bit PCs\n the meta package\n"
    )
    path = written(tmp_path / "meta.deb", deb({"./usr/share/doc/x": b""}, control=control))
    message = complaint(path)
    assert "linux-image-amd64 is a meta package" in message
    assert "apt-get download linux-image-6.1.0-56-amd64," in message


def test_a_kernel_spread_over_packages_is_put_together(tmp_path: Path) -> None:
    there = f"./usr/lib/modules/{RELEASE}"
    parts = {
        "image": {"./usr/share/doc/x": b""},
        "binary": {f"{there}/vmlinuz": bzimage()},
        "modules": {f"{there}/kernel/one.ko": b"one"},
        "base": {f"{there}/config": b"CONFIG_64BIT=y\n", f"{there}/modules.builtin": b""},
    }
    control = f"Package: linux\nDepends: linux-binary-{RELEASE} (= 1), linux-modules-{RELEASE}\n"
    paths = {kind: tmp_path / f"linux-{kind}-{RELEASE}_1_amd64.deb" for kind in parts}

    image = written(paths["image"], deb(parts["image"], control=control))
    assert f"apt-get download linux-binary-{RELEASE} linux-modules-{RELEASE}, " in complaint(image)

    binary = written(paths["binary"], deb(parts["binary"]))
    assert read_kernel(image).release == read_kernel(binary).release == RELEASE
    assert read_kernel(binary).modules is None

    for kind in ("modules", "base"):
        written(paths[kind], deb(parts[kind]))
    for source in (image, binary):
        kernel = read_kernel(source)
        assert kernel.source == source
        assert kernel.config() == "CONFIG_64BIT=y\n"
        assert kernel.modules is not None
        assert (kernel.modules / "kernel/one.ko").read_bytes() == b"one"
        assert (kernel.modules / "modules.builtin").is_file()
    # As by a link of any name, which `make kernel` makes.
    link = tmp_path / "debian.deb"
    link.symlink_to(binary)
    assert read_kernel(link).modules == read_kernel(binary).modules


def test_a_package_of_something_else_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "x.deb", deb({"./usr/bin/tool": b""}, control="Package: tool\n"))
    assert "package tool has no kernel" in complaint(path)


def test_a_broken_kernel_in_a_package_names_the_package(tmp_path: Path) -> None:
    files = {f"./boot/vmlinuz-{RELEASE}": bzimage()[:1500]}
    message = complaint(written(tmp_path / "linux.deb", deb(files)))
    assert re.search(r"linux.deb: the kernel in it: truncated: 1500 bytes of 2048", message)


def test_an_archive_that_is_no_package_is_told_apart(tmp_path: Path) -> None:
    assert "not a Debian package" in complaint(written(tmp_path / "lib.a", ar({"a.o": b"x"})))
    missing = written(tmp_path / "x.deb", ar({"debian-binary": b"2.0\n"}))
    assert "it has no data.tar" in complaint(missing)


def read_release(path: Path) -> str:
    return read_kernel(path).release


def test_several_processes_unpack_one_package_once(tmp_path: Path, own_cache: Path) -> None:
    path = written(tmp_path / "linux.deb", deb(KERNEL_FILES))
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        assert {*pool.map(read_release, [path] * 8)} == {RELEASE}
    assert len([*own_cache.rglob("vmlinuz*")]) == 1


def test_what_a_killed_process_left_half_done_is_cleared(tmp_path: Path) -> None:
    written(tmp_path / "kinds/.partial/half", b"")
    made = keep_directory(tmp_path / "kinds/whole", lambda directory: None)
    assert [*made.iterdir()] == []
    assert not (tmp_path / "kinds/.partial").exists()


def test_an_entry_that_could_not_be_finished_is_not_there(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        written(directory / "half", b"")
        raise ConfigError("broken")

    with pytest.raises(ConfigError, match="broken"):
        keep_directory(tmp_path / "kinds/one", fail)
    assert [entry.name for entry in (tmp_path / "kinds").iterdir()] == [".lock"]


def test_a_full_disk_is_the_hosts_fault(tmp_path: Path) -> None:
    # /dev/full as the file that is written to: the kernel answers ENOSPC, as on a full disk.
    def fill(directory: Path) -> None:
        Path("/dev/full").write_bytes(b"x")

    with pytest.raises(InfraError, match=r"No space left.*set XDG_CACHE_HOME"):
        keep_directory(tmp_path / "kinds/one", fill)


def test_a_cache_that_cannot_be_written_names_the_remedy(tmp_path: Path) -> None:
    written(tmp_path / "file", b"")
    with pytest.raises(InfraError, match=r"file/rootfs cannot be written.*set XDG_CACHE_HOME"):
        keep_file(tmp_path / "file" / "rootfs", "tiny.cpio", [b"x"])


any_length = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
)
WHOLE = ar({"debian-binary": b"2.0\n", "odd": b"x", "data.tar": b"some data"})


def test_members_of_an_archive_are_found_where_they_are() -> None:
    found = [(m.name, WHOLE[m.offset : m.offset + m.size]) for m in members_of(WHOLE)]
    assert found == [("debian-binary", b"2.0\n"), ("odd", b"x"), ("data.tar", b"some data")]


def members_of(data: bytes) -> list[ArMember]:
    return list(ar_members(io.BytesIO(data), "x.deb"))


@any_length
@given(data=st.binary(max_size=500))
def test_garbage_is_no_archive(data: bytes) -> None:
    for start in (b"x", AR_MAGIC + b"\n"):
        with pytest.raises(ConfigError, match=r"x\.deb"):
            members_of(start + data)


@any_length
@given(cut=st.integers(1, len(WHOLE) - 1))
def test_part_of_an_archive_is_truncated_or_ends_between_members(cut: int) -> None:
    try:
        found = members_of(WHOLE[:-cut])
    except ConfigError:
        return
    assert found == members_of(WHOLE)[: len(found)]


@any_length
@given(at=st.integers(0, len(WHOLE)), value=st.binary(min_size=1, max_size=12))
def test_a_broken_archive_has_members_inside_it_or_a_complaint(at: int, value: bytes) -> None:
    data = WHOLE[:at] + value + WHOLE[at + len(value) :]
    try:
        found = members_of(data)
    except ConfigError:
        return
    assert all(0 < m.offset <= m.offset + m.size <= len(data) for m in found)


@any_length
@given(at=st.integers(0, 900), value=st.binary(min_size=1, max_size=12))
def test_a_broken_package_gives_a_kernel_or_a_complaint(
    tmp_path: Path, at: int, value: bytes
) -> None:
    whole = deb(KERNEL_FILES)
    path = written(tmp_path / "linux.deb", whole[:at] + value + whole[at + len(value) :])
    try:
        assert read_kernel(path).release
    except ConfigError:
        return


def test_what_is_kept_already_stays_the_same_file(tmp_path: Path) -> None:
    kept = keep_file(tmp_path, "tiny.cpio.gz", [b"one", b"two"])
    stamp = FileStamp.of(kept)
    assert keep_file(tmp_path, "tiny.cpio.gz", [b"onetwo"]) == kept
    # Who sends it to a server at this moment sees that it is the same.
    assert FileStamp.of(kept) == stamp
    # As a host that lost its power may leave it.
    kept.write_bytes(b"one")
    assert keep_file(tmp_path, "tiny.cpio.gz", [b"onetwo"]).read_bytes() == b"onetwo"
