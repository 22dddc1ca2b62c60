"""The disk that UEFI starts a user's iPXE from, and how a cluster's machines come by it.

UEFI takes no program for its network boot but from a disk: one with a partition table and an EFI
system partition. Where there is a registry, it is a container image there; else a claim of the run,
which CDI fills from the boot server. The same iPXE is the same disk, and is brought once.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kboot import arch, process
from kboot.arch import Architecture
from kboot.cache import keep_directory
from kboot.config import ClusterConfig
from kboot.errors import ConfigError
from kboot.kubevirt import claims, manifests
from kboot.kubevirt.api import Client
from kboot.kubevirt.api.errors import NO_CDI
from kboot.kubevirt.manifests import Run
from kboot.kubevirt.registry import ContainerImage, Repository, push, to_json
from kboot.log import step
from kboot.machine_spec import Disk, MachineSpec
from kboot.state import cache_directory

_SECTOR = 512
_FIRST_SECTOR = 2048
_PARTITION_SECTORS = 14 * 1024
#: Of the EFI system partition in a partition table of the old kind, which every UEFI reads.
_ESP_TYPE = 0xEF
_VOLUME_ID = "6b626f74"
#: The time of everything in it: that of iPXE's own files says nothing.
_EPOCH = 1_577_836_800
_MTOOLS_LIMIT_S = 60.0
#: With another one, the same iPXE makes another disk.
_LAYOUT = b"1"

#: QEMU's user and group in KubeVirt's pods.
_QEMU = 107
_IMAGE = "kboot-ipxe"
_FILE = "ipxe.img"
#: Of the claim, which has a file system, and perhaps the least size that its storage makes.
_CLAIM_MIB = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class IpxeDisk:
    """The disk of one iPXE."""

    ipxe: Path
    #: What is in that file; it may be built anew at any time.
    program: bytes = field(repr=False)
    architecture: Architecture
    #: What tells it from the disks of other ones.
    key: str

    @classmethod
    def of(cls, spec: MachineSpec) -> Self | None:
        """The one that a machine boots from; None if it has no iPXE of its own, or a BIOS.

        `ConfigError` if the file is no UEFI program for the machine.
        """
        if spec.ipxe is None or spec.firmware != "uefi" or spec.boot_disk:
            return None
        try:
            content = spec.ipxe.read_bytes()
        except OSError as error:
            raise ConfigError(f"ipxe: {spec.ipxe} cannot be read: {error.strerror}") from error
        machine = pe_machine(content)
        if machine is None:
            raise ConfigError(
                f"ipxe: {spec.ipxe} is no UEFI program; a UEFI machine on a cluster starts its "
                "iPXE from a disk: give the ipxe.efi of the same build"
            )
        row = arch.of(spec.architecture)
        if machine != row.pe_machine:
            raise ConfigError(f"ipxe: {spec.ipxe} is not for {row.name}")
        key = hashlib.sha256(_LAYOUT + content).hexdigest()[:32]
        return cls(ipxe=spec.ipxe, program=content, architecture=row, key=key)

    def place(self, run: Run, settings: ClusterConfig) -> str:
        """Where it is, or will be, on the cluster: as the setting `cluster_ipxe_disk` says it."""
        if settings.cluster_registry:
            return _repository(settings).reference(self.key)
        return f"pvc:{self._claim(run)}"

    def bring(
        self, client: Client, run: Run, settings: ClusterConfig, publish: Callable[[Path], str]
    ) -> None:
        """Have it there. `publish` puts a file on the boot server and returns its URL.

        `ConfigError` if there is no way, `InfraError` if it fails.
        """
        if settings.cluster_registry:
            with step(f"push {self.place(run, settings)}"):
                push(_repository(settings), self.key, self._container_image)
            return
        if not claims.has_cdi(client):
            raise ConfigError(
                f"ipxe: a UEFI machine on a cluster starts {self.ipxe} from a disk, and {NO_CDI}: "
                "name a registry that it pulls from, --cluster-registry REGISTRY/PATH, or have an "
                "administrator install CDI"
            )
        url = publish(self.file())
        disk = Disk(name="ipxe", kind="image", source=url, size_mib=_CLAIM_MIB)
        own = manifests.labels(run.identifier, component=claims.OF_RUN)
        metadata = manifests.owned(run, own, self._claim(run))
        metadata["annotations"] = {claims.SOURCE: claims.origin(disk)}
        claims.ensure(client, metadata, disk, settings, cdi=True)

    def file(self) -> Path:
        """The disk itself, raw, in the cache. `InfraError` if there are no mtools."""

        def fill(directory: Path) -> None:
            (directory / _FILE).write_bytes(raw_disk(self.program, self.architecture))

        return keep_directory(cache_directory("ipxe-disks") / self.key, fill) / _FILE

    def _container_image(self) -> ContainerImage:
        return container_image(self.file().read_bytes(), self.architecture)

    def _claim(self, run: Run) -> str:
        return manifests.object_name(run.identifier, f"ipxe-{self.key[:16]}")


def pe_machine(program: bytes) -> int | None:
    """For which machines a UEFI program is, the number in its PE header; None if it is none."""
    at = int.from_bytes(program[0x3C:0x40], "little")
    if program[:2] != b"MZ" or program[at : at + 4] != b"PE\0\0":
        return None
    return int.from_bytes(program[at + 4 : at + 6], "little")


def raw_disk(ipxe: bytes, row: Architecture) -> bytes:
    """A disk whose EFI system partition starts `ipxe`, on any machine of its architecture.

    The same iPXE gives the same bytes. `InfraError` if there are no mtools, `ProcessError` if the
    program is too large for it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        image, program = Path(scratch, "image"), Path(scratch, row.efi_boot_name)
        image.write_bytes(bytes((_FIRST_SECTOR + _PARTITION_SECTORS) * _SECTOR))
        program.write_bytes(ipxe)
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


def container_image(content: bytes, row: Architecture) -> ContainerImage:
    """An image with `content` as KubeVirt's containerDisk wants it: a disk, and nothing else."""
    layer = tar(
        [
            entry("disk/", mode=0o555, owner=_QEMU),
            (entry(f"disk/{_FILE}", mode=0o440, owner=_QEMU), content),
        ]
    )
    config = {
        "created": "2020-01-01T00:00:00Z",
        # The names of Go, as KubeVirt's are.
        "architecture": row.kubevirt,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    return ContainerImage(config=to_json(config), layers=(layer,))


def entry(name: str, *, mode: int = 0o444, owner: int = 0) -> tarfile.TarInfo:
    """A file in an archive, or a directory, whose name ends in a slash."""
    found = tarfile.TarInfo(name.rstrip("/"))
    found.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
    found.mode, found.uid, found.gid, found.mtime = mode, owner, owner, _EPOCH
    return found


def tar(entries: list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An archive of these entries."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for each in entries:
            head, content = each if isinstance(each, tuple) else (each, b"")
            head.size = len(content)
            archive.addfile(head, io.BytesIO(content))
    return whole.getvalue()


# ------------------------------------------------------------------------------------------ inside


def _repository(settings: ClusterConfig) -> Repository:
    return Repository.parse(settings.cluster_registry, _IMAGE)


def _mtools(*command: str) -> None:
    environment: dict[str, Any] = {
        "SOURCE_DATE_EPOCH": str(_EPOCH),
        "TZ": "UTC",
        "MTOOLSRC": "/dev/null",
    }
    process.run(command, timeout_s=_MTOOLS_LIMIT_S, env=environment)
