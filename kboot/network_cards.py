"""The models of network card that a machine can boot from, and which of them a ROM is for."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NicModel = Literal["e1000", "e1000e", "ne2k_pci", "rtl8139", "virtio"]

#: iPXE loads about 100 MB/s through it, and 30 MB/s through virtio (ROMs of 2019).
DEFAULT: NicModel = "e1000e"

#: A vendor and a device, as ``lspci -n`` shows them.
PciId = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCard:
    """All that is another one for another model."""

    #: QEMU's devices of this model, the usual one first. ROMs are for one of them.
    devices: Mapping[PciId, str]
    #: Linux's modules for it, and the options that build them in; the one of the card itself last.
    drivers: Mapping[str, str]
    #: QEMU's image of iPXE for it.
    rom: str

    @property
    def modules(self) -> tuple[str, ...]:
        """Linux's modules for it."""
        return tuple(self.drivers)

    @property
    def device(self) -> str:
        """QEMU's usual device of this model."""
        return next(iter(self.devices.values()))

    def device_for(self, rom: PciId | None) -> str:
        """QEMU's device of this model for which that ROM is, or the usual one."""
        return self.device if rom is None else self.devices.get(rom, self.device)


#: By their models, which KubeVirt calls the same. Not with them: pcnet, with which iPXE's downloads
#: come to a stop (QEMU 7.2).
CARDS: Mapping[NicModel, NetworkCard] = {
    "e1000": NetworkCard(
        devices={(0x8086, 0x100E): "e1000"},
        drivers={"e1000": "CONFIG_E1000"},
        rom="efi-e1000.rom",
    ),
    "e1000e": NetworkCard(
        devices={(0x8086, 0x10D3): "e1000e"},
        drivers={"e1000e": "CONFIG_E1000E"},
        rom="efi-e1000e.rom",
    ),
    "ne2k_pci": NetworkCard(
        devices={(0x10EC, 0x8029): "ne2k_pci"},
        drivers={"ne2k-pci": "CONFIG_NE2K_PCI"},
        rom="efi-ne2k_pci.rom",
    ),
    "rtl8139": NetworkCard(
        devices={(0x10EC, 0x8139): "rtl8139"},
        drivers={"8139cp": "CONFIG_8139CP"},
        rom="efi-rtl8139.rom",
    ),
    "virtio": NetworkCard(
        devices={
            (0x1AF4, 0x1000): "virtio-net-pci",
            (0x1AF4, 0x1041): "virtio-net-pci,disable-legacy=on",
        },
        drivers={"virtio_pci": "CONFIG_VIRTIO_PCI", "virtio_net": "CONFIG_VIRTIO_NET"},
        rom="efi-virtio.rom",
    ),
}


#: What a machine is on a network with others by. e1000e does not tell its guest that a cable was
#: pulled (QEMU 7.2).
FLEET_MODEL: NicModel = "virtio"
FLEET_CARD = CARDS[FLEET_MODEL]


def model_of(rom: PciId | None) -> NicModel | None:
    """The model that has a device for which that ROM is; None if none has."""
    return next((model for model, card in CARDS.items() if rom in card.devices), None)


def read_rom_id(path: Path) -> PciId | None:
    """The device that an option ROM is for, by the header that firmware looks at; None if there is
    no such header (PCI Firmware Specification 3.0, 5.1).

    `OSError` if the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(65536)
    try:
        (at,) = struct.unpack_from("<H", head, 0x18)
        signature, vendor, device = struct.unpack_from("<4sHH", head, at)
    except struct.error:
        return None
    return (vendor, device) if head[:2] == b"\x55\xaa" and signature == b"PCIR" else None


def read_rom_firmwares(path: Path) -> frozenset[Literal["bios", "uefi"]]:
    """The firmwares that an option ROM has an image for, by the headers of its images; none where
    these cannot be followed to the last one (PCI Firmware Specification 3.0, 5.1).

    `OSError` if the file cannot be read.
    """
    data = path.read_bytes()
    found: set[Literal["bios", "uefi"]] = set()
    at = 0
    while data[at : at + 2] == b"\x55\xaa":
        (offset,) = struct.unpack_from("<H", data.ljust(at + 0x1A, b"\0"), at + 0x18)
        header = data[at + offset : at + offset + 0x16]
        if len(header) < 0x16 or header[:4] != b"PCIR":
            break
        (blocks,) = struct.unpack_from("<H", header, 0x10)
        code, indicator = header[0x14], header[0x15]
        if code in _ROM_CODES:
            found.add(_ROM_CODES[code])
        if indicator & 0x80:
            return frozenset(found)
        at += blocks * 512 or len(data)
    return frozenset()


#: What the images of an option ROM are for, by their type of code.
_ROM_CODES: Mapping[int, Literal["bios", "uefi"]] = {0: "bios", 3: "uefi"}
