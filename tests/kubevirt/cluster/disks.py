"""The disks that machines boot from: of images that a registry has, and of volume claims."""

from __future__ import annotations

from pathlib import Path

from tests.kubevirt.cluster import images
from tests.kubevirt.cluster.instances import boot_disk
from tests.kubevirt.cluster.store import Object


class Disks:
    def __init__(self) -> None:
        #: What was pushed to the registry, by reference: archives as of ``docker save``.
        self.images: dict[str, Path] = {}
        #: What is on volumes, by the name of the claim: raw disks.
        self.claims: dict[str, Path] = {}
        #: When claims are bound, by their names: seconds after the first pod that wants them.
        self.binding_s: dict[str, float] = {}

    def missing_claim(self, vm: Object) -> str:
        """The claim of a machine's disk that is not there; empty if it has what it needs."""
        claim = ((boot_disk(vm) or {}).get("persistentVolumeClaim") or {}).get("claimName", "")
        return "" if claim in self.claims else str(claim)

    def pending(self, vm: Object) -> float:
        """In how many seconds the claim of a machine's disk will be bound."""
        claim = ((boot_disk(vm) or {}).get("persistentVolumeClaim") or {}).get("claimName", "")
        return self.binding_s.get(claim, 0.0)

    def missing_image(self, vm: Object) -> str:
        """The image of a machine's disk that no registry has; empty if it has what it needs."""
        image = ((boot_disk(vm) or {}).get("containerDisk") or {}).get("image", "")
        return "" if image in self.images else str(image)

    def prepare(self, vm: Object, directory: Path) -> Path | None:
        """A file with the disk that the machine boots from, or None if it boots from its card."""
        volume = boot_disk(vm)
        if volume is None:
            return None
        if claim := volume.get("persistentVolumeClaim"):
            return self.claims[claim["claimName"]]
        directory.mkdir()
        disk = directory / "disk.img"
        disk.write_bytes(images.disk_of(self.images[volume["containerDisk"]["image"]]))
        return disk
