"""Kernel modules for the guest: those that were asked for and all they need, in load order."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from kboot.artifacts import Kernel
from kboot.artifacts.cache import keep_file
from kboot.errors import ConfigError
from kboot.log import step
from kboot.rootfs.cpio import archive, regular, with_parents
from kboot.rootfs.module_tree import Module, ModuleTree
from kboot.state import cache_directory


def module_initramfs(kernel: Kernel, names: Sequence[str]) -> Path:
    """An initramfs (plain cpio) with the modules called `names` and all that they need.

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
    directory = kernel.modules
    if directory is None:
        raise ConfigError(
            f"{kernel.source}: no modules came with this kernel, so {', '.join(names)} cannot be "
            "loaded; give its .deb, its build tree, or a directory with boot/ and lib/modules/"
        )
    order = _LoadOrder(ModuleTree(directory))
    for name in names:
        order.add(name, because=f"kernel {kernel.release}")
    return list(order.modules.values())


class _LoadOrder:
    """Modules in the order to load them in, which is that of `modules`."""

    def __init__(self, tree: ModuleTree) -> None:
        self._tree = tree
        self._seen: set[str] = set()
        self.modules: dict[str, Module] = {}

    def add(self, name: str, *, because: str) -> None:
        """Add what `name` stands for, and before it what that needs."""
        found = self._tree.find(name)
        if found is None:
            near = difflib.get_close_matches(name.replace("-", "_"), self._tree.names, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"see {self._tree.directory}"
            raise ConfigError(f"no module {name} in {because}; {hint}")
        for real_name in found:
            self._add_module(real_name)

    def _add_module(self, name: str) -> None:
        # Soft dependencies may go round in a circle.
        if name in self._seen:
            return
        self._seen.add(name)
        module = self._tree.read(name)
        for needed in module.depends:
            self.add(needed, because=f"the modules that {name} depends on")
        self._add_if_there(module.soft_before)
        self.modules[name] = module
        self._add_if_there(module.soft_after)

    def _add_if_there(self, names: Sequence[str]) -> None:
        for name in names:
            for real_name in self._tree.find(name) or ():
                self._add_module(real_name)
