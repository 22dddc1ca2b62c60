"""Kernels from files and directories: what they are, and one clear line when they are not."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kboot.errors import ConfigError
from kboot.kernel import Kernel, read_kernel, require_architecture, sha256_of
from kboot.kernel.elf import parse_elf

RELEASE = "6.12.0-test"
VERSION = f"{RELEASE} (me@here) #1 SMP Mon Jan 1 00:00:00 UTC 2024"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kboot" / "kernels"


def bzimage(*, version: str = VERSION, load_flags: int = 1, paragraphs: int = 64) -> bytes:
    """An x86 kernel image with a header as the boot protocol has it, and no code."""
    image = bytearray(2 * 512 + paragraphs * 16)
    image[0x1F1] = 1
    struct.pack_into("<I", image, 0x1F4, paragraphs)
    image[0x1FE:0x206] = b"\x55\xaa\xeb\x6aHdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<H", image, 0x20E, 0x100)
    struct.pack_into("<H", image, 0x236, load_flags)
    image[0x300 : 0x300 + len(version)] = version.encode()
    return bytes(image)


def arm64_image() -> bytes:
    banner = f"Linux version {VERSION}\n".encode()
    return bytes(0x38) + b"ARM\x64" + bytes(5000) + banner + bytes(5000)


def efi_image() -> bytes:
    """An arm64 Image with an EFI stub: a PE header with the sections .text and .data."""
    banner = f"Linux version {VERSION}\n".encode()
    head = b"MZ".ljust(0x38, b"\0") + b"ARM\x64" + struct.pack("<I", 64)
    pe = struct.pack("<4sHH12xHH", b"PE\0\0", 0xAA64, 2, 16, 0) + bytes(16)
    for name, size, offset in ((b".text", 0x1000, 0x400), (b".data", 0x200, 0x1400)):
        pe += struct.pack("<8sIIII16x", name, size, offset, size, offset)
    return ((head + pe).ljust(0x400, b"\0") + banner).ljust(0x1600, b"\0")


def zboot_image(form: str, payload: bytes) -> bytes:
    """An EFI image that unpacks itself, as CONFIG_EFI_ZBOOT makes it, with no code."""
    header = struct.pack("<2s2x4sII8x32s4xI", b"MZ", b"zimg", 128, len(payload), form.encode(), 64)
    return (
        header.ljust(64, b"\0") + (b"PE\0\0" + struct.pack("<H", 0xAA64)).ljust(64, b"\0") + payload
    )


def uki(kernel: bytes) -> bytes:
    """A PE file with the sections .osrel and .linux, as systemd-stub has them."""
    pe = struct.pack("<4sHH12xHH", b"PE\0\0", 0x8664, 2, 16, 0) + bytes(16)
    sections = ((b".osrel", 4, 0x300), (b".linux", len(kernel), 0x400))
    for name, size, offset in sections:
        pe += struct.pack("<8sIIII16x", name, size, 0x1000, size + 512, offset)
    image = (b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x80)).ljust(0x80, b"\0") + pe
    return image.ljust(0x300, b"\0") + b"ID=x".ljust(0x100, b"\0") + kernel + bytes(512)


def android_image(kernel: bytes, *, version: int) -> bytes:
    """A boot image of Android with a header of this version and no ramdisk."""
    page = 4096 if version >= 3 else 2048
    header = struct.pack("<8sI24xII", b"ANDROID!", len(kernel), page, version)
    return header.ljust(page, b"\0") + kernel.ljust(-(-len(kernel) // page) * page, b"\0")


def uimage(kernel: bytes, *, kind: int = 2) -> bytes:
    """U-Boot's legacy image of a kernel (2), a ramdisk (3) or several things (4)."""
    data = struct.pack(">III", len(kernel), 4, 0) + kernel + b"more" if kind == 4 else kernel
    head = struct.pack(">7I4B32s", 0x27051956, 0, 0, len(data), 0, 0, 0, 5, 24, kind, 0, b"name")
    return head + data


def devicetree(nodes: dict[str, dict[str, bytes]], below: str = "") -> bytes:
    """A flattened devicetree of nodes with properties, all of them below one if that is named."""

    def node(name: str, content: bytes) -> bytes:
        padded = name.encode() + bytes(4 - len(name) % 4)
        return struct.pack(">I", 1) + padded + content + struct.pack(">I", 2)

    names, content = b"", b""
    for name, properties in nodes.items():
        inner = b""
        for key, value in properties.items():
            inner += struct.pack(">III", 3, len(value), len(names))
            inner += value + bytes(-len(value) % 4)
            names += key.encode() + b"\0"
        content += node(name, inner)
    structure = node("", node(below, content) if below else content) + struct.pack(">I", 9)
    at_names = 56 + len(structure)
    head = struct.pack(">7I", 0xD00DFEED, at_names + len(names), 56, at_names, 40, 17, 16)
    return head.ljust(56, b"\0") + structure + names


def fit(kernel: bytes, *, image: str = "kernel") -> bytes:
    """A flat image tree with its data in it."""
    properties = {"type": image.encode() + b"\0", "data": kernel}
    return devicetree({"fdt-1": {"type": b"flat_dt\0", "data": b"x"}, "it": properties}, "images")


def external_fit(kernel: bytes) -> bytes:
    """A flat image tree with its data behind it, as ``mkimage -E`` makes it."""
    numbers = {"data-offset": struct.pack(">I", 8), "data-size": struct.pack(">I", len(kernel))}
    tree = devicetree({"it": {"type": b"kernel\0", **numbers}}, "images")
    return tree + bytes(-len(tree) % 4) + bytes(8) + kernel


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def complaint(path: Path) -> str:
    """What `read_kernel` says about a bad file: one line that names it."""
    with pytest.raises(ConfigError) as caught:
        read_kernel(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def read_or_complain(path: Path, data: bytes) -> Kernel | None:
    path.write_bytes(data)
    try:
        return read_kernel(path)
    except ConfigError:
        return None


any_length = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200
)


def test_a_vmlinuz_knows_its_release_and_architecture(tmp_path: Path) -> None:
    path = written(tmp_path / "vmlinuz", bzimage())
    kernel = read_kernel(path)
    assert (kernel.release, kernel.version, kernel.architecture) == (RELEASE, VERSION, "x86_64")
    assert (kernel.image, kernel.source) == (path, path)
    assert kernel.sha256 == sha256_of(path)
    assert kernel.config() is None
    assert kernel.modules is None
    assert kernel.vmlinux is None


def test_a_signature_behind_the_image_does_no_harm(tmp_path: Path) -> None:
    assert read_kernel(written(tmp_path / "vmlinuz", bzimage() + b"signed")).release == RELEASE


def test_an_image_without_the_64_bit_flag_is_for_32_bit_machines(tmp_path: Path) -> None:
    kernel = read_kernel(written(tmp_path / "vmlinuz", bzimage(load_flags=0)))
    assert kernel.architecture == "i686"
    with pytest.raises(ConfigError, match=r"vmlinuz: a kernel for i686, but the machine is x86_64"):
        require_architecture(kernel, "x86_64")


def test_the_right_architecture_passes(tmp_path: Path) -> None:
    require_architecture(read_kernel(written(tmp_path / "vmlinuz", bzimage())), "x86_64")


def test_an_arm64_image_with_an_efi_stub_is_whole_where_its_last_section_is(
    tmp_path: Path,
) -> None:
    kernel = read_kernel(written(tmp_path / "Image", efi_image()))
    assert (kernel.architecture, kernel.has_efi_stub) == ("aarch64", True)


def test_an_arm64_image_is_recognised(tmp_path: Path) -> None:
    kernel = read_kernel(written(tmp_path / "Image", arm64_image()))
    assert (kernel.release, kernel.architecture) == (RELEASE, "aarch64")


def test_of_two_banners_the_one_with_the_builds_number_is_printed(tmp_path: Path) -> None:
    template = f"Linux version {VERSION}\n".replace("#1 ", "# ").encode()
    image = arm64_image().replace(b"Linux version", template + bytes(2 << 20) + b"Linux version")
    assert read_kernel(written(tmp_path / "Image", image)).version == VERSION
    assert read_kernel(written(tmp_path / "only", arm64_image().replace(b"#1 ", b"# "))).release


def test_a_banner_across_the_border_of_two_reads_is_found(tmp_path: Path) -> None:
    banner = f"Linux version {VERSION}\n".encode()
    image = bytes(0x38) + b"ARM\x64" + bytes((1 << 20) + 1024 - 60 - 20) + banner
    assert read_kernel(written(tmp_path / "Image", image)).version == VERSION


def test_a_gzipped_image_is_unpacked_for_the_firmware(tmp_path: Path, own_cache: Path) -> None:
    path = written(tmp_path / "Image.gz", gzip.compress(arm64_image()))
    kernel = read_kernel(path)
    assert (kernel.release, kernel.architecture, kernel.source) == (RELEASE, "aarch64", path)
    assert kernel.image.is_relative_to(own_cache)
    assert kernel.image.read_bytes() == arm64_image()
    assert kernel.sha256 == sha256_of(kernel.image)


@pytest.mark.parametrize(
    ("data", "image"),
    [
        (lzma.compress(arm64_image()), arm64_image()),
        (zstandard.compress(arm64_image()), arm64_image()),
        (lzma.compress(arm64_image(), lzma.FORMAT_ALONE), arm64_image()),
        (gzip.compress(bzimage()), bzimage()),
        (uki(bzimage()), bzimage()),
        (android_image(bzimage(), version=0), bzimage()),
        (android_image(gzip.compress(arm64_image()), version=2), arm64_image()),
        (android_image(arm64_image(), version=4), arm64_image()),
        (uimage(gzip.compress(arm64_image())), arm64_image()),
        (uimage(bzimage(), kind=4), bzimage()),
        (fit(gzip.compress(arm64_image())), arm64_image()),
        (external_fit(arm64_image()), arm64_image()),
    ],
    ids=[
        *("xz", "zstd", "lzma", "gzip", "UKI", "Android-0", "Android-2", "Android-4"),
        *("uImage", "uImage-multi", "FIT", "FIT-external"),
    ],
)
def test_a_kernel_in_something_else_is_unpacked(
    data: bytes, image: bytes, tmp_path: Path, own_cache: Path
) -> None:
    path = written(tmp_path / "file", data)
    kernel = read_kernel(path)
    assert (kernel.release, kernel.source) == (RELEASE, path)
    assert kernel.image.read_bytes() == image
    assert [*own_cache.glob("*/*/*")] == [kernel.image]


@any_length
@given(at=st.integers(0, 200), value=st.binary(min_size=1, max_size=8), which=st.integers(0, 3))
def test_a_broken_container_gives_a_kernel_or_a_complaint(
    tmp_path: Path, at: int, value: bytes, which: int
) -> None:
    whole = (uki(bzimage()), uimage(bzimage(), kind=4), fit(bzimage()), external_fit(bzimage()))
    image = bytearray(whole[which])
    image[at : at + len(value)] = value
    read_or_complain(tmp_path / "file", bytes(image))


@pytest.mark.parametrize(
    ("form", "payload"),
    [
        ("gzip", gzip.compress(arm64_image())),
        ("xzkern", lzma.compress(arm64_image())),
        ("zstd", zstandard.compress(arm64_image())),
    ],
)
def test_an_efi_zboot_image_is_recognised(tmp_path: Path, form: str, payload: bytes) -> None:
    path = written(tmp_path / "vmlinuz.efi", zboot_image(form, payload))
    kernel = read_kernel(path)
    assert (kernel.release, kernel.architecture, kernel.image) == (RELEASE, "aarch64", path)


def test_an_efi_zboot_image_cut_short_is_truncated(tmp_path: Path) -> None:
    image = zboot_image("gzip", gzip.compress(arm64_image()))
    assert "truncated" in complaint(written(tmp_path / "vmlinuz.efi", image[:-10]))


def test_a_build_tree_brings_configuration_and_symbols(tmp_path: Path) -> None:
    image = written(tmp_path / "arch/x86/boot/bzImage", bzimage())
    written(tmp_path / "Makefile", b"")
    written(tmp_path / ".config", b"CONFIG_64BIT=y\n")
    written(tmp_path / "modules.order", b"drivers/char/virtio_console.o\n")
    vmlinux = written(tmp_path / "vmlinux", b"\x7fELF")
    (tmp_path / "arch/x86_64/boot").mkdir(parents=True)
    (tmp_path / "arch/x86_64/boot/bzImage").symlink_to(image)
    for source in (tmp_path, image):
        kernel = read_kernel(source)
        assert kernel.image.resolve() == image
        assert kernel.source == source
        assert kernel.config() == "CONFIG_64BIT=y\n"
        assert kernel.vmlinux == vmlinux
        assert kernel.modules == tmp_path


def test_a_build_tree_needs_no_more_than_its_image(tmp_path: Path) -> None:
    image = written(tmp_path / "arch/x86/boot/bzImage", bzimage())
    kernel = read_kernel(tmp_path)
    assert (kernel.image, kernel.config(), kernel.release) == (image, None, RELEASE)


def test_a_directory_like_the_root_brings_configuration_and_modules(tmp_path: Path) -> None:
    image = written(tmp_path / f"boot/vmlinuz-{RELEASE}", bzimage())
    written(tmp_path / f"boot/config-{RELEASE}", b"CONFIG_64BIT=y\n")
    modules = tmp_path / "usr/lib/modules" / RELEASE
    written(modules / "modules.order", b"")
    (tmp_path / "boot/vmlinuz").symlink_to(image.name)
    for source in (tmp_path, tmp_path / "boot", image):
        kernel = read_kernel(source)
        assert (kernel.config(), kernel.modules) == ("CONFIG_64BIT=y\n", modules)


def test_an_image_beside_its_modules_brings_both(tmp_path: Path) -> None:
    modules = tmp_path / "usr/lib/modules" / RELEASE
    image = written(modules / "vmlinuz", bzimage())
    written(modules / "config", b"CONFIG_64BIT=y\n")
    written(modules / "kernel/one.ko", b"")
    for source in (tmp_path, modules, image):
        kernel = read_kernel(source)
        assert (kernel.config(), kernel.modules) == ("CONFIG_64BIT=y\n", modules)


def test_a_directory_with_two_kernels_names_both(tmp_path: Path) -> None:
    written(tmp_path / "vmlinuz-1", bzimage())
    written(tmp_path / "vmlinuz-2", bzimage())
    assert re.search(r"more than one kernel.*vmlinuz-1, .*vmlinuz-2", complaint(tmp_path))


def test_a_directory_without_a_kernel_says_what_it_lacks(tmp_path: Path) -> None:
    assert "no vmlinuz*" in complaint(tmp_path)


def test_a_build_tree_that_was_not_built_names_the_command(tmp_path: Path) -> None:
    written(tmp_path / "Makefile", b"")
    (tmp_path / "arch/x86/boot").mkdir(parents=True)
    assert f"make -C {tmp_path}" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (bytes(600), "zeros"),
        (b"#!/bin/sh\n", "a script"),
        (b"hello\n", "text"),
        (b"\xc3\x28 and so on", "unknown binary data"),
        (b"070701" + b"0" * 200, "initramfs.*--kboot-rootfs"),
        (gzip.compress(b"070701" + b"0" * 2000), "gzip; in it, an initramfs.*--kboot-rootfs"),
        (gzip.compress(b"hello"), "gzip; in it, text"),
        (lzma.compress(b"hello"), "xz; in it, text"),
        (b"\x02\x21\x4c\x18" + bytes(100), r"lz4-compressed.*\(lz4 -d FILE\)"),
        (b"\x04\x22\x4d\x18" + bytes(100), r"lz4-compressed.*\(lz4 -d FILE\)"),
        (b"\x89LZO\0\r\n\x1a\n" + bytes(100), r"lzo-compressed.*\(lzop -d FILE\)"),
        (b"BZh91AY&SY" + bytes(100), r"bzip2-compressed.*\(bunzip2 -k FILE\)"),
        (b"ANDROID!" + bytes(5000), "an Android boot image without a kernel"),
        (b"VNDRBOOT" + bytes(100), "an Android vendor boot image"),
        (devicetree({"chosen": {}}), "a devicetree"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        (bytes(0x1FE) + b"\x55\xaa" + bytes(512), "a disk image"),
        (uki(b"hello"), "a unified kernel image .UKI.; in it, text"),
        (uimage(b"hello", kind=3), "uImage.*not of a kernel"),
        (fit(gzip.compress(arm64_image()))[:-300], "truncated"),
        (fit(arm64_image(), image="ramdisk"), "FIT. without a kernel"),
        (android_image(bzimage(), version=2)[:2500], "truncated: an Android boot image"),
        (android_image(b"\x02\x21\x4c\x18" + bytes(99), version=2), "lz4-compressed"),
        (b"\xed\xab\xee\xdb" + bytes(100), "an RPM package that is corrupt or cut off"),
        (b"MZ" + bytes(100), "an EFI program"),
        (bzimage(version="iPXE 1.21.1"), "calls itself 'iPXE 1.21.1'"),
        (bzimage(version="6.1/../../x"), "calls itself '6.1/"),
        (bzimage()[:-1], "truncated: 2047 bytes of 2048"),
        (bzimage()[:0x220], "truncated: 544 bytes"),
        (gzip.compress(arm64_image())[:-4], "truncated"),
        (arm64_image()[:3000], 'no "Linux version" in it'),
        (efi_image()[:-1], r"truncated: \d+ bytes of \d+; copy it again"),
        (
            bytes(0x24) + b"\x18\x28\x6f\x01".ljust(1000, b"\0"),
            "a kernel for 32-bit arm: kboot has no machine for 32-bit arm; it has: aarch64, ",
        ),
    ],
)
def test_what_is_not_a_kernel_is_told_in_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    assert re.search(words, complaint(written(tmp_path / "file", data)))


def test_a_vmlinux_is_no_boot_image(tmp_path: Path) -> None:
    header = b"\x7fELF\x02\x01".ljust(18, b"\0") + struct.pack("<H", 62) + bytes(100)
    message = complaint(written(tmp_path / "vmlinux", header))
    assert "ELF for x86_64" in message
    assert "boot what is made of it: arch/*/boot/bzImage or Image" in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such file" in complaint(tmp_path / "vmlinuz")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in complaint(tmp_path / "pipe")


def test_a_file_without_permission_names_the_remedy(tmp_path: Path) -> None:
    path = written(tmp_path / "vmlinuz", bzimage())
    path.chmod(0)
    # Root may read everything, so somebody else has to try.
    program = (
        "import os, pathlib, sys\n"
        "from kboot.kernel import read_kernel\n"
        "from kboot.errors import ConfigError\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "os.chdir(path.parent)\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: read_kernel(pathlib.Path(path.name))\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run(
        [Path(sys.executable), "-c", program, path], check=True, capture_output=True, text=True
    )
    assert done.stdout == "vmlinuz: permission denied; make it readable: chmod a+r vmlinuz\n"


@any_length
@given(data=st.binary(max_size=2000))
@example(data=b"MZ\0\0zimg")
@example(data=b"\x1f\x8b")
@example(data=bytes(0x38) + b"ARM\x64")
def test_garbage_is_never_a_kernel(tmp_path: Path, data: bytes) -> None:
    assert read_or_complain(tmp_path / "file", data) is None


@any_length
@given(cut=st.integers(0, 2047))
def test_part_of_a_kernel_is_never_a_kernel(tmp_path: Path, cut: int) -> None:
    assert read_or_complain(tmp_path / "file", bzimage()[:cut]) is None


@any_length
@given(at=st.integers(0, 0x24F), value=st.binary(min_size=1, max_size=8))
def test_a_broken_header_gives_a_kernel_or_a_complaint(
    tmp_path: Path, at: int, value: bytes
) -> None:
    image = bytearray(bzimage())
    image[at : at + len(value)] = value
    read_or_complain(tmp_path / "file", bytes(image))


@any_length
@given(at=st.integers(0, 200), value=st.binary(min_size=1, max_size=8))
def test_a_broken_zboot_image_gives_a_kernel_or_a_complaint(
    tmp_path: Path, at: int, value: bytes
) -> None:
    image = bytearray(zboot_image("zstd", zstandard.compress(arm64_image())))
    image[at : at + len(value)] = value
    read_or_complain(tmp_path / "file", bytes(image))


@given(garbage=st.binary(max_size=300), at=st.integers(6, 70))
def test_a_broken_elf_file_has_an_answer(garbage: bytes, at: int) -> None:
    data = (b"\x7fELF\x02\x01".ljust(at, b"\1") + garbage)[:400]
    elf = parse_elf(data)
    if elf is not None:
        assert elf.is_static in (True, False)
        assert elf.section(".modinfo") in (None, elf.section(".modinfo"))


def test_a_path_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a path: embedded null byte"):
        read_kernel(Path("vm\0linuz"))
