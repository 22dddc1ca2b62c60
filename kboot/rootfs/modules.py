"""Kernel modules for the guest: found in a kernel's tree, with all they need, in load order."""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kboot.cache import keep_file
from kboot.errors import ConfigError
from kboot.kernel import Kernel
from kboot.kernel.compression import decompressed
from kboot.kernel.elf import parse_elf
from kboot.log import step
from kboot.rootfs.cpio import archive, regular, with_parents
from kboot.state import cache_directory

_COMPRESSION = {".ko": None, ".xz": "xz", ".zst": "zstd", ".gz": "gzip"}
#: More than any real module; keeps a broken compressed one from filling the memory.
_SIZE_LIMIT = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One kernel module, decompressed."""

    name: str
    #: Below ``lib/modules/<release>``: ``kernel/drivers/char/virtio_console.ko``.
    path: str
    content: bytes
    #: What it was built for: the release first, then options that have to be the same.
    vermagic: str = ""
    #: Names of modules that have to be loaded before it.
    depends: tuple[str, ...] = ()
    #: Names or aliases of modules that should be loaded before it, if they are there.
    soft_before: tuple[str, ...] = ()
    #: Names or aliases of modules that should be loaded after it, if they are there.
    soft_after: tuple[str, ...] = ()


class ModuleTree:
    """The modules below `directory`, found by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        #: Whether it is as ``make modules_install`` leaves it, and not a build tree.
        self.is_installed = (directory / "kernel").is_dir() and not _is_built_in(directory)
        # As depmod has it, a module in updates/ stands before that of the same name in kernel/.
        files = sorted(self._files(), key=lambda file: ("updates" not in file.parts[:1], file))
        self._paths: dict[str, Path] = {}
        for file in files:
            self._paths.setdefault(module_name(file), file)
        self._builtin = frozenset(map(module_name, _lines(directory / "modules.builtin")))

    @property
    def names(self) -> list[str]:
        """The names of all modules, those compiled into the kernel included."""
        return sorted({*self._paths, *self._builtin})

    @property
    def files(self) -> list[Path]:
        """The modules' files, below the directory."""
        return sorted(self._paths.values())

    def file_of(self, name: str) -> Path:
        """The file of the module called `name`, which `find` gave."""
        return self._paths[name]

    def installed_path(self, file: Path) -> Path:
        """Where a module's file is below ``lib/modules/<release>``, once it is installed."""
        return file if self.is_installed else Path("kernel") / file

    def find(self, name: str) -> list[str] | None:
        """The modules that `name`, a module or an alias, stands for; None if it is unknown.

        Empty for one that is compiled into the kernel.
        """
        canonical = name.replace("-", "_")
        if canonical in self._paths:
            return [canonical]
        if canonical in self._builtin:
            return []
        return self._aliases.get(canonical)

    def read(self, name: str) -> Module:
        """The module called `name`, which `find` gave. `ConfigError` if its file is broken."""
        relative = self._paths[name]
        path = relative.with_suffix("") if relative.suffix != ".ko" else relative
        return _read(
            self.directory / relative,
            name=name,
            path=str(self.installed_path(path)),
        )

    @functools.cached_property
    def _aliases(self) -> dict[str, list[str]]:
        # Reads every module: some 0.5 s for Debian's 4,000. Only few soft dependencies need it.
        aliases: dict[str, list[str]] = defaultdict(list)
        for name, relative in self._paths.items():
            path = self.directory / relative
            # A broken module is reported when it is asked for.
            with contextlib.suppress(ConfigError):
                for alias in _modinfo(_decompress(path), path)["alias"]:
                    aliases[alias.replace("-", "_")].append(name)
        return dict(aliases)

    def _files(self) -> Iterable[Path]:
        if self.is_installed:
            found = self.directory.rglob("*.ko*")
            return (f.relative_to(self.directory) for f in found if f.suffix in _COMPRESSION)
        # Up to Linux 6.4 the lines end in .ko, from then on in .o; both name the .ko file.
        return [line.with_suffix(".ko") for line in _lines(self.directory / "modules.order")]


def is_module_file(name: str) -> bool:
    """Whether `name` is a module's file, by its ending, and not a module's name."""
    path = PurePosixPath(name)
    return ".ko" in path.suffixes[-2:] and path.suffix in _COMPRESSION


def read_module_file(path: Path, release: str) -> Module:
    """The module in a file of the user's, which goes where an update would.

    `ConfigError` if it is none, or was built for another kernel than that of `release`.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give a module's .ko file, or its name")
    name = module_name(path)
    module = _read(path, name=name, path=f"updates/{name}.ko")
    # include/linux/vermagic.h: the release comes first.
    built_for = (*module.vermagic.split(), "")[0]
    if built_for != release:
        raise ConfigError(
            f"{path}: a module for Linux {built_for or 'of unknown release'}, but the kernel is "
            f"{release}; build it for that one"
        )
    return module


def _read(file: Path, *, name: str, path: str) -> Module:
    content = _decompress(file)
    info = _modinfo(content, file)
    soft = [_softdep(value) for value in info["softdep"]]
    return Module(
        name=name,
        path=path,
        content=content,
        vermagic=" ".join(info["vermagic"]),
        depends=tuple(n for value in info["depends"] for n in value.split(",") if n),
        soft_before=tuple(name for before, _ in soft for name in before),
        soft_after=tuple(name for _, after in soft for name in after),
    )


def _is_built_in(directory: Path) -> bool:
    # The source has a directory called kernel, too.
    return (directory / "Makefile").is_file()


def _lines(path: Path) -> list[Path]:
    if not path.is_file():
        return []
    return [Path(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def module_name(file: Path | str) -> str:
    """``kernel/crypto/crc32c-generic.ko.xz`` is the module ``crc32c_generic``."""
    return PurePosixPath(file).name.split(".ko", 1)[0].replace("-", "_")


def _decompress(path: Path) -> bytes:
    try:
        with (
            path.open("rb") as file,
            decompressed(file, _COMPRESSION[path.suffix], str(path)) as content,
        ):
            data = content.read(_SIZE_LIMIT)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    return data


def _modinfo(content: bytes, path: Path) -> defaultdict[str, list[str]]:
    """The ``key=value`` strings of a module."""
    elf = parse_elf(content)
    section = elf.section(".modinfo") if elf else None
    if section is None:
        raise ConfigError(f"{path}: not a kernel module, or a broken one (no .modinfo in it)")
    info: defaultdict[str, list[str]] = defaultdict(list)
    for text in section.decode(errors="replace").split("\0"):
        key, _, value = text.partition("=")
        info[key].append(value)
    return info


def _softdep(value: str) -> tuple[list[str], list[str]]:
    """Split ``pre: a b post: c`` into what comes before and what comes after."""
    before, _, after = value.partition("post:")
    return before.replace("pre:", " ").split(), after.split()


def module_initramfs(kernel: Kernel, names: Sequence[str]) -> Path:
    """An initramfs (plain cpio) with the modules called `names` and all that they need.

    A name that ends in ``.ko`` (or ``.ko.xz`` and the like) is a file of the user's.

    They lie decompressed in ``/usr/lib/modules/<release>``; ``/etc/kboot/modules`` lists them in
    the order to load them in, which the tiny system does when it boots. What is compiled into the
    kernel is left out. `ConfigError` for an unknown module, with names that are near, and for a
    kernel that came without modules.
    """
    with step(f"collect kernel modules: {' '.join(names)}"):
        modules = load_order(kernel, names)
    root = f"usr/lib/modules/{kernel.release}"
    entries = [regular(f"{root}/{module.path}", module.content) for module in modules]
    listing = "".join(f"/{entry.path}\n" for entry in entries)
    entries.append(regular("etc/kboot/modules", listing.encode()))
    return keep_file(cache_directory("rootfs"), "modules.cpio", archive(with_parents(entries)))


def modules_there(kernel: Kernel, names: Iterable[str]) -> list[str]:
    """Those of the modules called `names` that came with the kernel, and are not built in."""
    wanted = list(names)
    # To look into a package and list its modules takes 0.2 s, and every test asks.
    directory = kernel.modules if wanted else None
    tree = None if directory is None else ModuleTree(directory)
    return [name for name in wanted if tree and tree.find(name)]


def load_order(kernel: Kernel, names: Sequence[str]) -> list[Module]:
    """The modules called `names` and all that they need, each after what it needs.

    Raises as `module_initramfs` does.
    """
    files = [read_module_file(Path(n), kernel.release) for n in names if is_module_file(n)]
    order = _LoadOrder(kernel, files)
    for module in files:
        order.add(module.name, because=f"kernel {kernel.release}")
    for name in names:
        if not is_module_file(name):
            order.add(name, because=f"kernel {kernel.release}")
    return list(order.modules.values())


class _LoadOrder:
    """Modules in the order to load them in, which is that of `modules`."""

    def __init__(self, kernel: Kernel, files: Sequence[Module]) -> None:
        self._kernel = kernel
        #: They stand before those of the same name that came with the kernel.
        self._files = {module.name: module for module in files}
        self._seen: set[str] = set()
        self.modules: dict[str, Module] = {}

    def add(self, name: str, *, because: str) -> None:
        """Add what `name` stands for, and before it what that needs."""
        found = self._find(name)
        if found is None:
            if self._tree is None:
                raise ConfigError(
                    f"{self._kernel.source}: no modules came with this kernel, so {name} cannot "
                    "be loaded; give its .deb, its build tree, or a directory with boot/ and "
                    "lib/modules/"
                )
            near = difflib.get_close_matches(name.replace("-", "_"), self._tree.names, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"see {self._tree.directory}"
            raise ConfigError(f"no module {name} in {because}; {hint}")
        for real_name in found:
            self._add_module(real_name)

    @functools.cached_property
    def _tree(self) -> ModuleTree | None:
        """What came with the kernel; None if nothing did."""
        directory = self._kernel.modules
        return None if directory is None else ModuleTree(directory)

    def _find(self, name: str) -> list[str] | None:
        """As `ModuleTree.find`."""
        canonical = name.replace("-", "_")
        if canonical in self._files:
            return [canonical]
        return None if self._tree is None else self._tree.find(name)

    def _read(self, name: str) -> Module:
        if name in self._files:
            return self._files[name]
        if self._tree is None:
            raise AssertionError(f"{name} was found nowhere")
        return self._tree.read(name)

    def _add_module(self, name: str) -> None:
        # Soft dependencies may go round in a circle.
        if name in self._seen:
            return
        self._seen.add(name)
        module = self._read(name)
        for needed in module.depends:
            self.add(needed, because=f"the modules that {name} depends on")
        self._add_if_there(module.soft_before)
        self.modules[name] = module
        self._add_if_there(module.soft_after)

    def _add_if_there(self, names: Sequence[str]) -> None:
        for name in names:
            for real_name in self._find(name) or ():
                self._add_module(real_name)
