"""From what people have - a file, a package, a directory - to a `Kernel`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from kboot.artifacts.cache import sha256_of
from kboot.artifacts.download import download, is_url
from kboot.artifacts.image import ImageFacts, read_image
from kboot.artifacts.kernel import Kernel
from kboot.artifacts.package import AR_MAGIC, unpack_image, unpack_modules
from kboot.artifacts.wrapping import bare_image
from kboot.errors import ConfigError

#: Below ``arch/*/boot`` of a build tree, the first one there is counts.
_BUILT_IMAGES = (
    "bzImage",
    "Image",
    "vmlinuz.efi",
    *(f"Image.{suffix}" for suffix in ("gz", "xz", "zst", "lzma", "lz4", "lzo", "bz2")),
)

#: Where installed kernels lie, below the root or in a directory of boot files.
_INSTALLED_IMAGES = (
    "vmlinuz*",
    "boot/vmlinuz*",
    "lib/modules/*/vmlinuz",
    "usr/lib/modules/*/vmlinuz",
)


def local_path(source: str) -> Path:
    """Where the kernel is that a user means: a path, or a URL, which is downloaded.

    For the errors see `kboot.artifacts.download.download`.
    """
    return download(source) if is_url(source) else Path(source)


def read_kernel(path: Path) -> Kernel:
    """The kernel in `path`: an image file, a kernel ``.deb``, a build tree, or a directory.

    An image is ``vmlinuz``, ``bzImage``, ``Image`` or an EFI zboot file, also one that is
    compressed, or in a unified kernel image, an Android boot image or one of U-Boot's. A directory
    has exactly one ``vmlinuz*`` in it, its ``boot`` or its ``lib/modules``. Packages that Debian or
    Ubuntu split are put together if they lie side by side. Everything else is a `ConfigError`: one
    line with the remedy.
    """
    try:
        if path.is_dir():
            return _from_directory(path)
        if path.exists() and not path.is_file():  # a pipe would make us wait for ever
            raise ConfigError(f"{path}: not a regular file; give the kernel's file")
        with path.open("rb") as file:
            is_package = file.read(len(AR_MAGIC)) == AR_MAGIC
        return _from_package(path) if is_package else _from_image(path, source=path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; check the path of the kernel") from error
    except PermissionError as error:
        raise ConfigError(
            f"{error.filename or path}: permission denied; make it readable: "
            f"chmod a+r {error.filename or path}"
        ) from error
    except ValueError as error:  # a zero byte
        raise ConfigError(f"{str(path)!r}: not a path: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def _from_image(path: Path, *, source: Path) -> Kernel:
    image = bare_image(path)
    facts = read_image(image, label=str(path))
    tree = _build_tree_of(path)
    if tree is not None:
        return _kernel(
            image,
            facts,
            source=source,
            config=tree / ".config",
            vmlinux=tree / "vmlinux",
            find_modules=lambda: tree if _has_modules(tree) else None,
        )
    modules = _installed_modules(path, facts.release)
    # As in /boot, or as beside the modules.
    configs = [path.with_name(f"config-{facts.release}"), path.with_name("config")]
    return _kernel(
        image,
        facts,
        source=source,
        config=next((config for config in configs if config.is_file()), configs[0]),
        vmlinux=path.with_name(f"vmlinux-{facts.release}"),
        find_modules=lambda: modules,
    )


def _installed_modules(image: Path, release: str) -> Path | None:
    """The modules that lie around `image`: with it, or in a lib/modules/ beside its boot/."""
    place = image.resolve().parent
    candidates = [place.parent / lib / "modules" / release for lib in ("lib", "usr/lib")]
    if place.name == release:
        candidates.insert(0, place)
    return next((modules for modules in candidates if _has_modules(modules)), None)


def _kernel(
    image: Path,
    facts: ImageFacts,
    *,
    source: Path,
    config: Path,
    vmlinux: Path,
    find_modules: Callable[[], Path | None],
) -> Kernel:
    return Kernel(
        image=image,
        release=facts.release,
        version=facts.version,
        architecture=facts.architecture,
        source=source,
        sha256=sha256_of(image),
        config_file=config if config.is_file() else None,
        vmlinux=vmlinux if vmlinux.is_file() else None,
        find_modules=find_modules,
    )


def _from_package(path: Path) -> Kernel:
    boot = unpack_image(path)
    try:
        # arm64 packages have it compressed.
        image = bare_image(_only([*boot.glob("vmlinuz-*")], path))
        facts = read_image(image)
    except ConfigError as error:
        raise ConfigError(f"{path}: the kernel in it is broken: {error}") from error
    return _kernel(
        image,
        facts,
        source=path,
        config=boot / f"config-{facts.release}",
        vmlinux=boot / f"vmlinux-{facts.release}",
        find_modules=functools.partial(unpack_modules, path, facts.release),
    )


def _from_directory(path: Path) -> Kernel:
    if not os.access(path, os.R_OK | os.X_OK):
        raise PermissionError(None, "permission denied", str(path))
    built = _distinct(image for boot in path.glob("arch/*/boot") for image in _built_in(boot))
    if built:
        return _from_image(_only(built, path), source=path)
    if is_build_tree(path):
        raise ConfigError(f"{path}: a build tree with no kernel in it; build it: make -C {path}")
    found = _distinct(file for pattern in _INSTALLED_IMAGES for file in path.glob(pattern))
    if not found:
        raise ConfigError(
            f"{path}: a directory without a kernel (no vmlinuz*, no arch/*/boot/bzImage); "
            "give the kernel's file, or build it first"
        )
    return _from_image(_only(found, path), source=path)


def _built_in(boot: Path) -> list[Path]:
    return [image for name in _BUILT_IMAGES if (image := boot / name).is_file()][:1]


def _distinct(files: Iterable[Path]) -> list[Path]:
    """`files` without those that are links to others: /boot/vmlinuz, arch/x86_64/boot/bzImage."""
    return sorted({file.resolve() for file in files if file.is_file()})


def _only(candidates: list[Path], source: Path) -> Path:
    if len(candidates) > 1:
        names = ", ".join(sorted(str(candidate) for candidate in candidates))
        raise ConfigError(f"{source}: more than one kernel; give the one you mean: {names}")
    return candidates[0]


def is_build_tree(path: Path) -> bool:
    """Whether `path` is a Linux build tree: the place where ``make`` ran."""
    return (path / "arch").is_dir() and (path / "Makefile").is_file()


def _build_tree_of(image: Path) -> Path | None:
    """The tree that `image` was built in: it is ``arch/<architecture>/boot/<image>`` there."""
    parents = image.resolve().parents
    inside = len(parents) > 3 and (parents[0].name, parents[2].name) == ("boot", "arch")
    return parents[3] if inside else None


def _has_modules(directory: Path) -> bool:
    return (directory / "modules.order").is_file() or (directory / "kernel").is_dir()
