"""Kernel modules for the guest: found by name, with what they need, in the order to load them."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from kboot.errors import ConfigError
from kboot.kernel import Kernel, read_kernel
from kboot.process import run
from kboot.rootfs import module_initramfs, modules_there
from kboot.rootfs.modules import load_order
from tests.test_kernel import RELEASE, bzimage, written


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def module(*info: str) -> bytes:
    """An ELF file with a section .modinfo and no code."""
    names = b"\0.modinfo\0.shstrtab\0"
    content = b"".join(text.encode() + b"\0" for text in info)
    at = 64 + len(names)
    sections = [(0, 0, 0), (1, at, len(content)), (10, 64, len(names))]
    table = b"".join(struct.pack("<IIQQQQ24x", n, 1, 0, 0, off, size) for n, off, size in sections)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, at + len(content)),
        *(0, 64, 0, 0, 64, len(sections), 2),
    )
    return header + names + content + table


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An unpacked kernel package: boot/ and lib/modules/."""
    written(tmp_path / f"root/boot/vmlinuz-{RELEASE}", bzimage())
    modules = tmp_path / "root/lib/modules" / RELEASE
    written(modules / "modules.builtin", b"kernel/fs/built-in.ko\n")
    for name, data in {
        "base.ko": module("name=base"),
        "middle.ko": module("depends=base", "name=middle"),
        "top-most.ko": module("depends=middle,built_in,base"),
        "soft.ko": module("softdep=pre: some-hash nowhere post: late", "depends="),
        "hash_a.ko": module("alias=some_hash", "depends=base"),
        "hash_b.ko": module("alias=other", "alias=some-hash"),
        "late.ko": module("softdep=pre: soft"),
        "orphan.ko": module("depends=missing"),
        "broken.ko": b"\x7fELF",
    }.items():
        written(modules / "kernel/drivers" / name, data)
    return modules


def names(kernel: Kernel, wanted: Sequence[str]) -> list[str]:
    return [module.name for module in load_order(kernel, wanted)]


def kernel_of(tree: Path) -> Kernel:
    return read_kernel(tree.parents[2])


def test_each_module_comes_after_what_it_needs(tree: Path) -> None:
    assert names(kernel_of(tree), ["top_most"]) == ["base", "middle", "top_most"]


def test_a_module_comes_once_under_either_spelling(tree: Path) -> None:
    assert names(kernel_of(tree), ["base", "top-most", "top_most"]) == [
        "base",
        "middle",
        "top_most",
    ]


def test_a_module_of_the_kernel_itself_needs_no_loading(tree: Path) -> None:
    assert names(kernel_of(tree), ["built-in"]) == []


def test_soft_dependencies_come_by_alias_if_they_are_there(tree: Path) -> None:
    order = names(kernel_of(tree), ["soft"])
    assert order == ["base", "hash_a", "hash_b", "soft", "late"]


def test_an_update_stands_before_the_original(tree: Path) -> None:
    written(tree / "updates/base.ko", module("name=base"))
    assert load_order(kernel_of(tree), ["base"])[0].path == "updates/base.ko"


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".xz", lzma.compress), (".gz", gzip.compress), (".zst", zstandard.compress)],
)
def test_compressed_modules_are_unpacked(
    tree: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    plain = module("depends=base")
    written(tree / f"kernel/packed.ko{suffix}", pack(plain))
    found = load_order(kernel_of(tree), ["packed"])[-1]
    assert (found.path, found.content) == ("kernel/packed.ko", plain)


def test_a_build_tree_has_its_modules_where_they_were_built(tmp_path: Path) -> None:
    written(tmp_path / "arch/x86/boot/bzImage", bzimage())
    written(tmp_path / "Makefile", b"")
    written(tmp_path / "modules.order", b"drivers/char/one.o\ndrivers/char/two.ko\n")
    for name in ("one", "two"):
        written(tmp_path / f"drivers/char/{name}.ko", module())
    written(tmp_path / "kernel/stale.ko", module())
    kernel = read_kernel(tmp_path)
    assert [m.path for m in load_order(kernel, ["one", "two"])] == [
        "kernel/drivers/char/one.ko",
        "kernel/drivers/char/two.ko",
    ]
    with pytest.raises(ConfigError, match="no module stale"):
        load_order(kernel, ["stale"])


def test_a_file_of_the_users_brings_what_it_needs_from_the_kernel(
    tree: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "my-own.ko"
    mine.write_bytes(module("depends=middle", f"vermagic={RELEASE} SMP"))
    newer = tmp_path / "base.ko"
    newer.write_bytes(module("name=base", f"vermagic={RELEASE} SMP"))
    order = load_order(kernel_of(tree), [str(mine), str(newer), "late"])
    names = [each.name for each in order]
    assert names[:3] == ["base", "middle", "my_own"]
    assert {each.path for each in order} >= {"updates/base.ko", "updates/my_own.ko"}


def test_a_file_for_another_kernel_is_refused(tree: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.ko"
    mine.write_bytes(module("vermagic=5.4.0 SMP"))
    with pytest.raises(ConfigError, match=rf"mine.ko: a module for Linux 5.4.0, .* is {RELEASE}"):
        load_order(kernel_of(tree), [str(mine)])
    with pytest.raises(ConfigError, match=r"nothing.ko: no such file"):
        load_order(kernel_of(tree), [str(tmp_path / "nothing.ko")])


def test_a_file_that_needs_nothing_does_without_the_kernels_modules(tmp_path: Path) -> None:
    image = written(tmp_path / "bare/vmlinuz", bzimage())
    mine = tmp_path / "mine.ko"
    mine.write_bytes(module("depends=", f"vermagic={RELEASE} SMP"))
    assert [each.name for each in load_order(read_kernel(image), [str(mine)])] == ["mine"]
    mine.write_bytes(module("depends=base", f"vermagic={RELEASE} SMP"))
    with pytest.raises(ConfigError, match="no modules came with this kernel, so base cannot"):
        load_order(read_kernel(image), [str(mine)])


def test_where_no_module_is_wanted_the_kernels_are_not_looked_at(tree: Path) -> None:
    def look() -> Path:
        raise AssertionError("modules were looked for")

    kernel = kernel_of(tree)
    assert modules_there(kernel, ["none", "base", "built_in"]) == ["base"]
    assert modules_there(replace(kernel, find_modules=look), []) == []


def test_the_image_lists_its_modules_in_load_order(tree: Path, tmp_path: Path) -> None:
    image = module_initramfs(kernel_of(tree), ["middle"])
    assert module_initramfs(kernel_of(tree), ["middle"]) == image
    run(["cpio", "-id"], timeout_s=10, stdin=image.read_bytes(), cwd=tmp_path)
    listed = (tmp_path / "etc/kboot/modules").read_text().splitlines()
    assert listed == [
        f"/usr/lib/modules/{RELEASE}/kernel/drivers/{name}.ko" for name in ("base", "middle")
    ]
    assert (tmp_path / listed[0][1:]).read_bytes() == module("name=base")


def test_an_unknown_module_names_those_that_are_near(tree: Path) -> None:
    with pytest.raises(ConfigError, match=rf"no module midle in kernel {RELEASE}; .*mean middle"):
        load_order(kernel_of(tree), ["midle"])
    with pytest.raises(ConfigError, match=f"no module xyzzy in kernel {RELEASE}; see {tree}"):
        load_order(kernel_of(tree), ["xyzzy"])


def test_a_missing_dependency_names_who_needs_it(tree: Path) -> None:
    with pytest.raises(ConfigError, match="no module missing in the modules that orphan depends"):
        load_order(kernel_of(tree), ["orphan"])


def test_a_broken_module_is_named(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"broken\.ko: not a kernel module"):
        load_order(kernel_of(tree), ["broken"])


def test_a_kernel_that_came_without_modules_names_the_remedy(tmp_path: Path) -> None:
    kernel = read_kernel(written(tmp_path / "vmlinuz", bzimage()))
    with pytest.raises(ConfigError, match=r"vmlinuz: no modules came with this.*give its \.deb"):
        module_initramfs(kernel, ["virtio_console"])
