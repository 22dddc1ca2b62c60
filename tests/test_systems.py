"""What a kernel boots into: root file systems on disks, in directories, and made of packages."""

from __future__ import annotations

import io
import struct
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from kboot import arch, process
from kboot.config import Config, read_disks, read_shares
from kboot.disks import find_root, partitions, read_image, reader
from kboot.errors import ConfigError, InfraError
from kboot.kernel import Kernel, read_kernel
from kboot.machine_spec import Share
from kboot.qemu import shares as qemu_shares
from kboot.rootfs import debian, resolve_rootfs
from kboot.rootfs.system import System, system_for
from tests.disk_images import DATA, ESP, ROOT, gpt

EXT4 = bytes(0x438) + b"\x53\xef" + bytes(0x3E) + b"label".ljust(16, b"\0") + bytes(0x10000)
XFS = b"XFSB" + bytes(104) + b"root".ljust(12, b"\0") + bytes(0x10000)
LUKS = b"LUKS\xba\xbe" + bytes(0x10000)
LVM = bytes(512) + b"LABELONE" + bytes(0x10000)
RAID = bytes(4096) + b"\xfc\x4e\x2b\xa9" + bytes(0x10000)


@pytest.fixture(scope="module")
def kernel(debian_kernel: Path) -> Kernel:
    return read_kernel(debian_kernel)


def root_of(path: Path) -> tuple[int, str]:
    found = find_root(read_image(path, what="rootfs"), what="rootfs")
    return found.number, found.file_system


# ---------------------------------------------------------------------------- root on a disk


def test_the_root_is_found_by_type_then_by_label_then_as_the_only_one(tmp_path: Path) -> None:
    disk = tmp_path / "x.raw"
    assert root_of(gpt(disk, (ESP, "", b"x"), (DATA, "", EXT4), (ROOT, "", XFS))) == (3, "xfs")
    assert root_of(gpt(disk, (DATA, "home", EXT4), (DATA, "root", EXT4))) == (2, "ext4")
    # The label of a file system, where the partition has no name.
    assert root_of(gpt(disk, (DATA, "", EXT4), (DATA, "", XFS))) == (2, "xfs")
    assert root_of(gpt(disk, (ESP, "", b"x"), (DATA, "data", EXT4))) == (2, "ext4")


def test_the_label_of_a_file_system_counts_beside_the_name_of_its_partition(tmp_path: Path) -> None:
    disk = tmp_path / "x.raw"
    named = [(DATA, "Linux filesystem", EXT4), (DATA, "Linux filesystem", XFS)]
    assert root_of(gpt(disk, *named)) == (2, "xfs")


def test_a_file_system_without_partitions_is_the_root(tmp_path: Path) -> None:
    disk = tmp_path / "x.raw"
    disk.write_bytes(EXT4.ljust(1 << 20, b"\0"))
    assert root_of(disk) == (0, "ext4")


def test_an_mbr_is_read_and_so_is_a_qcow2_image(tmp_path: Path) -> None:
    disk, other = tmp_path / "x.raw", tmp_path / "x.qcow2"
    table = struct.pack("<4xB3xII", 0x83, 2048, 4096)
    disk.write_bytes((bytes(446) + table).ljust(510, b"\0") + b"\x55\xaa")
    with disk.open("r+b") as file:
        file.seek(2048 * 512)
        file.write(EXT4.ljust(4096 * 512, b"\0"))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, other], check=True)
    assert root_of(disk) == root_of(other) == (1, "ext4")


def mbr(*entries: tuple[int, int, int]) -> bytes:
    table = b"".join(struct.pack("<4xB3xII", *entry) for entry in entries)
    return (bytes(440) + b"\x78\x56\x34\x12\0\0" + table).ljust(510, b"\0") + b"\x55\xaa"


def test_logical_partitions_count_from_five(tmp_path: Path) -> None:
    disk = tmp_path / "x.raw"
    with disk.open("wb") as file:
        file.write(mbr((0x82, 8, 8), (0x05, 100, 400)))
        file.seek(100 * 512)
        file.write(mbr((0x83, 8, 8), (0x05, 200, 200)))
        file.seek(300 * 512)
        file.write(mbr((0x83, 8, 160)))
        file.seek(308 * 512)
        file.write(EXT4.ljust(160 * 512, b"\0"))
    found = partitions(reader(read_image(disk, what="rootfs")))
    assert [(each.number, each.offset // 512, each.file_system) for each in found] == [
        (1, 8, ""),
        (5, 108, ""),
        (6, 308, "ext4"),
    ]
    assert found[-1].uuid == "12345678-06"
    assert root_of(disk) == (6, "ext4")


def test_a_chain_of_logical_partitions_that_leads_back_has_an_end() -> None:
    wrong = mbr((0x05, 0, 9), (0x05, 0, 9)) * 2
    assert len(partitions(lambda offset, size: wrong[offset : offset + size])) < 100


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([(DATA, "", EXT4), (DATA, "", LVM)], "partitions 1 (ext4), 2 (an LVM volume); name it"),
        ([(ESP, "", b"x"), (DATA, "", LVM)], "its root is an LVM volume, which kboot does not"),
        ([(DATA, "root", RAID)], "its root is a member of a RAID array"),
        ([(DATA, "", EXT4), (DATA, "", EXT4)], "any of the partitions 1 (ext4), 2 (ext4); name it"),
        ([(ROOT, "", LUKS)], "its root is an encrypted partition (LUKS)"),
        ([(ESP, "", b"x")], "no file system that kboot knows is in it; it takes ext4, xfs"),
    ],
)
def test_a_root_that_cannot_be_told_is_one_line(
    contents: list[tuple[object, str, bytes]], words: str, tmp_path: Path
) -> None:
    disk = gpt(tmp_path / "x.raw", *contents)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as raised:
        root_of(disk)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_damaged_partition_table_is_none() -> None:
    wrong = bytes(512) + b"EFI PART" + b"\xff" * 504
    found = partitions(lambda offset, size: wrong[offset : offset + size])
    assert [(each.number, each.file_system) for each in found] == [(0, "")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LUKS, "its root is an encrypted partition (LUKS)"),
        (LVM, "its root is an LVM volume"),
        (bytes(100) + b"\1" + bytes(1000), "unknown binary data; give a cpio archive"),
    ],
)
def test_what_is_no_root_file_system_is_told_for_what_it_is(
    content: bytes, words: str, kernel: Kernel, tmp_path: Path
) -> None:
    image = tmp_path / "x.img"
    image.write_bytes(content.ljust(-(-len(content) // 512) * 512, b"\0"))
    with pytest.raises(ConfigError) as raised:
        of(kernel, str(image))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_disk_image_that_is_not_taken_comes_with_its_conversion(
    kernel: Kernel, tmp_path: Path
) -> None:
    for form in ("vdi", "vhdx", "vpc", "qed"):
        image = tmp_path / f"x.{form}"
        subprocess.run(["qemu-img", "create", "-q", "-f", form, image, "4M"], check=True)
        with pytest.raises(ConfigError, match=f"in the format {form}; convert it: qemu-img"):
            of(kernel, str(image))


def of(kernel: Kernel, rootfs: str, *disks: str, cmdline: str = "") -> System:
    config = Config(rootfs=rootfs, disk=disks)
    return system_for(
        config.rootfs,
        kernel,
        disks=read_disks(config.disk),
        password="x",
        command_line=cmdline,
    )


def test_a_disk_image_as_rootfs_is_a_disk_with_what_it_takes_to_mount_it(
    kernel: Kernel, tmp_path: Path
) -> None:
    image = gpt(tmp_path / "x.raw", (ESP, "", b"x"), (ROOT, "", EXT4))
    found = of(kernel, str(image), "data=blank,bus=scsi")
    assert [disk.name for disk in found.disks] == ["root", "data"]
    assert set(found.modules) >= {"virtio_blk", "ext4", "virtio_scsi", "sd_mod"}
    overlay = found.images[-1].read_bytes()
    assert b"device=/dev/disk/by-id/virtio-root\npartition=2\ntype=ext4\n" in overlay


def test_nothing_else_is_called_as_the_root_file_system_is(kernel: Kernel, tmp_path: Path) -> None:
    image = gpt(tmp_path / "x.raw", (ROOT, "", EXT4))
    with pytest.raises(ConfigError, match="its disk is called root, and so is another one: give"):
        of(kernel, str(image), "root=blank")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").touch()
    with pytest.raises(ConfigError, match="its tag is root, and so is that of another directory"):
        system_for(
            str(tmp_path), kernel, shares=(Share(tag="root", path=str(tmp_path)),), password="x"
        )


def test_a_debian_that_is_not_declared_right_is_no_file(tmp_path: Path) -> None:
    for value in ("debian+", "debian:Trixie", "debian:trixie+", "disk:"):
        with pytest.raises(ConfigError, match=r"write debian\[:SUITE\]\[\+PACKAGE,...\] in small"):
            Config(rootfs=value)
    assert Config(rootfs=f"{tmp_path}/debian+").rootfs == f"{tmp_path}/debian+"


def test_an_initramfs_with_the_bytes_of_a_disk_image_stays_one(
    kernel: Kernel, tmp_path: Path
) -> None:
    image = tmp_path / "initrd.xz"
    image.write_bytes(b"\xfd7zXZ\0" + EXT4[6:])
    assert of(kernel, str(image)).images == (image,)


def test_a_declared_disk_can_be_the_root(kernel: Kernel, tmp_path: Path) -> None:
    image = gpt(tmp_path / "x.raw", (ROOT, "", EXT4))
    found = of(kernel, "disk:r", f"r={image},bus=nvme")
    assert b"nvme-QEMU_NVMe_Ctrl_r\npartition=1\n" in found.images[-1].read_bytes()
    with pytest.raises(ConfigError, match=r"no disk is called so \(there are: r\)"):
        of(kernel, "disk:other", f"r={image}")
    with pytest.raises(ConfigError, match="kboot does not look into this disk; say where"):
        of(kernel, "disk:r", "r=pvc:claim")
    with pytest.raises(ConfigError, match="disk:r: a blank disk: no system is on it"):
        of(kernel, "disk:r", "r=blank")
    found = of(kernel, "disk:r", "r=pvc:claim", cmdline="quiet root=LABEL=x")
    assert b"type=auto" in found.images[-1].read_bytes()


def test_a_root_that_is_named_by_its_partition_is_found_in_the_table(
    kernel: Kernel, tmp_path: Path
) -> None:
    image = gpt(tmp_path / "x.raw", (DATA, "one", EXT4), (DATA, "two", XFS))
    _, two = partitions(reader(read_image(image, what="rootfs")))
    for name in ("PARTLABEL=two", f"PARTUUID={two.uuid.upper()}"):
        found = of(kernel, str(image), cmdline=f"root={name}")
        assert b"partition=2\ntype=xfs\n" in found.images[-1].read_bytes()
        assert f"named={name}\n".encode() in found.images[-1].read_bytes()
    with pytest.raises(ConfigError, match=r"is root=PARTLABEL=three; there are 1 \(PARTUUID="):
        of(kernel, str(image), cmdline="root=PARTLABEL=three")
    with pytest.raises(ConfigError, match="kboot does not look into this disk"):
        of(kernel, "disk:r", "r=pvc:claim", cmdline="root=PARTLABEL=two")


def test_a_kernel_that_cannot_reach_its_root_on_a_disk_is_told(
    kernel: Kernel, tmp_path: Path
) -> None:
    image = gpt(tmp_path / "x.raw", (ROOT, "", EXT4))
    config = tmp_path / "config"
    poor = replace(kernel, config_file=config, find_modules=lambda: None)
    config.write_text("CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=m\n")
    with pytest.raises(
        ConfigError, match=r"as a module, which did not .*\(CONFIG_EXT4_FS\); give its"
    ):
        of(poor, str(image))
    config.write_text("CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=y\n")
    assert of(poor, str(image)).modules == ()
    with pytest.raises(ConfigError, match=r"has no driver for it \(CONFIG_BLK_DEV_NVME\)"):
        of(poor, "disk:r", f"r={image},bus=nvme")
    # Nobody knows what is in a bare image.
    assert of(replace(poor, config_file=None), str(image)).disks


# --------------------------------------------------------------------------------- directories


def test_a_directory_needs_a_shell_and_a_kernel_with_drivers(
    kernel: Kernel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="a directory without bin/sh"):
        of(kernel, str(tmp_path))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to("busybox")
    found = of(kernel, str(tmp_path))
    assert found.shares == (Share(tag="root", path=str(tmp_path), read_only=True),)
    # Debian 13 has virtio_pci built in.
    assert set(found.modules) >= {"9p", "9pnet_virtio", "overlay"}
    config = tmp_path / "config"
    config.write_text("CONFIG_VIRTIO_PCI=y\n# CONFIG_NET_9P_VIRTIO is not set\n")
    poor = replace(kernel, config_file=config, find_modules=lambda: None)
    with pytest.raises(ConfigError, match=r"has no driver for it \(CONFIG_NET_9P_VIRTIO\)"):
        of(poor, str(tmp_path))
    config.write_text("CONFIG_VIRTIO_PCI=y\nCONFIG_NET_9P_VIRTIO=m\n")
    with pytest.raises(ConfigError, match="as a module, which did not come with it"):
        of(poor, str(tmp_path))


def test_shares_are_declared_by_directory_tag_and_access(tmp_path: Path) -> None:
    declared = Config(share=(str(tmp_path), f"{tmp_path}:results", f"{tmp_path}:ro", "/a:b:ro"))
    assert read_shares(declared.share) == (
        Share(tag="share0", path=str(tmp_path)),
        Share(tag="results", path=str(tmp_path)),
        Share(tag="share2", path=str(tmp_path), read_only=True),
        Share(tag="b", path="/a", read_only=True),
    )
    words = qemu_shares.words((Share(tag="b", path="/a,c", read_only=True),))
    assert words[1].startswith("local,id=share0,path=/a,,c,security_model=none,readonly=on")
    assert "QEMU cannot save that" in str(qemu_shares.snapshot_fault(read_shares(declared.share)))
    for wrong in ("/a:b:c", "/a:b/c", f"/a:{'x' * 32}"):
        with pytest.raises(ConfigError, match="is not a directory to share"):
            Config(share=(wrong,))
    assert not read_shares(Config(share=(f"{tmp_path}:t:rw",)).share)[0].read_only
    with pytest.raises(ConfigError, match="':t' names none; write DIR"):
        Config(share=(":t",))
    with pytest.raises(ConfigError, match="share0 is there twice"):
        Config(share=("/a", "/b:share0"))


def test_a_share_that_is_not_there_is_named(kernel: Kernel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: not a directory that can be read"):
        system_for(
            "tiny", kernel, shares=(Share(tag="t", path=str(tmp_path / "none")),), password="x"
        )


# -------------------------------------------------------------------------------------- debian


def test_a_debian_system_is_declared_by_suite_and_packages() -> None:
    assert debian.read_debian("debian").label == "debian:trixie"
    found = debian.read_debian("debian:bookworm+strace,g++", password="p")
    assert (found.label, found.password) == ("debian:bookworm+g++,strace", "p")
    assert not debian.is_debian("debian.img")
    assert not debian.is_debian("debian:../x")
    assert Config(rootfs="debian:sid+gdb").rootfs == "debian:sid+gdb"


def test_an_archive_of_a_system_becomes_an_initramfs(tmp_path: Path) -> None:
    tar = tmp_path / "root.tar"
    with tarfile.open(tar, "w") as archive:
        for name, kind, extra in (
            ("./", tarfile.DIRTYPE, {}),
            ("./dev/", tarfile.DIRTYPE, {"mode": 0o755}),
            ("./dev/sda", tarfile.BLKTYPE, {}),
            ("./etc/", tarfile.DIRTYPE, {"mode": 0o755}),
            ("./etc/shadow", tarfile.REGTYPE, {"mode": 0o640, "gid": 42}),
            ("./etc/link", tarfile.SYMTYPE, {"linkname": "shadow"}),
            ("./etc/hard", tarfile.LNKTYPE, {"linkname": "./etc/shadow"}),
        ):
            member = tarfile.TarInfo(name)
            member.type = kind
            for key, value in extra.items():
                setattr(member, key, value)
            content = b"root:*\n" if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    image = tmp_path / "image.zst"
    debian.pack(tar, image)
    plain = subprocess.run(["zstd", "-dcq", image], check=True, capture_output=True).stdout
    listing = subprocess.run(
        ["cpio", "-tvn", "--quiet"], input=plain, check=True, capture_output=True
    ).stdout.decode()
    lines = [line.split() for line in listing.splitlines()]
    assert [(line[0], line[3], line[-1]) for line in lines] == [
        ("drwxr-xr-x", "0", "dev"),
        ("drwxr-xr-x", "0", "etc"),
        ("-rw-r-----", "42", "etc/shadow"),
        ("lrwxrwxrwx", "0", "shadow"),
        ("-rw-r--r--", "0", "etc/hard"),
        ("crw-------", "0", "dev/console"),
        ("crw-rw-rw-", "0", "dev/null"),
    ]
    assert image.stat().st_size % 4 == 0


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("E: Unable to locate package nope", ConfigError, "trixie has no package nope"),
        (
            "E: The repository 'x trixie Release' does not have a Release file.",
            ConfigError,
            "suite",
        ),
        ("E: unable to find newuidmap", InfraError, "the programs of the package uidmap"),
        ("E: unable to pick chroot mode automatically", InfraError, "chroot mode automatically; "),
    ],
)
def test_what_mmdebstrap_says_is_put_into_words(
    said: str, error: type[Exception], words: str
) -> None:
    found = debian.explained(said, debian.DebianSystem())
    assert isinstance(found, error)
    assert words in str(found)


@pytest.fixture
def architecture_of_another() -> str:
    """One that this host's processor is not."""
    return next(row.name for row in arch.ARCHITECTURES if not row.is_hosts)


@pytest.mark.parametrize(
    ("script", "words"),
    [("exit 1", "its programs do not run here"), (None, "arch-test, .* is missing")],
    ids=["no qemu-user", "no arch-test"],
)
def test_a_debian_that_cannot_be_made_for_another_architecture_says_what_to_install(
    script: str | None,
    words: str,
    architecture_of_another: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "setpriv").symlink_to(process.find_program("setpriv"))
    if script is not None:
        (programs / "arch-test").write_text(f"#!/bin/sh\n{script}\n")
        (programs / "arch-test").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(InfraError, match=words) as caught:
        resolve_rootfs("debian", architecture=architecture_of_another)
    said = str(caught.value)
    assert f"cannot be made for {architecture_of_another} here" in said
    assert "apt-get install arch-test qemu-user-static" in said
    # And so does kboot doctor, for all that it cannot be made for.
    fault = debian.foreign_fault(architecture_of_another)
    assert fault is not None
    assert fault in said


def test_debian_for_this_hosts_own_architecture_takes_no_emulation() -> None:
    assert debian.foreign_fault(arch.host().name) is None


def test_a_debian_system_for_each_architecture_is_kept_apart() -> None:
    systems = [debian.read_debian("debian", architecture=row.name) for row in arch.ARCHITECTURES]
    assert len({debian._key(system) for system in systems}) == len(systems)
    for row, system in zip(arch.ARCHITECTURES, systems, strict=True):
        assert f"--architectures={row.debian}" in debian._command(system)
