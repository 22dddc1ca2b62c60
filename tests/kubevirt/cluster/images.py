"""Container images that hold a disk, as ``docker load`` and KubeVirt take them."""

from __future__ import annotations

import io
import json
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

#: Of QEMU in KubeVirt's pods: a disk of anybody else it cannot read.
_QEMU = 107
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


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


def pull(reference: str, archive: Path, *, authorization: str = "") -> bool:
    """Fetch an image from a registry on this host, as a node does; False if that has none."""
    host, _, rest = reference.partition("/")
    name, _, tag = rest.rpartition(":")
    if not host.startswith("127.0.0.1:"):
        return False

    def get(path: str) -> bytes:
        headers = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        if authorization:
            headers["Authorization"] = authorization
        request = urllib.request.Request(f"http://{host}/v2/{name}/{path}", headers=headers)
        with _DIRECT.open(request, timeout=10) as answer:
            return bytes(answer.read())

    try:
        (layer,) = json.loads(get(f"manifests/{tag}"))["layers"]
    except (urllib.error.URLError, TimeoutError):
        return False
    with tarfile.open(fileobj=io.BytesIO(get(f"blobs/{layer['digest']}"))) as inner:
        folder, file = inner.getmembers()
        assert (folder.name, Path(file.name).parent) == ("disk", Path("disk"))
        # QEMU could not read it.
        assert {folder.uid, file.uid, folder.gid, file.gid} == {_QEMU}
        disk_image(archive, reference, _read(inner, file.name))
    return True


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
