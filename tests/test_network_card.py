"""Which network card a machine gets, by what is asked for, its iPXE's ROM and its kernel."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from kboot.config import Config
from kboot.errors import ConfigError
from kboot.kernel import read_kernel
from kboot.machine.network_card import nic_model_for
from kboot.network_cards import CARDS, NicModel, PciId, model_of, read_rom_id

#: Where distributions have QEMU's ROMs.
PLACES = (Path("/usr/share/qemu"), Path("/usr/lib/ipxe/qemu"))


def rom(path: Path, device: PciId) -> Path:
    """An option ROM for this device, as far as its header."""
    header = bytearray(64)
    header[:3] = b"\x55\xaa\x01"
    struct.pack_into("<H", header, 0x18, 0x1C)
    struct.pack_into("<4sHH", header, 0x1C, b"PCIR", *device)
    path.write_bytes(header)
    return path


@pytest.mark.parametrize("model", CARDS)
def test_qemus_own_roms_are_for_the_cards_whose_names_they_have(model: NicModel) -> None:
    (path, *_) = [path for place in PLACES if (path := place / CARDS[model].rom).is_file()]
    # That of ne2k_pci names no device.
    assert model_of(read_rom_id(path)) == (None if model == "ne2k_pci" else model)


def test_a_file_without_the_header_is_for_no_card(tmp_path: Path) -> None:
    for content in (b"", b"\x55\xaa", bytes(64), b"\x55\xaa" + bytes(22) + b"\xff\xff"):
        (tmp_path / "x.rom").write_bytes(content)
        assert read_rom_id(tmp_path / "x.rom") is None
    assert model_of(None) is None


def test_a_rom_brings_the_card_that_it_is_for(tmp_path: Path) -> None:
    own = rom(tmp_path / "own.rom", (0x10EC, 0x8139))
    assert nic_model_for(Config(ipxe=own), None) == "rtl8139"
    assert nic_model_for(Config(ipxe=own, nic_model="rtl8139"), None) == "rtl8139"
    with pytest.raises(
        ConfigError, match=r"own.rom is a ROM for .* rtl8139, .* nic_model = virtio"
    ):
        nic_model_for(Config(ipxe=own, nic_model="virtio"), None)
    # Of a card that machines do not have: whoever brings it has added the card as well.
    other = rom(tmp_path / "other.rom", (0x15AD, 0x07B0))
    assert nic_model_for(Config(ipxe=other), None) == "e1000e"
    with pytest.raises(ConfigError, match=r"none.rom cannot be read: No such file"):
        nic_model_for(Config(ipxe=tmp_path / "none.rom"), None)


@pytest.mark.parametrize(
    ("options", "model"),
    [
        (("CONFIG_E1000E=y", "CONFIG_VIRTIO_NET=y"), "e1000e"),
        (("CONFIG_E1000E=m", "CONFIG_VIRTIO_NET=y"), "e1000e"),
        (("# CONFIG_E1000E is not set", "CONFIG_VIRTIO_NET=m"), "virtio"),
        (("CONFIG_VIRTIO_NET=y",), "virtio"),
        # It has no driver for either, and iPXE is quickest with this one.
        (("CONFIG_8139CP=y",), "e1000e"),
    ],
)
def test_a_kernel_brings_a_card_that_it_can_drive(
    options: tuple[str, ...], model: NicModel, second_kernel: Path, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text("".join(f"{option}\n" for option in options))
    kernel = replace(read_kernel(second_kernel), config_file=tmp_path / "config")
    for config in (Config(rootfs="debian"), Config(channel="ssh")):
        assert nic_model_for(config, kernel) == model
    assert nic_model_for(Config(), kernel, uses_network=True) == model
    assert nic_model_for(Config(rootfs="debian", nic_model="e1000"), kernel) == "e1000"
    # The tiny system uses no network.
    assert nic_model_for(Config(), kernel) == "e1000e"


def test_a_machine_that_boots_from_its_disk_has_the_card_of_clouds(tmp_path: Path) -> None:
    own = rom(tmp_path / "own.rom", (0x10EC, 0x8139))
    assert nic_model_for(Config(boot="disk", ipxe=own), None) == "virtio"
    assert nic_model_for(Config(boot="disk", nic_model="e1000"), None) == "e1000"
