"""The kernel under test, read from what people have: a file, a package, a directory."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kboot.cache import sha256_of
from kboot.errors import ConfigError
from kboot.kernel.containers import bare_image
from kboot.kernel.download import download, is_url
from kboot.kernel.image import ImageFacts, read_image
from kboot.kernel.package import is_package, unpack_image, unpack_modules


def _no_modules() -> Path | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One kernel: the image that boots, what it is, and where the rest of it is."""

    #: The file that the firmware or iPXE boots.
    image: Path
    #: What ``uname -r`` prints: ``6.1.0-56-amd64``.
    release: str
    #: The whole version, from the release on: ``6.1.0-56-amd64 (who@where) #1 SMP ...``.
    version: str
    #: What ``uname -m`` prints: ``x86_64``, ``aarch64``.
    architecture: str
    #: What the user gave: a file, a package, a directory.
    source: Path
    #: Of `image`, in hexadecimal.
    sha256: str
    #: Its configuration (``.config``), if that came with it.
    config_file: Path | None = None
    #: The ELF file with its symbols, if that came with it.
    vmlinux: Path | None = None
    #: Its ``System.map``, if that came with it.
    system_map: Path | None = None
    #: How to get at `modules`.
    find_modules: Callable[[], Path | None] = field(default=_no_modules, repr=False, compare=False)
    #: Whether UEFI can start it.
    has_efi_stub: bool = True
    #: Whether a boot loader on the machine's disk has it: what it is, is known once it runs.
    on_disk: bool = False

    def config(self) -> str | None:
        """The text of its configuration, or None if that did not come with it."""
        if self.config_file is None:
            return None
        try:
            return self.config_file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"{self.config_file}: cannot be read: {error.strerror}") from error

    def __str__(self) -> str:
        """For people: ``Linux 6.1.0-56-amd64 (x86_64) from vmlinuz``."""
        if self.on_disk and not self.release:
            return f"the kernel on the disk {self.source} ({self.architecture})"
        return f"Linux {self.release} ({self.architecture}) from {self.source}"

    @property
    def symbols(self) -> Path | None:
        """Where its symbols are, best with file and line: vmlinux, else System.map, else None."""
        return self.vmlinux or self.system_map

    @property
    def modules(self) -> Path | None:
        """The directory of its modules, or None if they did not come with it.

        That is ``lib/modules/<release>``; for a build tree, the tree. The first look into a package
        unpacks them into the cache, which takes seconds; later ones, in any process, do not.
        """
        return self.find_modules()


def kernel_on_disk(source: Path, architecture: str) -> Kernel:
    """The kernel that the boot loader on a disk will start, about which no more is known yet."""
    return Kernel(
        image=source,
        release="",
        version="",
        architecture=architecture,
        source=source,
        sha256="",
        on_disk=True,
    )


def require_architecture(kernel: Kernel, machine_architecture: str) -> None:
    """`ConfigError` unless `kernel` is built for a machine whose ``uname -m`` is this one."""
    if kernel.architecture != machine_architecture:
        raise ConfigError(
            f"{kernel.source}: a kernel for {kernel.architecture}, "
            f"but the machine is {machine_architecture}; give a kernel built for that"
        )


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

    For the errors see `kboot.kernel.download.download`.
    """
    return download(source) if is_url(source) else Path(source)


def read_kernel(path: Path) -> Kernel:
    """The kernel in `path`: an image file, a package, a build tree, or a directory.

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
        return _from_package(path) if is_package(path) else _from_image(path, source=path)
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
            system_map=tree / "System.map",
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
        system_map=path.with_name(f"System.map-{facts.release}"),
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
    system_map: Path,
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
        system_map=system_map if system_map.is_file() else None,
        find_modules=find_modules,
        has_efi_stub=facts.has_efi_stub,
    )


def _from_package(path: Path) -> Kernel:
    boot = unpack_image(path)
    label = f"{path}: the kernel in it"
    # Some packages have it compressed.
    image = bare_image(_only([*boot.glob("vmlinuz-*")], path), label=label)
    facts = read_image(image, label=label)
    return _kernel(
        image,
        facts,
        source=path,
        config=boot / f"config-{facts.release}",
        vmlinux=boot / f"vmlinux-{facts.release}",
        system_map=boot / f"System.map-{facts.release}",
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
