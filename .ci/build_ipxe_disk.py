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
import sys
from pathlib import Path

from kboot import arch
from kboot.arch import Architecture
from kboot.kubevirt.ipxe_disk import container_image, entry, pe_machine, raw_disk, tar
from kboot.kubevirt.registry import ContainerImage, descriptor, to_json


def architecture_of(program: bytes, ipxe: Path) -> Architecture:
    """The one that a UEFI program is for, by its PE header. `ConfigError` if kboot has no such."""
    machine = pe_machine(program) or 0
    return arch.of(arch.name_of_pe(machine) or f"machine {machine:#x}", wanted_by=str(ipxe))


def archive(image: ContainerImage, row: Architecture) -> bytes:
    """An archive with an image for an architecture.

    Of both kinds at once, as Docker saves them since 25.0: an OCI layout (``index.json``), and what
    older programs read (``manifest.json``).
    """
    # What the image is called until somebody names it after a registry.
    suffix = "" if row is arch.DEFAULT else f"-{row.kubevirt}"
    reference = f"localhost/kboot-ipxe{suffix}:1"
    manifest = image.manifest()
    names = {
        "io.containerd.image.name": reference,
        "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor("manifest.v1+json", manifest) | {"annotations": names}],
    }
    older = [
        {
            "Config": _blob(image.config),
            "RepoTags": [reference],
            "Layers": [_blob(layer) for layer in image.layers],
        }
    ]
    return tar(
        [
            (entry("oci-layout"), to_json({"imageLayoutVersion": "1.0.0"})),
            (entry("index.json"), to_json(index)),
            (entry("manifest.json"), to_json(older)),
            *((entry(_blob(blob)), blob) for blob in (image.config, *image.layers, manifest)),
        ]
    )


def _blob(content: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"


def main(ipxe: Path, directory: Path) -> None:
    """Write both files, each at once or not at all."""
    program = ipxe.read_bytes()
    row = architecture_of(program, ipxe)
    raw = raw_disk(program, row)
    directory.mkdir(parents=True, exist_ok=True)
    image = container_image(raw, row)
    for name, content in (("ipxe.img", raw), ("ipxe-disk.tar", archive(image, row))):
        unfinished = directory / f".{name}"
        unfinished.write_bytes(content)
        unfinished.replace(directory / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
