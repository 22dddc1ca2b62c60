"""What a virtual machine is made of: values that are the same on every backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kboot import arch, network_cards
from kboot.network_cards import NicModel
from kboot.server_tls import Tls

Firmware = Literal["bios", "uefi"]

#: What a machine's DHCP does: as it should; no boot file, or the name of one that is not there;
#: no answer at all; or one that comes late.
Dhcp = Literal["normal", "no-file", "wrong-file", "silent", "late"]

#: With ``saved``, where the backend can: in a state in which firmware and DHCP are done.
FirmwareStart = Literal["real", "saved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What happens to a machine's packets on its boot network, in both directions."""

    #: The share that is lost.
    loss: float = 0.0
    delay_s: float = 0.0
    #: Those of more bytes are lost without a word; 0 for none.
    mtu: int = 0
    #: ``not-found``: whatever name DNS is asked for, there is none.
    dns: Literal["", "not-found"] = ""


DiskBus = Literal["virtio", "nvme", "scsi"]

#: What a disk begins with: nothing, an image file, an image in a registry, a cluster's volume
#: claim, a disk to be cloned (a golden one), or an entry of a cluster's catalogue (a DataSource).
DiskKind = Literal["blank", "image", "container", "pvc", "clone", "source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A disk of a machine. It begins anew with each power-on; its source is never written to."""

    #: Its serial number in the guest, unique in the machine: ``[a-z0-9-]``, at most 20 characters.
    name: str
    kind: DiskKind
    #: The path or URL of an image, or the name of what else it is; empty for a blank one.
    source: str = ""
    #: None for that of its source.
    size_mib: int | None = None
    read_only: bool = False
    #: Whether what the guest writes outlives the machine's power-off.
    keep: bool = False
    bus: DiskBus = "virtio"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """That a machine is on a network with others; given by `MachineNetwork.link`."""

    #: The network's name, among those of its backend.
    network: str
    #: What the machine is called there.
    member: str
    #: Of a card for this network; None if it is the one that it boots from.
    mac_address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A directory of this host that the guest can mount: ``mount -t 9p TAG /mnt``."""

    #: At most 31 characters; the first share has the tag ``share`` unless it is given.
    tag: str
    #: Absolute.
    path: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """How processors are arranged: sockets, cores in a socket, threads of a core."""

    sockets: int = 1
    cores: int = 1
    threads: int = 1

    @property
    def cpus(self) -> int:
        """How many there are."""
        return self.sockets * self.cores * self.threads


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """Everything about a virtual machine that a test may choose, the same on every backend."""

    #: Unique among the machines of one run; a DNS label: ``[a-z0-9-]``, at most 40 characters.
    name: str = "m0"
    #: The URL in DHCP option 67; the firmware's iPXE fetches it and runs it. Known at power-on.
    boot_file: str = ""
    memory_mib: int = 512
    cpus: int = 1
    firmware: Firmware = "bios"
    #: How it starts from empty memory; a reset always goes through its firmware.
    firmware_start: FirmwareStart = "real"
    #: The architecture as Linux names it (``uname -m``).
    architecture: str = arch.DEFAULT.name
    #: None for one that the backend chooses, and that stays the machine's own through restarts.
    mac_address: str | None = None
    #: Whether the guest's ssh port is to be reached from here, see
    #: `kboot.backend.SshVirtualMachine`.
    ssh: bool = False
    #: Passed to the hypervisor as they are; only the qemu backend takes any.
    extra_arguments: tuple[str, ...] = ()
    #: What boots it from the network, a file; None for what its firmware or its network card has.
    ipxe: Path | None = None
    #: The URL in DHCP option 67 for an iPXE that `boot_file` has another one load; empty where that
    #: one is given it otherwise. Known at power-on.
    loaded_file: str = ""
    dhcp: Dhcp = "normal"

    @property
    def offered_file(self) -> str:
        """The name of the boot file that DHCP gives; empty for none."""
        if self.boot_disk:
            return ""
        names = {"no-file": "", "wrong-file": f"{self.boot_file}.none"}
        return names.get(self.dhcp, self.boot_file)

    disks: tuple[Disk, ...] = ()
    #: The networks that it is on with other machines.
    links: tuple[Link, ...] = ()
    shares: tuple[Share, ...] = ()
    #: None for one that the backend chooses; else of as many processors as `cpus` says.
    topology: Topology | None = None
    #: NUMA nodes, to which processors and memory belong in equal parts.
    numa: int = 1
    #: The size of the huge pages behind its memory, in MiB; 0 for pages as they come.
    hugepages_mib: int = 0
    #: What it boots by: HTTP, or HTTPS with which certificate.
    tls: Tls = "off"
    #: The authority that its firmware is to trust, in PEM. Known at power-on.
    authority: str = ""
    #: None for a network as it should be.
    impairment: Impairment | None = None
    #: The name of the disk that its firmware boots; empty for the network.
    boot_disk: str = ""
    #: Network cards, the one that it boots from among them; those beyond it are on networks of
    #: their own.
    nics: int = 1
    nic_model: NicModel = network_cards.DEFAULT
