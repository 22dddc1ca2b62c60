"""All of a kernel's modules in an image: stripped, with indexes, made anew when one changes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import zstandard

from kboot.errors import ConfigError
from kboot.kernel import Kernel, read_kernel
from kboot.kernel.elf import parse_elf
from kboot.rootfs.modules_image import ModulesImage, modules_image, require_memory
from tests.test_kernel import RELEASE, bzimage, written


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


SOURCE = """\
__attribute__((section(".modinfo"), used)) static const char info[] =
    "name=%(name)s\\0depends=%(depends)s\\0alias=%(name)s-alias\\0vermagic=%(release)s SMP";
int init_module(void) { return 0; }
"""
#: What depmod sees: one gives a symbol to others, and another one needs it.
GIVES = (
    'int lower_value = 1; __attribute__((section("__ksymtab_strings"), used)) static const char\n'
)
GIVES += 'symbols[] = "lower_value";\n'
NEEDS = "extern int lower_value; int read_it(void) { return lower_value; }\n"


def build(tree: Path, name: str, depends: str = "", extra: str = "") -> Path:
    """What a compiler makes of a module, debug information included."""
    text = SOURCE % {"name": name, "depends": depends, "release": RELEASE}
    source = written(tree / f"drivers/{name}.c", (text + extra).encode())
    target = source.with_suffix(".ko")
    subprocess.run(["gcc", "-g", "-c", "-o", target, source], check=True)
    return target


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A build tree, as far as kboot looks at it."""
    tree = tmp_path / "linux"
    written(tree / "arch/x86/boot/bzImage", bzimage())
    written(tree / "Makefile", b"all:\n")
    written(tree / ".config", b"CONFIG_RD_ZSTD=y\n")
    order = "".join(f"drivers/{name}.o\n" for name in ("lower", "upper", "other"))
    written(tree / "modules.order", order.encode())
    written(tree / "modules.builtin", b"kernel/fs/built_in.ko\n")
    build(tree, "lower", extra=GIVES)
    build(tree, "upper", "lower", extra=NEEDS)
    build(tree, "other")
    return tree


def image(kernel: Kernel, wanted: str = "all") -> ModulesImage:
    found = modules_image(kernel, wanted)
    assert found
    return found


def unpacked(image: ModulesImage, place: Path) -> Path:
    """The directory of its modules."""
    place.mkdir()
    content = zstandard.ZstdDecompressor().decompressobj().decompress(image.path.read_bytes())
    subprocess.run(["cpio", "-i", "--quiet", "-d"], input=content, cwd=place, check=True)
    return place / "usr/lib/modules" / RELEASE


def test_a_build_tree_gives_all_that_modules_order_names_stripped(
    tree: Path, tmp_path: Path
) -> None:
    modules = unpacked(image(read_kernel(tree)), tmp_path / "out")
    files = sorted(str(path.relative_to(modules)) for path in modules.rglob("*.ko"))
    assert files == [f"kernel/drivers/{name}.ko" for name in ("lower", "other", "upper")]
    dependencies = (modules / "modules.dep").read_text()
    assert "kernel/drivers/upper.ko: kernel/drivers/lower.ko\n" in dependencies
    assert "alias lower-alias lower" in (modules / "modules.alias").read_text()
    assert (modules / "modules.dep.bin").is_file()
    built = parse_elf((tree / "drivers/lower.ko").read_bytes())
    stripped = parse_elf((modules / "kernel/drivers/lower.ko").read_bytes())
    assert built
    assert stripped
    assert built.section(".debug_info") is not None
    assert stripped.section(".debug_info") is None
    assert stripped.section(".modinfo") == built.section(".modinfo")


def test_a_list_brings_what_it_needs_and_no_more(tree: Path, tmp_path: Path) -> None:
    modules = unpacked(image(read_kernel(tree), "upper"), tmp_path / "out")
    assert {path.name for path in modules.rglob("*.ko")} == {"lower.ko", "upper.ko"}


def test_it_is_made_anew_when_a_module_has_changed_and_only_then(tree: Path) -> None:
    first = image(read_kernel(tree))
    made = first.path.stat()
    again = image(read_kernel(tree))
    assert (again, again.path.stat().st_mtime_ns) == (first, made.st_mtime_ns)
    build(tree, "other", extra="int more = 1;\n")
    changed = image(read_kernel(tree))
    assert changed.path != first.path


def test_what_the_kernel_cannot_unpack_is_not_compressed(tree: Path) -> None:
    written(tree / ".config", b"CONFIG_RD_GZIP=y\n")
    assert image(read_kernel(tree)).path.read_bytes().startswith(b"070701")


def test_none_is_none_and_mistakes_are_one_line(tree: Path, tmp_path: Path) -> None:
    kernel = read_kernel(tree)
    assert modules_image(kernel, "none") is None
    with pytest.raises(ConfigError, match=r"no module othr in kernel .*; did you mean other\?"):
        modules_image(kernel, "othr")
    (tree / "drivers/other.ko").unlink()
    with pytest.raises(ConfigError, match=r"other.ko: No such file .*, though modules.order names"):
        modules_image(kernel, "all")
    bare = read_kernel(written(tmp_path / "vmlinuz", bzimage()))
    with pytest.raises(ConfigError, match=r"no modules came with this kernel, so modules = all"):
        modules_image(bare, "all")


def test_a_machine_that_is_too_small_is_told_how_much_it_takes(tmp_path: Path) -> None:
    path = written(tmp_path / "modules.cpio", b"x")
    large = ModulesImage(path=path, unpacked_bytes=390 << 20)
    require_memory(large, 1024)
    with pytest.raises(ConfigError, match=r"take 390 MiB .* has 512 MiB: --memory 1024M, or --mod"):
        require_memory(large, 512)
