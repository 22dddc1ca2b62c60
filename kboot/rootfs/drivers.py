"""Whether a kernel has a driver, built in or as a module that came with it."""

from __future__ import annotations

from collections.abc import Mapping

from kboot.errors import ConfigError
from kboot.kernel import Kernel
from kboot.rootfs.modules import ModuleTree


def may_drive(kernel: Kernel, option: str) -> bool | None:
    """Whether its configuration has this option; None if that did not come with it."""
    config = kernel.config()
    return None if config is None else not {f"{option}=y", f"{option}=m"}.isdisjoint(config.split())


def not_built_in(kernel: Kernel, needed: Mapping[str, str]) -> Mapping[str, str]:
    """Those of the drivers that its configuration does not say to be built in."""
    lines = frozenset((kernel.config() or "").splitlines()) if needed else frozenset()
    return {name: option for name, option in needed.items() if f"{option}=y" not in lines}


def require_drivers(
    kernel: Kernel, needed: Mapping[str, str], what: str, *, remedy: str = "give another kernel"
) -> None:
    """`ConfigError` if it is known that a driver is neither built in nor came with the kernel."""
    if not needed:
        return
    directory, config = kernel.modules, kernel.config()
    tree = None if directory is None else ModuleTree(directory)
    for module, option in needed.items():
        built_in = config is not None and f"{option}=y" in config.splitlines()
        if built_in or (tree is not None and tree.find(module) is not None):
            continue
        if config is None and tree is None:
            continue
        have = (
            "has it as a module, which did not come with it"
            if (config is not None and f"{option}=m" in config.splitlines())
            else "has no driver for it"
        )
        raise ConfigError(f"{what}, and {kernel.source} {have} ({option}); {remedy}")
