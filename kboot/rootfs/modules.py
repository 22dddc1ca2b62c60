"""Kernel modules for the guest: those that were asked for and all they need, in load order."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from pathlib import Path

from kboot.artifacts import Kernel
from kboot.artifacts.cache import keep_file
from kboot.errors import ConfigError
from kboot.log import step
from kboot.rootfs.cpio import archive, regular, with_parents
from kboot.rootfs.module_tree import Module, ModuleTree, is_module_file, read_module_file
from kboot.state import cache_directory


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
