"""A kernel's modules as one initramfs that ``modprobe`` and udev find their way in.

As ``make modules_install INSTALL_MOD_STRIP=1`` does it: all that ``modules.order`` names, without
debug information, with the indexes of ``depmod``. Those of a build tree are read where they were
built, and the image is made anew once any of them has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kboot import arch, process
from kboot.cache import keep_directory
from kboot.errors import ConfigError
from kboot.kernel import Kernel
from kboot.log import step
from kboot.rootfs.cpio import archive, regular, with_parents, write_zstd
from kboot.rootfs.modules import ModuleTree, load_order
from kboot.state import cache_directory

ALL, NONE = "all", "none"

_IMAGE = "modules.cpio"
_ABOUT = "about.json"
#: What depmod reads beside the modules.
_LISTS = ("modules.order", "modules.builtin", "modules.builtin.modinfo")
#: For one start of strip.
_FILES_AT_ONCE = 500
_LIMIT_S = 600.0
#: Another number for another content.
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModulesImage:
    """An initramfs with modules."""

    path: Path
    #: What it takes of the guest's memory.
    unpacked_bytes: int


#: By the directory of the modules and what was wanted, where nobody changes them.
_known: dict[tuple[Path, str], ModulesImage] = {}


def modules_image(kernel: Kernel, wanted: str) -> ModulesImage | None:
    """The image for the setting `modules`: ``all``, ``none``, or names with commas between them.

    Of names, the image has what they need as well. None for ``none``. `ConfigError` for an unknown
    module, and for a kernel that came without modules; `ProcessError` without depmod or strip.
    """
    if wanted == NONE:
        return None
    directory = kernel.modules
    if directory is None:
        raise ConfigError(
            f"{kernel.source}: no modules came with this kernel, so modules = {wanted} cannot be; "
            "give its package, its build tree, or a directory with boot/ and lib/modules/"
        )
    is_kept = cache_directory("kernels") in directory.parents
    found = _known.get((directory, wanted)) if is_kept else None
    if found is None or not found.path.is_file():
        found = _image(kernel, directory, wanted)
        if is_kept:
            _known[directory, wanted] = found
    return found


def require_memory(image: ModulesImage, memory_mib: int) -> None:
    """`ConfigError` if a guest with so much memory could not unpack this image."""
    # The file system that it is unpacked into takes half of the memory at most.
    needed_mib = -(-2 * image.unpacked_bytes >> 20) + (image.path.stat().st_size >> 20)
    if needed_mib > memory_mib:
        raise ConfigError(
            f"the modules take {image.unpacked_bytes >> 20} MiB of a root file system in memory, "
            f"and the machine has {memory_mib} MiB: --memory {-(-needed_mib // 512) * 512}M, or "
            "--modules NAME,... for some of them"
        )


def _image(kernel: Kernel, directory: Path, wanted: str) -> ModulesImage:
    tree = ModuleTree(directory)
    files = _chosen(kernel, tree, wanted)
    target = cache_directory("modules") / _key(kernel, tree, files)

    def fill(place: Path) -> None:
        with step(f"make an image of {len(files)} kernel modules"):
            _make(kernel, tree, files, place)

    kept = keep_directory(target, fill)
    # When it was used last is what `kboot rootfs prune` goes by.
    os.utime(kept / _ABOUT)
    about = json.loads((kept / _ABOUT).read_text(encoding="utf-8"))
    return ModulesImage(path=kept / _IMAGE, unpacked_bytes=about["unpacked_bytes"])


def _chosen(kernel: Kernel, tree: ModuleTree, wanted: str) -> list[Path]:
    """The modules' files, below the tree's directory."""
    if wanted == ALL:
        return tree.files
    names = [name for name in wanted.split(",") if name]
    return [tree.file_of(module.name) for module in load_order(kernel, names)]


def _key(kernel: Kernel, tree: ModuleTree, files: Sequence[Path]) -> str:
    """Another one for another state of any of the files."""
    there = [tree.directory / name for name in _LISTS if (tree.directory / name).is_file()]
    parts: list[object] = [_FORMAT, kernel.release, kernel.architecture]
    parts += [_stamp(path) for path in [*there, *(tree.directory / file for file in files)]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}, though modules.order names it; build the modules: make "
            "modules"
        ) from error
    return str(path), found.st_size, found.st_mtime_ns


def _make(kernel: Kernel, tree: ModuleTree, files: Sequence[Path], place: Path) -> None:
    root = place / "root"
    target = root / "lib" / "modules" / kernel.release
    copies = []
    for file in files:
        copy = target / tree.installed_path(file)
        copy.parent.mkdir(parents=True, exist_ok=True)
        _copy(tree.directory / file, copy, link=tree.is_installed)
        copies.append(copy)
    for name in _LISTS:
        if (tree.directory / name).is_file():
            shutil.copyfile(tree.directory / name, target / name)
    if not tree.is_installed:
        _strip(kernel, copies)
    process.run(
        [process.find_program("depmod"), "-b", str(root), kernel.release], timeout_s=_LIMIT_S
    )
    size = _pack(kernel, root, place / _IMAGE)
    shutil.rmtree(root)
    (place / _ABOUT).write_text(json.dumps({"unpacked_bytes": size}), encoding="utf-8")


def _copy(source: Path, target: Path, *, link: bool) -> None:
    """A copy; where nothing will be written to it, a link is as good."""
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _strip(kernel: Kernel, files: Sequence[Path]) -> None:
    row = arch.of(kernel.architecture)
    program = process.find_program("strip" if row.is_hosts else f"{row.name}-linux-gnu-strip")
    for at in range(0, len(files), _FILES_AT_ONCE):
        some = files[at : at + _FILES_AT_ONCE]
        process.run([program, "--strip-debug", *map(str, some)], timeout_s=_LIMIT_S)


def _pack(kernel: Kernel, root: Path, target: Path) -> int:
    """Write a tree as an initramfs; the bytes that its files have."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    entries = [regular(f"usr/{path.relative_to(root)}", path) for path in files]
    content = archive(with_parents(entries))
    config = (kernel.config() or "").splitlines()
    if config and "CONFIG_RD_ZSTD=y" not in config:
        target.write_bytes(b"".join(content))
    else:
        # Few megabytes more than with a higher level, in a tenth of the time.
        write_zstd(target, content, level=3)
    return size
