"""The kernel under test, as kboot knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kboot.errors import ConfigError


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
    #: How to get at `modules`.
    find_modules: Callable[[], Path | None] = field(default=_no_modules, repr=False, compare=False)

    def config(self) -> str | None:
        """The text of its configuration, or None if that did not come with it."""
        if self.config_file is None:
            return None
        try:
            return self.config_file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"{self.config_file}: cannot be read: {error.strerror}") from error

    @property
    def modules(self) -> Path | None:
        """The directory of its modules, or None if they did not come with it.

        That is ``lib/modules/<release>``; for a build tree, the tree. The first look into a package
        unpacks them into the cache, which takes seconds; later ones, in any process, do not.
        """
        return self.find_modules()


def require_architecture(kernel: Kernel, machine_architecture: str) -> None:
    """`ConfigError` unless `kernel` is built for a machine whose ``uname -m`` is this one."""
    if kernel.architecture != machine_architecture:
        raise ConfigError(
            f"{kernel.source}: a kernel for {kernel.architecture}, "
            f"but the machine is {machine_architecture}; give a kernel built for that"
        )
