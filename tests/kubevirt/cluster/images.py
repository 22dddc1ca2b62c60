"""Container images that hold a disk, as ``docker load`` and KubeVirt take them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

#: Of QEMU in KubeVirt's pods: a disk of anybody else it cannot read.
_QEMU = 107


def reference(archive: Path) -> str:
    """What the image in an archive is called."""
    with tarfile.open(archive) as outer:
        (image,) = json.loads(_read(outer, "manifest.json"))
    (name,) = image["RepoTags"]
    return str(name)


def disk_of(archive: Path) -> bytes:
    """The disk in an image: the one file below ``/disk``."""
    with tarfile.open(archive) as outer:
        (image,) = json.loads(_read(outer, "manifest.json"))
        (layer,) = [_read(outer, name) for name in image["Layers"]]
    with tarfile.open(fileobj=io.BytesIO(layer)) as inner:
        (disk,) = [entry for entry in inner if entry.isfile()]
        assert Path(disk.name).parent == Path("disk")
        assert (disk.uid, disk.gid) == (_QEMU, _QEMU)
        assert disk.mode & 0o400
        assert disk.size % 512 == 0
        return _read(inner, disk.name)


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def disk_image(archive: Path, name: str, disk: bytes) -> None:
    """Write an image with this raw disk in it, as ``docker save`` would."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as inner:
        entry = tarfile.TarInfo("disk/disk.img")
        entry.size, entry.mode, entry.uid, entry.gid = len(disk), 0o440, _QEMU, _QEMU
        inner.addfile(entry, io.BytesIO(disk))
    listing = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {"manifest.json": json.dumps(listing).encode(), "layer.tar": layer.getvalue()}
    with tarfile.open(archive, "w") as outer:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            outer.addfile(entry, io.BytesIO(content))
