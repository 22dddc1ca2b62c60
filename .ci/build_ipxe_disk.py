"""Build the disk that UEFI machines on a cluster boot iPXE from, raw and as a container image.

    build_ipxe_disk.py IPXE.EFI DIRECTORY

writes ``ipxe.img``, a disk with a partition table and an EFI system partition, for a volume claim;
and ``ipxe-disk.tar``, the same as KubeVirt's containerDisk wants it (``/disk/ipxe.img`` of user 107
in an image that has nothing else), for ``docker load``, ``podman load``, ``skopeo copy
docker-archive:`` and ``ctr images import``. The same iPXE gives the same bytes. Disk and image are
for the architecture that the program is for. Needs mtools.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from kboot import arch
from kboot.arch import Architecture

_SECTOR = 512
_FIRST_SECTOR = 2048
_PARTITION_SECTORS = 14 * 1024
#: Of the EFI system partition in a partition table of the old kind, which every UEFI reads.
_ESP_TYPE = 0xEF
_VOLUME_ID = "6b626f74"

#: The time of everything in the image: that of iPXE's own files says nothing.
_EPOCH = 1_577_836_800

#: QEMU's user and group in KubeVirt's pods.
_QEMU = 107


def architecture_of(ipxe: Path) -> Architecture:
    """The one that a UEFI program is for, by its PE header. `ConfigError` if kboot has no such."""
    content = ipxe.read_bytes()
    at = int.from_bytes(content[0x3C:0x40], "little")
    machine = int.from_bytes(content[at + 4 : at + 6], "little")
    return arch.of(arch.name_of_pe(machine) or f"machine {machine:#x}", wanted_by=str(ipxe))


def disk(ipxe: Path, row: Architecture) -> bytes:
    """A disk whose EFI system partition starts `ipxe`, on any machine of its architecture."""
    with tempfile.TemporaryDirectory() as scratch:
        image, program = Path(scratch, "image"), Path(scratch, row.efi_boot_name)
        image.write_bytes(bytes((_FIRST_SECTOR + _PARTITION_SECTORS) * _SECTOR))
        shutil.copyfile(ipxe, program)
        os.utime(program, (_EPOCH, _EPOCH))
        partition = f"{image}@@{_FIRST_SECTOR * _SECTOR}"
        size = ["-T", str(_PARTITION_SECTORS), "-h", "2", "-s", "63", "-H", str(_FIRST_SECTOR)]
        _mtools("mformat", "-i", partition, *size, "-N", _VOLUME_ID, "-v", "KBOOT-IPXE", "::")
        _mtools("mmd", "-i", partition, "::/EFI", "::/EFI/BOOT")
        _mtools("mcopy", "-m", "-i", partition, str(program), f"::/EFI/BOOT/{program.name}")
        content = bytearray(image.read_bytes())
    # One entry: not active, no cylinders and heads to speak of, type, first sector and length.
    nowhere = b"\xfe\xff\xff"
    entry = struct.pack(
        "<B3sB3sII", 0, nowhere, _ESP_TYPE, nowhere, _FIRST_SECTOR, _PARTITION_SECTORS
    )
    content[446:462] = entry
    content[510:512] = b"\x55\xaa"
    return bytes(content)


def container_image(content: bytes, row: Architecture) -> bytes:
    """An archive with an image for an architecture that holds `content` as its disk.

    Of both kinds at once, as Docker saves them since 25.0: an OCI layout (``index.json``), and what
    older programs read (``manifest.json``).
    """
    # What the image is called until somebody names it after a registry.
    suffix = "" if row is arch.DEFAULT else f"-{row.kubevirt}"
    reference = f"localhost/kboot-ipxe{suffix}:1"
    layer = _tar(
        [
            _entry("disk/", mode=0o555, owner=_QEMU),
            (_entry("disk/ipxe.img", mode=0o440, owner=_QEMU), content),
        ]
    )
    config = _json(
        {
            "created": "2020-01-01T00:00:00Z",
            # The names of Go, as KubeVirt's are.
            "architecture": row.kubevirt,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
        }
    )
    kind = "application/vnd.oci.image"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": _descriptor(f"{kind}.config.v1+json", config),
            "layers": [_descriptor(f"{kind}.layer.v1.tar", layer)],
        }
    )
    names = {
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
    }
    index = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.index.v1+json",
        "manifests": [_descriptor(f"{kind}.manifest.v1+json", manifest) | {"annotations": names}],
    }
    older = [{"Config": _blob(config), "RepoTags": [reference], "Layers": [_blob(layer)]}]
    return _tar(
        [
            (_entry("oci-layout"), _json({"imageLayoutVersion": "1.0.0"})),
            (_entry("index.json"), _json(index)),
            (_entry("manifest.json"), _json(older)),
            *((_entry(_blob(blob)), blob) for blob in (config, layer, manifest)),
        ]
    )


def _mtools(*command: str) -> None:
    environment = os.environ | {
        "SOURCE_DATE_EPOCH": str(_EPOCH),
        "TZ": "UTC",
        "MTOOLSRC": "/dev/null",
    }
    subprocess.run(command, check=True, env=environment)


def _entry(name: str, *, mode: int = 0o444, owner: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name.rstrip("/"))
    entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    entry.mode, entry.uid, entry.gid, entry.mtime = mode, owner, owner, _EPOCH
    return entry


def _tar(entries: list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for each in entries:
            entry, content = each if isinstance(each, tuple) else (each, b"")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return whole.getvalue()


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{_sha256(blob)}", "size": len(blob)}


def _blob(content: bytes) -> str:
    return f"blobs/sha256/{_sha256(content)}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def main(ipxe: Path, directory: Path) -> None:
    """Write both files, each at once or not at all."""
    row = architecture_of(ipxe)
    raw = disk(ipxe, row)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (("ipxe.img", raw), ("ipxe-disk.tar", container_image(raw, row))):
        unfinished = directory / f".{name}"
        unfinished.write_bytes(content)
        unfinished.replace(directory / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
