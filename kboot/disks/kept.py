"""Disks that outlive their machine's power-off: one layer for each, below the state directory.

``disks/machines/MACHINE/NAME.qcow2`` is a layer above the disk's source, which a note beside it
names; ``disks/golden/NAME.qcow2`` is a whole image that was made of one, for others to begin with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kboot.backend import StoredDisk
from kboot.cache import FileStamp
from kboot.disks.images import Image, convert, create, is_open, read_image
from kboot.errors import ConfigError, InfraError
from kboot.kernel.download import without_password
from kboot.locks import lock_directory
from kboot.machine_spec import Disk
from kboot.state import state_directory

_SUFFIX = ".qcow2"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptDisk:
    """A disk that is kept on this host."""

    name: str
    #: None for a golden one, which others are cloned from.
    machine: str | None
    path: Path
    #: The image below it; empty for none.
    source: str

    @property
    def label(self) -> str:
        """As users name it: ``MACHINE/NAME``, or ``NAME`` of a golden one."""
        return f"{self.machine}/{self.name}" if self.machine else self.name

    @property
    def size_bytes(self) -> int:
        """As the guest sees it; also while it is in use, when qemu-img would not look at it."""
        return self.size_in(self.path)

    @staticmethod
    def size_in(path: Path) -> int:
        """The size that a qcow2 image has to a guest."""
        # Offset 24 of the header, big-endian: docs/interop/qcow2.txt.
        with path.open("rb") as file:
            return int.from_bytes(file.read(32)[24:32], "big")

    @property
    def stored_bytes(self) -> int:
        """The room that it takes on this host."""
        return self.path.stat().st_blocks * 512


def keep(machine: str, disk: Disk, below: Image | None, size_bytes: int) -> Path:
    """The layer of a machine's disk, made if it is not there.

    What came from a URL is `below` it under a name of its own from then on, see `kept_base`.
    `ConfigError` if it was made above another image, or the image has changed since.
    """
    directory = kept_directory(machine)
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"{disk.name}{_SUFFIX}"
    remedy = f"kboot disks rm {machine}/{disk.name}"
    with lock_directory(directory):
        if not path.is_file():
            url = _url(disk)
            if below and url:
                below = _own(below, _base(path), what=f"disk {disk.name}")
            create(path, size_bytes, above=below)
            about = _about(below) | ({"url": url} if url else {})
            _note(path).write_text(json.dumps(about), encoding="utf-8")
            return path
    before = _read_note(path)
    before_url = before.pop("url", "")
    if before != _about(below):
        if below and before.get("path") == str(below.path):
            raise ConfigError(
                f"disk {disk.name}: {below.path} has changed since the disk of {machine} was made "
                f"from it; put the old one back, or give up what the disk has: {remedy}"
            )
        source = before_url or before.get("path") or "blank"
        raise ConfigError(
            f"disk {disk.name} of {machine} was kept above another source ({source}); give that "
            f"one, or give up what the disk has: {remedy}"
        )
    _require_size(machine, disk, path)
    return path


def kept_base(machine: str, disk: Disk) -> Path | None:
    """The image below a kept disk from a URL, as it was when the disk was made; None for others.

    The one in the cache becomes another one once the server has another one.
    """
    path = kept_directory(machine) / f"{disk.name}{_SUFFIX}"
    is_there = disk.keep and path.is_file() and _base(path).is_file()
    url = _url(disk) if is_there else ""
    return _base(path) if url and _read_note(path).get("url") == url else None


def _url(disk: Disk) -> str:
    """Where a disk's image comes from, if that is another host; else an empty text."""
    is_url = disk.kind == "image" and "://" in disk.source
    return without_password(disk.source) if is_url else ""


def _base(layer: Path) -> Path:
    return layer.with_suffix(".base")


def _own(image: Image, target: Path, *, what: str) -> Image:
    """A copy of an image, which stays as it is."""
    partial = target.with_suffix(".partial")
    try:
        # A link would be another state of the file to whoever uses it already.
        shutil.copyfile(image.path, partial)
        partial.rename(target)
    except OSError as error:
        raise InfraError(f"{what}: {target}: {error.strerror or error}; make room there") from error
    finally:
        partial.unlink(missing_ok=True)
    return read_image(target, what=what)


def _require_size(machine: str, disk: Disk, path: Path) -> None:
    """`ConfigError` if it is to have another size than the one that it was made with."""
    wanted, has = disk.size_mib, KeptDisk.size_in(path) >> 20
    if wanted is None or wanted == has:
        return
    remedy = f"give it size={has}M"
    if wanted > has:
        remedy += f", or make it larger: qemu-img resize {shlex.quote(str(path))} {wanted}M"
    raise ConfigError(
        f"disk {disk.name} of {machine} was kept with {has} MiB, not {wanted}: {remedy}"
    )


def kept_directory(machine: str) -> Path:
    """Where the disks of a machine are kept, whether there are any or not."""
    return _machines() / machine


def _about(below: Image | None) -> dict[str, object]:
    """What a layer depends on, as JSON has it."""
    if below is None:
        return {}
    stamps = [_stamp(stamp) for stamp in below.stamps]
    return {"path": str(below.path), "format": below.format, "stamps": stamps}


def _stamp(stamp: FileStamp) -> dict[str, object]:
    found = {**dataclasses.asdict(stamp), "path": str(stamp.path)}
    # A disk that is mounted again may have another device number; a copied file another inode.
    for volatile in ("device", "inode", "changed_ns"):
        del found[volatile]
    return found


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_note(path: Path) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_note(path).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def kept_disks() -> list[KeptDisk]:
    """All of this host: those of machines, then golden ones."""
    return [*_of_machines(), *_golden_disks()]


def _of_machines() -> Iterator[KeptDisk]:
    for path in sorted(_machines().glob(f"*/*{_SUFFIX}")):
        note = _read_note(path)
        source = str(note.get("url") or note.get("path") or "")
        yield KeptDisk(name=path.stem, machine=path.parent.name, path=path, source=source)


def _golden_disks() -> Iterator[KeptDisk]:
    for path in sorted(_golden().glob(f"*{_SUFFIX}")):
        yield KeptDisk(name=path.stem, machine=None, path=path, source="")


def find_kept(label: str) -> KeptDisk:
    """The disk of this label. `ConfigError` if there is none."""
    found = kept_disks()
    for disk in found:
        if disk.label == label:
            return disk
    there = f"; there are {', '.join(disk.label for disk in found)}" if found else ""
    raise ConfigError(f"no disk {label} is kept on this host{there}; see kboot disks list")


def remove_kept(disk: KeptDisk) -> None:
    """Remove a disk; nobody may use it. `ConfigError` if kept disks are layers above it."""
    above = [each.label for each in _of_machines() if each.source == str(disk.path)]
    if above:
        raise ConfigError(
            f"{disk.label} is what {', '.join(above)} is made from; remove that first: "
            f"kboot disks rm {' '.join(above)}"
        )
    if is_open(disk.path):
        raise ConfigError(
            f"{disk.label} is in use by a machine that is on; stop that first: see kboot list"
        )
    disk.path.unlink(missing_ok=True)
    _note(disk.path).unlink(missing_ok=True)
    _base(disk.path).unlink(missing_ok=True)
    if disk.machine:
        with contextlib.suppress(OSError):
            disk.path.parent.rmdir()


def clone_kept(disk: KeptDisk, name: str) -> Path:
    """Make a golden disk of a kept one, which nobody may use meanwhile.

    `ConfigError` if there is one of that name, or if the disk is in use.
    """
    target = _golden() / f"{name}{_SUFFIX}"
    if target.exists():
        raise ConfigError(f"there is a disk {name} already; remove it: kboot disks rm {name}")
    image = read_image(disk.path, what=f"disk {disk.label}")
    if not _is_above_the_same(disk.path, image):
        raise ConfigError(
            f"disk {disk.label}: {disk.source} has changed since it was made from it, so what the "
            f"disk has is no more; put the old one back, or remove it: kboot disks rm {disk.label}"
        )
    partial = _golden() / f".{name}.partial"
    try:
        convert(image, partial)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _is_above_the_same(path: Path, image: Image) -> bool:
    """Whether what is below a kept disk is what it was made from."""
    before = _read_note(path).get("stamps") or []
    return before == [_stamp(stamp) for stamp in image.stamps if stamp.path != path]


def clone_of(name: str, *, what: str) -> Image:
    """The golden disk of this name. `ConfigError`, about `what`, if there is none."""
    path = _golden() / f"{name}{_SUFFIX}"
    if "/" in name:
        raise ConfigError(
            f"{what}: clone:{name} names a volume claim of another namespace, which a cluster has; "
            "here, name a golden disk: kboot disks list"
        )
    if not path.is_file():
        there = ", ".join(disk.name for disk in _golden_disks()) or "none"
        raise ConfigError(
            f"{what}: there is no disk {name} to clone (there are: {there}); make it of a kept "
            f"one: kboot disks clone MACHINE/NAME {name}"
        )
    return read_image(path, what=what)


class LocalDisks:
    """See `kboot.backend.DiskStore`."""

    place = "on this host"

    def __init__(self, is_on: Callable[[str], bool]) -> None:
        """`is_on` says whether the machine of a name is on."""
        self._is_on = is_on

    def disks(self) -> list[StoredDisk]:
        """All of this host."""
        return [
            StoredDisk(
                name=disk.name,
                machine=disk.machine,
                size_bytes=disk.size_bytes,
                stored_bytes=disk.stored_bytes,
                source=disk.source,
                place=str(disk.path),
                in_use=disk.machine is not None and self._is_on(disk.machine),
            )
            for disk in kept_disks()
        ]

    def remove(self, disk: StoredDisk) -> None:
        """As `remove_kept`."""
        remove_kept(find_kept(disk.label))

    def clone(self, disk: StoredDisk, name: str) -> None:
        """As `clone_kept`."""
        clone_kept(find_kept(disk.label), name)


def _machines() -> Path:
    return _directory("machines")


def _golden() -> Path:
    return _directory("golden")


def _directory(name: str) -> Path:
    directory = state_directory() / "disks" / name
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory
