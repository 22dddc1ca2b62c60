"""Initramfs images: what is in them, and the same bytes for the same wishes."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kboot.errors import ConfigError
from kboot.process import find_program, run
from kboot.rootfs import check_initrd, overlay_initramfs, resolve_rootfs, tiny_initramfs
from kboot.rootfs.cpio import archive, guest_path, gzipped, regular, with_parents


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kboot" / "rootfs"


def unpacked(image: Path, into: Path) -> Path:
    """What another program makes of an archive of ours."""
    data = image.read_bytes()
    into.mkdir()
    plain = gzip.decompress(data) if image.suffix == ".gz" else data
    # Only root may make device nodes.
    run(["cpio", "-idm", "--nonmatching", "dev/*"], timeout_s=20, stdin=plain, cwd=into)
    return into


def test_the_tiny_system_is_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_initramfs()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    second = tiny_initramfs()
    assert first != second
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_the_tiny_system_has_what_a_boot_needs(tmp_path: Path) -> None:
    root = unpacked(tiny_initramfs(), tmp_path / "root")
    assert os.access(root / "init", os.X_OK)
    assert os.access(root / "usr/bin/busybox", os.X_OK)
    assert str((root / "bin").readlink()) == "usr/bin"
    assert (root / "usr/bin/sh").is_symlink()
    assert str((root / "usr/sbin/getty").readlink()) == "/usr/bin/busybox"
    assert (root / "etc/issue").read_bytes() == b""
    assert stat.S_IMODE((root / "etc/shadow").stat().st_mode) == 0o600
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    files = [f for f in root.rglob("*") if f.is_file() and not f.is_symlink()]
    assert {file.stat().st_mtime for file in files} == {0.0}
    assert not (root / "etc/kboot/autologin").exists()


def test_the_console_device_is_there_before_dev_is_mounted() -> None:
    listing = run(
        ["cpio", "-tv"], timeout_s=20, stdin=gzip.decompress(tiny_initramfs().read_bytes())
    )
    assert re.search(r"crw-+ .* 5, +1 .*dev/console", listing.stdout.decode())


def test_the_scripts_of_the_tiny_system_have_no_syntax_errors(tmp_path: Path) -> None:
    root = unpacked(tiny_initramfs(), tmp_path / "root")
    scripts = [root / "init", root / "etc/profile", *(root / "usr/libexec/kboot").iterdir()]
    for script in scripts:
        run(["busybox", "sh", "-n", str(script)], timeout_s=10)
    assert len(scripts) > 3


def test_the_password_and_autologin_change_the_tiny_system(tmp_path: Path) -> None:
    images = {tiny_initramfs(), tiny_initramfs(password="other"), tiny_initramfs(autologin=True)}
    assert len(images) == 3
    root = unpacked(tiny_initramfs(autologin=True), tmp_path / "root")
    assert (root / "etc/kboot/autologin").is_file()


def test_root_logs_in_with_the_password_alone(tmp_path: Path) -> None:
    shadow = (
        unpacked(tiny_initramfs(password="s3cret"), tmp_path / "r") / "etc/shadow"
    ).read_text()
    salt = shadow.split("$")[2]
    again = run(["openssl", "passwd", "-6", "-salt", salt, "s3cret"], timeout_s=10)
    assert shadow.splitlines()[0].split(":")[:2] == ["root", again.stdout.decode().strip()]


@pytest.mark.parametrize("password", ["", "two\nlines"])
def test_a_password_that_cannot_be_typed_is_refused(password: str) -> None:
    with pytest.raises(ConfigError, match="one line"):
        tiny_initramfs(password=password)


def test_a_machine_that_there_is_none_of_has_no_busybox() -> None:
    with pytest.raises(ConfigError, match=r"kboot has no machine for s390x"):
        tiny_initramfs(architecture="s390x")


def test_a_busybox_with_a_loader_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Any dynamic program is as unfit as Debian's package busybox.
    (tmp_path / "busybox").symlink_to(find_program("ls"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"not a static program.*busybox-static"):
        tiny_initramfs()


def test_an_overlay_brings_files_and_the_directories_above(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(b"\x7fELF")
    tool.chmod(0o755)
    data = tmp_path / "data"
    data.write_text("data")
    files: dict[str, bytes | Path] = {
        "/root/a/b.txt": b"hello",
        "/usr/bin/tool": tool,
        "/etc/data": data,
        "/etc/run": b"#!/bin/sh\n",
    }
    root = unpacked(overlay_initramfs(files), tmp_path / "root")
    assert (root / "root/a/b.txt").read_text() == "hello"
    assert (root / "etc/data").read_text() == "data"
    executable = {f.name for f in root.rglob("*") if f.is_file() and os.access(f, os.X_OK)}
    assert executable >= {"tool", "run"}
    assert stat.S_IMODE((root / "etc/data").stat().st_mode) == 0o644
    assert stat.S_IMODE((root / "root").stat().st_mode) == 0o700


def test_an_overlay_does_not_depend_on_the_order_of_its_files() -> None:
    one = overlay_initramfs({"/a": b"1", "/b/c": b"2"})
    assert overlay_initramfs({"/b/c": b"2", "/a": b"1"}) == one
    assert overlay_initramfs({"/b/c": b"3", "/a": b"1"}) != one


def test_an_overlay_leaves_the_links_of_a_merged_usr_alone(tmp_path: Path) -> None:
    root = unpacked(overlay_initramfs({"/lib/modules/x": b"", "/bin/y": b""}), tmp_path / "root")
    assert sorted(entry.name for entry in root.iterdir()) == ["usr"]
    assert (root / "usr/lib/modules/x").is_file()
    assert (root / "usr/bin/y").is_file()


def test_an_overlay_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing: no such file; it was to become /etc/x"):
        overlay_initramfs({"/etc/x": tmp_path / "nothing"})


@pytest.mark.parametrize("path", ["/", "", "/etc/../x", "a\0b"])
def test_an_overlay_stays_below_the_root(path: str) -> None:
    with pytest.raises(ConfigError, match="not a path of a file"):
        overlay_initramfs({path: b""})


def test_an_image_may_be_followed_by_a_plain_archive() -> None:
    # The kernel looks for "070701" at multiples of four bytes only.
    assert len(tiny_initramfs().read_bytes()) % 4 == 0
    assert len(overlay_initramfs({"/a": b"1"}).read_bytes()) % 4 == 0


def test_tiny_is_a_rootfs() -> None:
    assert resolve_rootfs("tiny") == [tiny_initramfs()]


@pytest.mark.parametrize(
    "data", [b"070701" + b"0" * 110, gzip.compress(b"x", mtime=0), lzma.compress(b"x")]
)
def test_an_initramfs_of_the_users_own_is_a_rootfs(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "initrd.img"
    path.write_bytes(data)
    assert resolve_rootfs(str(path)) == [path]


@pytest.mark.parametrize(
    ("data", "words"), [(b"", "an empty file"), (b"hello", "text"), (b"QFI\xfb", "a qcow2 disk")]
)
def test_what_is_no_initramfs_is_told_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "rootfs"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"{path}: not an initramfs: it looks like {words}"):
        resolve_rootfs(str(path))


@pytest.mark.parametrize("form", ["bin", "odc"])
def test_an_archive_that_linux_does_not_unpack_is_told_with_the_format(
    form: str, tmp_path: Path
) -> None:
    path = tmp_path / "initrd"
    with path.open("wb") as file:
        command = ["cpio", "--create", "--quiet", "-H", form]
        subprocess.run(command, input=b".\n", cwd=tmp_path, stdout=file, check=True)
    for taken in (resolve_rootfs, lambda text: check_initrd(Path(text))):
        with pytest.raises(ConfigError, match=r"does not unpack \(it does that of cpio -H newc\)"):
            taken(str(path))


def test_a_rootfs_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tinny: no such file; give tiny, debian, or"):
        resolve_rootfs("tinny")
    with pytest.raises(ConfigError, match="is a directory"):
        resolve_rootfs(str(tmp_path))


names = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_characters="/"), max_size=20
).filter(lambda name: name.encode(errors="ignore").decode() == name and name.strip("."))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
@given(files=st.dictionaries(names, st.binary(max_size=200), max_size=8))
def test_another_program_reads_back_what_was_written(files: dict[str, bytes]) -> None:
    packed = b"".join(archive(with_parents(regular(f"d/{n}", data) for n, data in files.items())))
    for name, content in files.items():
        read = run(["cpio", "-i", "--to-stdout", escaped(f"d/{name}")], timeout_s=10, stdin=packed)
        assert read.stdout == content


def escaped(name: str) -> str:
    """A pattern for cpio that matches this name only."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", name)


@given(chunks=st.lists(st.binary(max_size=5000), max_size=5))
def test_compressed_pieces_are_one_gzip_file(chunks: list[bytes]) -> None:
    packed = b"".join(gzipped(chunks))
    assert gzip.decompress(packed) == b"".join(chunks)
    assert len(packed) % 4 == 0


@given(path=st.text(max_size=30))
def test_a_guest_path_is_relative_and_clean(path: str) -> None:
    try:
        clean = guest_path(path)
    except ConfigError:
        return
    assert not {"", "..", "."} & set(clean.split("/"))
    assert clean.split("/")[0] not in {"bin", "sbin", "lib", "lib64"}
