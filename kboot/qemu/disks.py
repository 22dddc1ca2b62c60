"""A machine's disks: layers above images, the options for them, and their part in a saved state."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kboot.disks import (
    Image,
    clone_of,
    conversion,
    empty_layer,
    keep,
    kept_base,
    kept_directory,
    read_image,
)
from kboot.errors import ConfigError, InfraError
from kboot.kernel import local_path
from kboot.machine_spec import Disk
from kboot.snapshots import sparse

#: Of the devices' own, beside the drive and the serial number.
_DEVICES = {"virtio": "virtio-blk-pci", "nvme": "nvme", "scsi": "scsi-hd,bus=scsi.0"}


def fault(disk: Disk) -> str | None:
    """None if a local machine can have such a disk, or else why not."""
    match disk.kind:
        case "container":
            return "a disk from a container image is for a cluster; give the image's file or URL"
        case "pvc":
            return "a volume claim is a cluster's; give an image's file or URL, or blank"
        case "source":
            return "a DataSource is a cluster's; give an image's file or URL"
        case _:
            return None


def snapshot_fault(disks: Sequence[Disk]) -> str | None:
    """None if a machine with these disks can be saved, or else why not."""
    for disk in disks:
        if disk.keep:
            return f"the disk {disk.name} is kept: it is not the same each time"
        if disk.bus == "nvme":
            return f"QEMU cannot save the NVMe disk {disk.name}; give it bus=virtio"
        image = source_of(disk) if disk.kind in {"image", "clone"} else None
        if image and "vmdk" in {image.format, *image.formats_below}:
            return (
                f"QEMU cannot save a machine with a vmdk image (disk {disk.name}); convert it: "
                f"{conversion(image.path)}"
            )
    return None


def source_of(disk: Disk, base: Path | None = None) -> Image | None:
    """The image that a disk begins with; None for a blank one. A URL is downloaded.

    With a `base`, what is there is meant, whatever the source.
    `ConfigError` if there is no such image, if it is none, or if it is larger than the disk.
    """
    what = f"disk {disk.name}"
    if disk.kind == "blank":
        return None
    if disk.kind == "clone":
        image = clone_of(disk.source, what=what)
    else:
        image = read_image(base or _file(disk.source), what=what)
    if disk.size_mib is not None and disk.size_mib << 20 < image.size_bytes:
        raise ConfigError(
            f"{what}: {image.path} has {-(-image.size_bytes >> 20)} MiB, which do not fit into "
            f"{disk.size_mib} MiB; give it size={-(-image.size_bytes >> 20)}M or more"
        )
    return image


#: What the names of the disks' block nodes begin with.
_NODE = "disk-"


@cache
def _file(source: str) -> Path:
    """Where an image is; its server is asked once for each process."""
    return local_path(source)


def identity(disks: Sequence[Disk]) -> Mapping[str, str]:
    """For `SnapshotBackend.snapshot_identity`: each disk, and what it begins with."""
    if not disks:
        return {}
    return {"disks": "; ".join(f"{disk} {_stamps(source_of(disk))}" for disk in disks)}


def _stamps(image: Image | None) -> str:
    return ", ".join(map(str, image.stamps)) if image else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A file of a disk, as QEMU opens it."""

    path: Path
    format: str
    below: _Node | None = None

    def options(self, prefix: str = "") -> Iterator[str]:
        """What follows ``-blockdev``, but for the node's name."""
        yield f"{prefix}driver={self.format}"
        yield f"{prefix}file.driver=file"
        yield f"{prefix}file.filename={str(self.path).replace(',', ',,')}"
        if self.below:
            yield from self.below.options(f"{prefix}backing.")


class MachineDisks:
    """The disks of one machine that may be powered on more than once."""

    def __init__(
        self, disks: Sequence[Disk], directory: Path, *, machine: str, boot_disk: str = ""
    ) -> None:
        """Layers are files in `directory`; what is kept belongs to the `machine` of this name.

        `boot_disk` is the name of the one that firmware boots. `ConfigError` as `source_of`.
        """
        self._disks = tuple(disks)
        self._directory = directory
        self._machine = machine
        self._boot_disk = boot_disk
        self._sources = {disk.name: source_of(disk, kept_base(machine, disk)) for disk in disks}

    def begin(self, saved: Path | None, *, savable: bool) -> list[str]:
        """Options for QEMU, for disks as they are at power-on, or in the state in `saved`.

        `ConfigError` if an image is not the one any more that it was.
        """
        for disk in self._disks:
            image = self._sources[disk.name]
            if image and (changed := image.changed_file):
                what = "has changed" if changed.exists() else "is gone"
                raise ConfigError(
                    f"disk {disk.name}: {changed} {what} since this machine was made; put it back, "
                    "or start another machine"
                )
        words = []
        for disk in self._disks:
            words += _node_words(disk, self._node(disk, saved, savable=savable))
        return [*words, *device_words(self._disks, self._boot_disk)]

    def save(self, directory: Path) -> None:
        """Add the disks to a state that is saved; the guest stands still, and all is written."""
        for disk in self._disks:
            if not disk.read_only:
                with (
                    self._layer(disk).open("rb") as layer,
                    (directory / _saved_name(disk)).open("xb") as file,
                ):
                    sparse.copy(layer.fileno(), file.fileno())

    def full_fault(self, node: str) -> str:
        """In one line, that there is no room for what the guest writes to a block node of QEMU's.

        It is one of these disks, or one that the user's own arguments have made.
        """
        name, where = node.removeprefix(_NODE), ""
        for disk in self._disks:
            if disk.name == name:
                place = kept_directory(self._machine) if disk.keep else self._directory.parent
                where = f" in {place}"
        return (
            f"disk {name}: no space left on this host for what the guest writes; make room{where}"
        )

    def by_hand(self) -> tuple[list[str], list[str]]:
        """Commands that make the same disks, and the options for them, for a person."""
        commands, words = [], []
        for disk in self._disks:
            image = self._sources[disk.name]
            if disk.read_only and image:
                node = _Node(path=image.path, format=image.format)
            else:
                node = _Node(path=Path(f"{disk.name}.qcow2"), format="qcow2")
                below = ("-b", str(image.path), "-F", image.format) if image else ()
                size = str(self._size_bytes(disk))
                create = ("qemu-img", "create", "-q", "-f", "qcow2", *below, str(node.path), size)
                commands.append(shlex.join(create))
            words += _node_words(disk, node)
        return commands, [*words, *device_words(self._disks, self._boot_disk)]

    def _node(self, disk: Disk, saved: Path | None, *, savable: bool) -> _Node:
        image = self._sources[disk.name]
        below = _Node(path=image.path, format=image.format) if image else None
        if disk.read_only and below:
            return below
        if disk.keep:
            layer = keep(self._machine, disk, image, self._size_bytes(disk))
            if base := kept_base(self._machine, disk):
                image = self._sources[disk.name] = read_image(base, what=f"disk {disk.name}")
                below = _Node(path=image.path, format=image.format)
            return _Node(path=layer, format="qcow2", below=below)
        layer = self._layer(disk)
        template = empty_layer(self._size_bytes(disk))
        if saved is not None and savable:
            # What it will be saved to must not need this one.
            template = saved / _saved_name(disk)
        elif saved is not None:
            below = _Node(path=saved / _saved_name(disk), format="qcow2", below=below)
        try:
            shutil.copyfile(template, layer)
        except OSError as error:
            raise InfraError(f"disk {disk.name}: {layer}: {error.strerror}; make room") from error
        return _Node(path=layer, format="qcow2", below=below)

    def _layer(self, disk: Disk) -> Path:
        return self._directory / f"disk-{disk.name}.qcow2"

    def _size_bytes(self, disk: Disk) -> int:
        image = self._sources[disk.name]
        if disk.size_mib is not None:
            return disk.size_mib << 20
        if image is None:
            raise AssertionError(f"the blank disk {disk.name} has no size")
        return image.size_bytes


def _saved_name(disk: Disk) -> str:
    return f"disk-{disk.name}.qcow2"


def _node_words(disk: Disk, node: _Node) -> list[str]:
    access = "read-only=on" if disk.read_only else "discard=unmap"
    return ["-blockdev", ",".join((*node.options(), f"node-name={_NODE}{disk.name}", access))]


def device_words(disks: Sequence[Disk], boot_disk: str = "") -> list[str]:
    """The disks' devices, without any file; the guest knows each by its serial number.

    The one of the name `boot_disk` is what firmware boots.
    """
    words = []
    if any(disk.bus == "scsi" for disk in disks):
        words += ["-device", "virtio-scsi-pci,id=scsi"]
    for disk in disks:
        device = f"{_DEVICES[disk.bus]},drive={_NODE}{disk.name},serial={disk.name}"
        # Else what a guest wrote and did not flush is lost when QEMU is killed, with the layer's
        # tables, which QEMU keeps in memory meanwhile.
        cache = ",write-cache=off" if disk.keep else ""
        order = ",bootindex=1" if disk.name == boot_disk else ""
        words += ["-device", f"{device},id={disk.name}{cache}{order}"]
    return words
