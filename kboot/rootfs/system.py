"""The system that a kernel boots into, from what a user says: images, drivers, disks and shares."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kboot import arch, network_cards
from kboot.disks import Partition, find_root, named_root, partitions, read_image, reader
from kboot.errors import ConfigError, refusal_named
from kboot.kernel import Kernel
from kboot.kernel.image import HEAD_SIZE, looks_like
from kboot.machine_spec import Disk, Share
from kboot.network_cards import CARDS, NicModel
from kboot.rootfs.debian import is_debian
from kboot.rootfs.disks import disk_links, disk_modules, root_drivers
from kboot.rootfs.drivers import not_built_in, require_drivers
from kboot.rootfs.modules import modules_there
from kboot.rootfs.overlay import overlay_initramfs, resolve_rootfs
from kboot.rootfs.tiny import tiny_initramfs

#: Of the disk, and of the share, that is the root file system.
ROOT = "root"

_OF_DISK = re.compile(r"disk:(.+)")
#: What a share needs, with what says in a configuration that it is built in.
_SHARE_MODULES = {
    "virtio_pci": "CONFIG_VIRTIO_PCI",
    "9pnet_virtio": "CONFIG_NET_9P_VIRTIO",
    "9p": "CONFIG_9P_FS",
}
_OVERLAY_MODULES = {"overlay": "CONFIG_OVERLAY_FS"}
#: Where nobody can look into the disk before it is mounted.
_COMMON_FILE_SYSTEMS = ("ext4", "xfs", "btrfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What a machine loads and has for its root file system."""

    #: Of initramfs, in order.
    images: tuple[Path, ...]
    #: Kernel modules that it needs; those that are not there are built in.
    modules: tuple[str, ...] = ()
    #: All of the machine's.
    disks: tuple[Disk, ...] = ()
    shares: tuple[Share, ...] = ()
    #: Whether it may have an ssh server.
    may_have_ssh: bool = True
    #: Of `modules` and what is built in, those without which it has no root file system.
    drivers: Mapping[str, str] = field(default_factory=dict)


def system_for(
    value: str,
    kernel: Kernel,
    *,
    disks: Sequence[Disk] = (),
    shares: Sequence[Share] = (),
    password: str,
    mirror: str = arch.DEBIAN_MIRROR,
    command_line: str = "",
    nic_model: NicModel = network_cards.DEFAULT,
    brings_drivers: bool = False,
) -> System:
    """What the setting `rootfs` means, for a machine with these disks, shares and network card.

    With `brings_drivers`, the user gives the kernel modules that did not come with it.
    `ConfigError` if it cannot be booted into: no such file, nothing that is a root file system, or
    a kernel without drivers for it.
    """
    require_share_drivers(kernel, shares)
    with refusal_named(f"rootfs {value}"):
        found = _system_for(
            value,
            kernel,
            disks=tuple(disks),
            password=password,
            mirror=mirror,
            command_line=command_line,
            card_modules=CARDS[nic_model].modules,
        )
    if found.shares and any(share.tag == ROOT for share in shares):
        raise ConfigError(
            f"rootfs {value}: its tag is {ROOT}, and so is that of another directory: give that "
            "one another tag"
        )
    all_shares = (*found.shares, *shares)
    needed = [*found.modules, *(_SHARE_MODULES if all_shares else ())]
    there = tuple(modules_there(kernel, dict.fromkeys(needed)))
    lacking = {name: option for name, option in found.drivers.items() if name not in there}
    if not brings_drivers:
        what = f"rootfs {value} needs {' and '.join(found.drivers)}"
        remedy = "give its package, its build tree, or another kernel"
        require_drivers(kernel, not_built_in(kernel, lacking), what, remedy=remedy)
    return System(
        images=found.images,
        modules=there,
        disks=found.disks,
        shares=all_shares,
        may_have_ssh=found.may_have_ssh,
    )


def _system_for(
    value: str,
    kernel: Kernel,
    *,
    disks: tuple[Disk, ...],
    password: str,
    mirror: str,
    command_line: str,
    card_modules: tuple[str, ...],
) -> System:
    if named := _OF_DISK.fullmatch(value):
        return _on_disk(named[1], disks, kernel, command_line, mirror, card_modules)
    if value != "tiny" and not is_debian(value):
        if Path(value).is_dir():
            return _on_directory(Path(value), disks, kernel, mirror)
        if is_disk_image(Path(value)):
            everything = root_first(value, disks)
            return _on_disk(ROOT, everything, kernel, command_line, mirror, card_modules)
    images = resolve_rootfs(
        value, architecture=kernel.architecture, password=password, mirror=mirror
    )
    if value == "tiny":
        links = _overlay(disk_links(disks))
        modules = tuple(disk_modules(disks))
        return System(images=(*images, *links), modules=modules, disks=disks, may_have_ssh=False)
    modules = (*card_modules, *disk_modules(disks)) if is_debian(value) else ()
    return System(images=tuple(images), modules=modules, disks=disks)


def root_first(path: str, disks: Sequence[Disk]) -> tuple[Disk, ...]:
    """An image as the disk with the root file system, and the machine's other ones behind it."""
    if any(disk.name == ROOT for disk in disks):
        raise ConfigError(
            f"rootfs {path}: its disk is called {ROOT}, and so is another one: give that one "
            f"another name, or if it is the root file system, say --rootfs disk:{ROOT}"
        )
    return (Disk(name=ROOT, kind="image", source=path), *disks)


def _overlay(files: Mapping[str, bytes]) -> tuple[Path, ...]:
    return (overlay_initramfs(files),) if files else ()


def is_disk_image(path: Path) -> bool:
    """Whether a file is surely a disk image, and no initramfs."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(HEAD_SIZE)
        file.seek(0x438)
        ext = file.read(2) == b"\x53\xef"
    looks = looks_like(head)
    if "compressed" in looks or "initramfs" in looks:
        # One may have an ext4 file system's two bytes by chance.
        return False
    return ext or "disk image" in looks or looks.startswith(("nothing but zeros", "a squashfs"))


def _on_disk(
    name: str,
    disks: tuple[Disk, ...],
    kernel: Kernel,
    command_line: str,
    mirror: str,
    card_modules: tuple[str, ...],
) -> System:
    """A root file system on the disk of this name."""
    disk = next((each for each in disks if each.name == name), None)
    if disk is None:
        there = ", ".join(each.name for each in disks) or "none"
        raise ConfigError(f"rootfs disk:{name}: no disk is called so (there are: {there}); --disk")
    links = disk_links(disks)
    named = next(iter(_parameters("root", command_line)), "")
    where = _partition_of(disk, named)
    types = (where.file_system,) if where and where.file_system else _COMMON_FILE_SYSTEMS
    about = {
        "kind": "disk",
        "device": f"/dev/disk/by-id/{_link(disk)}",
        "partition": str(where.number if where else 0),
        "type": (where.file_system if where else "") or "auto",
        "named": named if where else "",
    }
    return System(
        images=(
            tiny_initramfs(architecture=kernel.architecture, mirror=mirror),
            *_overlay({**links, "/etc/kboot/root": _variables(about)}),
        ),
        modules=(*disk_modules(disks), *types, *card_modules),
        disks=disks,
        drivers=root_drivers(disk, where.file_system if where else ""),
    )


def _link(disk: Disk) -> str:
    return {
        "virtio": f"virtio-{disk.name}",
        "nvme": f"nvme-QEMU_NVMe_Ctrl_{disk.name}",
        "scsi": f"scsi-0QEMU_QEMU_HARDDISK_{disk.name}",
    }[disk.bus]


def _parameters(name: str, command_line: str) -> list[str]:
    """What the kernel is given for this parameter, the last one, which counts, first."""
    words = [word.partition("=") for word in reversed(command_line.split())]
    return [value for key, _, value in words if key == name]


def _partition_of(disk: Disk, named: str) -> Partition | None:
    """Where the root is on a disk; None where only the machine can look for what is `named`."""
    what = f"rootfs on disk {disk.name}"
    is_here = disk.kind == "image" and "://" not in disk.source
    by_partition = named.startswith(("PARTUUID=", "PARTLABEL="))
    if named and not by_partition:
        return None
    if is_here:
        image = read_image(Path(disk.source), what=what)
        if not named:
            return find_root(image, what=what)
        return named_root(partitions(reader(image)), named, what=f"{what}: {image.path}")
    if disk.kind == "blank" and not disk.keep:
        raise ConfigError(f"rootfs disk:{disk.name}: a blank disk: no system is on it")
    raise ConfigError(
        f"rootfs disk:{disk.name}: kboot does not look into this disk; say where the root file "
        f"system is: --cmdline root=/dev/disk/by-id/{_link(disk)}-part1 (or LABEL=..., UUID=...)"
    )


def _on_directory(path: Path, disks: tuple[Disk, ...], kernel: Kernel, mirror: str) -> System:
    """A directory of this host as root file system, read-only with an overlay in memory."""
    if not any((path / shell).exists() or (path / shell).is_symlink() for shell in _SHELLS):
        raise ConfigError(f"rootfs {path}: a directory without bin/sh, so no system is in it")
    require_drivers(kernel, _SHARE_MODULES | _OVERLAY_MODULES, f"rootfs {path}: {_BY_9P}")
    files = {
        **disk_links(disks),
        "/etc/kboot/root": _variables({"kind": "directory", "tag": ROOT}),
        "/etc/kboot/autologin": b"",
    }
    return System(
        images=(tiny_initramfs(architecture=kernel.architecture, mirror=mirror), *_overlay(files)),
        modules=(*_OVERLAY_MODULES, *disk_modules(disks)),
        disks=disks,
        shares=(Share(tag=ROOT, path=str(path), read_only=True),),
        may_have_ssh=False,
    )


_SHELLS = ("bin/sh", "usr/bin/sh")


def _variables(about: Mapping[str, str]) -> bytes:
    return "".join(f"{key}={shlex.quote(value)}\n" for key, value in about.items()).encode()


def require_share_drivers(kernel: Kernel, shares: Iterable[Share]) -> None:
    """`ConfigError` if it is known that this kernel cannot mount shares."""
    for share in shares:
        if not os.access(share.path, os.R_OK | os.X_OK) or not Path(share.path).is_dir():
            raise ConfigError(f"share {share.path}: not a directory that can be read")
        require_drivers(kernel, _SHARE_MODULES, f"share {share.path}: {_BY_9P}")


_BY_9P = "a directory needs 9p over virtio (an image does not)"
