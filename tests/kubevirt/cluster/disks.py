"""The machines' disks: empty ones, those of images that a registry has, and of volume claims."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tests.kubevirt.cluster import images
from tests.kubevirt.cluster.instances import boots_from_disk, claim_of, volumes_of
from tests.kubevirt.cluster.storage import Storage
from tests.kubevirt.cluster.store import Object

_DEVICES = {"virtio": "virtio-blk-pci", "scsi": "scsi-hd,bus=scsi.0"}


class Disks:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        #: When claims are bound, by their names: seconds after the first pod that wants them.
        self.binding_s: dict[str, float] = {}

    @property
    def images(self) -> dict[str, Path]:
        """What was pushed to the registry, by reference: archives as of ``docker save``."""
        return self._storage.images

    @property
    def claims(self) -> dict[str, Path]:
        """What is on volumes, by the name of the claim: raw disks."""
        return self._storage.claims

    def missing_claim(self, vm: Object) -> str:
        """A claim of the machine's that is not there; empty if it has what it needs."""
        here = vm["metadata"]["namespace"]
        return next((claim for claim in _claims(vm) if not self._storage.has(here, claim)), "")

    def pending(self, vm: Object) -> float:
        """In how many seconds the claims of the machine will be bound."""
        return max((self.binding_s.get(claim, 0.0) for claim in _claims(vm)), default=0.0)

    def missing_image(self, vm: Object) -> tuple[str, str]:
        """The volume and the image of it that no registry has; empty if it has what it needs."""
        for _, volume in volumes_of(vm):
            image = (volume.get("containerDisk") or {}).get("image")
            if image is not None and not self._is_there(image):
                return volume["name"], str(image)
        return "", ""

    def _is_there(self, image: str) -> bool:
        """Whether a node has this image, or can pull it."""
        if image not in self.images:
            archive = (
                self._storage.directory / f"image-{hashlib.sha256(image.encode()).hexdigest()}"
            )
            if images.pull(image, archive):
                self.images[image] = archive
        return image in self.images

    def fault(self, vm: Object) -> str:
        """Why virt-handler cannot have the machine's disks; empty if it can."""
        for _, volume in volumes_of(vm):
            capacity = volume.get("emptyDisk", {}).get("capacity", "1Mi")
            if not capacity.endswith(("Mi", "Gi", "Ti")):
                low = f"the size for volume {volume['name']} is too low"
                return f'server error. command SyncVMI failed: "creating empty disks failed: {low}"'
        return ""

    def prepare(self, vm: Object, directory: Path) -> tuple[str, ...]:
        """QEMU's words for the disks, whose files are made; they go with the launcher pod."""
        words: list[str] = []
        pairs = volumes_of(vm)
        if pairs:
            directory.mkdir(exist_ok=True)
        if any(disk["disk"]["bus"] == "scsi" for disk, _ in pairs):
            words += ["-device", "virtio-scsi-pci,id=scsi"]
        for disk, volume in pairs:
            name, target = disk["name"], disk["disk"]
            file, form = self._file(vm["metadata"]["namespace"], volume, directory / name)
            access = "on" if target.get("readonly") else "off"
            device = f"{_DEVICES[target['bus']]},drive={name}"
            if "serial" in disk:
                device += f",serial={disk['serial']}"
            if "bootOrder" in disk and boots_from_disk(vm):
                device += f",bootindex={disk['bootOrder']}"
            words += ["-drive", f"if=none,id={name},format={form},readonly={access},file={file}"]
            words += ["-device", device]
        return tuple(words)

    def _file(self, here: str, volume: Object, path: Path) -> tuple[Path, str]:
        """The file of a volume, and its format; a layer where what is written is not kept."""
        if "emptyDisk" in volume:
            capacity = volume["emptyDisk"]["capacity"].removesuffix("i")
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, capacity], check=True)
            return path, "qcow2"
        claim = claim_of(volume)
        if claim and "ephemeral" not in volume:
            return self._storage.file_of(here, claim), "raw"
        below = self._storage.file_of(here, claim) if claim else path.with_suffix(".raw")
        if not claim:
            archive = self.images[volume["containerDisk"]["image"]]
            below.write_bytes(images.disk_of(archive))
        words = ("-b", below, "-F", "raw", path)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words], check=True)
        return path, "qcow2"


def _claims(vm: Object) -> list[str]:
    return [claim for _, volume in volumes_of(vm) if (claim := claim_of(volume))]
