"""The embedded backend: a local QEMU, and a local nginx to boot it from."""

from kboot.qemu.backend import QemuBackend, open_qemu
from kboot.qemu.saved_firmware import GUEST_GATEWAY

__all__ = ["GUEST_GATEWAY", "QemuBackend", "open_qemu"]
