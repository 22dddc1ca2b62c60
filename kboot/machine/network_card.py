"""Which network card a machine boots from: that for which its iPXE and its kernel have drivers."""

from __future__ import annotations

from kboot import network_cards
from kboot.config import Config
from kboot.errors import ConfigError
from kboot.kernel import Kernel
from kboot.network_cards import CARDS, NicModel, model_of, read_rom_id
from kboot.rootfs.drivers import may_drive, require_drivers


def nic_model_for(config: Config, kernel: Kernel | None, *, uses_network: bool = False) -> NicModel:
    """The model that the setting `nic_model` means, for a machine with this kernel.

    Its guest uses the network where `uses_network` says so, or the settings do.

    `ConfigError` if the ROM that the setting `ipxe` names is for another one.
    """
    chosen = config.nic_model
    if config.boot == "disk":
        # The kernels in images for clouds have a driver for no other one.
        return "virtio" if chosen == "auto" else chosen
    of_rom = _model_of_rom(config)
    if chosen == "auto":
        uses_network = uses_network or _uses_network(config)
        return of_rom or (_model_of_kernel(kernel) if uses_network else network_cards.DEFAULT)
    if of_rom not in {None, chosen}:
        raise ConfigError(
            f"ipxe: {config.ipxe} is a ROM for the network card {of_rom}, and firmware runs it on "
            f"no other; leave out nic_model = {chosen}"
        )
    return chosen


def require_network_driver(kernel: Kernel, model: NicModel, what: str) -> None:
    """`ConfigError` if it is known that this kernel cannot drive its machine's network card."""
    drivers = CARDS[model].drivers
    require_drivers(
        kernel,
        drivers,
        f"{what} needs the network card ({model})",
        remedy="give another kernel, or another card: nic_model",
    )


def _model_of_rom(config: Config) -> NicModel | None:
    if config.ipxe is None:
        return None
    try:
        return model_of(read_rom_id(config.ipxe))
    except OSError as error:
        raise ConfigError(f"ipxe: {config.ipxe} cannot be read: {error.strerror}") from error


def _uses_network(config: Config) -> bool:
    """Whether the guest does; the tiny system leaves its card alone."""
    return bool(config.rootfs != "tiny" or config.cloud_init or config.channel == "ssh")


def _model_of_kernel(kernel: Kernel | None) -> NicModel:
    """The quickest one that it can drive, as far as its configuration is known."""
    if kernel is None:
        return network_cards.DEFAULT
    can_drive = {
        model: may_drive(kernel, list(CARDS[model].drivers.values())[-1])
        for model in (network_cards.DEFAULT, "virtio")
    }
    lacks_default = can_drive[network_cards.DEFAULT] is False
    return "virtio" if lacks_default and can_drive["virtio"] else network_cards.DEFAULT
