"""QEMU's command line as a function of values."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from kboot import arch
from kboot.arch import Architecture
from kboot.machine_spec import MachineSpec
from kboot.network_cards import CARDS, FLEET_CARD, PciId
from kboot.qemu import processors, shares

Accelerator = Literal["kvm", "tcg"]

#: Where an isolated guest finds the boot server: QEMU passes on connections to it, and no others.
SERVER_ADDRESS = "10.0.2.100"

#: The network behind the hub, of machines whose DHCP does not answer, or whose network is impaired.
UPLINK = "uplink"
#: Of those whose network is impaired: the card's cable and the hub's lead to a switch.
CARD_CABLE = "card"
HUB_CABLE = "hub"
#: The hub's number; the networks that a machine is on with others have small ones.
_DHCP_HUB = 100

#: Of every machine: each has a network of its own, and one that was saved is like those to come.
_MAC_ADDRESS = "52:54:00:6b:62:01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flash:
    """UEFI firmware: its code, shared by all, and one machine's own copy of its variables."""

    code: Path
    variables: Path
    #: What the variables were copied from.
    template: Path
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The guest's memory as a file, for machines that are saved, or start from what was saved."""

    #: As QEMU finds it, such as ``/proc/self/fd/5``.
    path: str
    #: Whether the guest's writes go to the file, or stay with this machine.
    shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipxe:
    """What boots a machine from the network in place of its card's own ROM."""

    path: Path
    #: A ROM for the card, or else a program that the firmware starts: ``ipxe.efi``, ``ipxe.lkrn``.
    is_rom: bool
    #: Of a ROM: the device that it is for; None if it does not say.
    rom_id: PciId | None = None
    #: A program that the card's own iPXE loads: ``undionly.kpxe``.
    is_loaded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """The character devices behind the serial port and the control socket, as QEMU spells them."""

    serial: str
    control: str | None

    @classmethod
    def inherited(cls, *, serial_fd: int, control_fd: int) -> Wiring:
        """Two connected sockets that QEMU inherits: nothing in the file system, no waiting."""
        return cls(serial=f"socket,fd={serial_fd}", control=f"socket,fd={control_fd}")

    @classmethod
    def by_hand(cls) -> Wiring:
        """The serial port on the terminal, for a person who repeats the boot."""
        return cls(serial="stdio,mux=on,signal=off", control=None)


def argv(
    spec: MachineSpec,
    *,
    program: str,
    accelerator: Accelerator,
    wiring: Wiring,
    flash: Flash | None,
    memory: Memory | None = None,
    incoming: bool = False,
    tftp: Path | None = None,
    ipxe: Ipxe | None = None,
    forwarder: str | None = None,
    disks: Sequence[str] = (),
    cables: Mapping[str, str] | None = None,
    authorities: Path | None = None,
) -> list[str]:
    """The command line for a machine. `flash` is for UEFI; None boots the built-in SeaBIOS.

    With `incoming`, it waits for a saved state instead of booting. `tftp` is a folder that the
    guest can read at ``tftp://10.0.2.2/``. `ipxe` boots from the network in place of the card's
    ROM. A `forwarder` isolates the guest: it
    is a busybox, whose ``nc`` leads to the boot server. `disks` are the words for the disks, and
    `cables` the descriptors of sockets to the networks of its links, by name; a card without one is
    not connected. With those of an impaired network, the card that it boots from is at a switch;
    without, as by hand, at a good network. `authorities` is a file with those that UEFI trusts.
    """
    row = arch.of(spec.architecture)
    return [
        program,
        *("-name", f"kboot-{spec.name}", "-no-user-config", "-nodefaults"),
        *_processors_and_memory(spec, row, accelerator, memory),
        *_consoles(wiring),
        *_boot_network(spec, cables or {}, tftp=tftp, ipxe=ipxe, forwarder=forwarder),
        *_more_cards(spec, forwarder),
        *_cards(spec, cables or {}),
        # From its one device or not at all: no tour through other devices after iPXE has given up.
        *("-boot", "strict=on"),
        # A guest that powers off leaves a paused QEMU, which can tell so.
        "-no-shutdown",
        *(("-incoming", "defer") if incoming else ()),
        *_firmware(flash),
        *_trusted(authorities),
        *disks,
        *shares.words(spec.shares),
        *spec.extra_arguments,
    ]


def _processors_and_memory(
    spec: MachineSpec, row: Architecture, accelerator: Accelerator, memory: Memory | None
) -> Iterator[str]:
    if memory is None:
        yield from ("-machine", row.machine)
    else:
        yield from ("-machine", f"{row.machine},memory-backend=ram")
        share = "on" if memory.shared else "off"
        file = f"size={spec.memory_mib}M,mem-path={memory.path},share={share}"
        yield from ("-object", f"memory-backend-file,id=ram,{file}")
    yield from ("-accel", accelerator)
    yield from ("-cpu", "host" if accelerator == "kvm" else row.emulated_cpu)
    yield from processors.words(spec)


def _consoles(wiring: Wiring) -> Iterator[str]:
    yield from ("-display", "none")
    yield from ("-chardev", f"{wiring.serial},id=serial")
    yield from ("-serial", "chardev:serial")
    if wiring.control is not None:
        yield from ("-chardev", f"{wiring.control},id=control")
        yield from ("-mon", "chardev=control,mode=control")


def _boot_network(
    spec: MachineSpec,
    cables: Mapping[str, str],
    *,
    tftp: Path | None,
    ipxe: Ipxe | None,
    forwarder: str | None,
) -> Iterator[str]:
    """The card that the machine boots from, what is behind it, and which iPXE boots there."""
    # The whole trick: DHCP names a URL, and the ROM's iPXE fetches and runs it. A comma in a value
    # is written twice.
    network = f"{_served(spec, tftp)}{_reach(spec, forwarder)}"
    if CARD_CABLE in cables:
        # The card is at a switch, and so is the hub with the network behind it.
        yield from _uplink(network)
        yield from ("-netdev", _stream("wire", cables[HUB_CABLE]))
        yield from ("-netdev", f"hubport,id=hub1,hubid={_DHCP_HUB},netdev=wire")
        yield from ("-netdev", _stream("net0", cables[CARD_CABLE]))
    elif spec.dhcp in {"silent", "late"}:
        # The card is at a hub, and its link up whatever the network behind the hub does.
        yield from _uplink(network)
        yield from ("-netdev", f"hubport,id=net0,hubid={_DHCP_HUB}")
    else:
        yield from ("-netdev", f"user,id=net0{network}")
    mac_address = spec.mac_address or _MAC_ADDRESS
    device, order, rom = CARDS[spec.nic_model].device, ",bootindex=1", ""
    if spec.boot_disk:
        # Nothing boots from it, and firmware does not wait for its ROM.
        order, rom = "", ",romfile="
    elif ipxe is not None and not ipxe.is_loaded:
        rom = f",romfile={_escaped(ipxe.path) if ipxe.is_rom else ''}"
        device = CARDS[spec.nic_model].device_for(ipxe.rom_id)
    card = f"{device},netdev=net0,mac={mac_address}{order}{rom}"
    yield from ("-device", card)
    if ipxe is not None and not ipxe.is_rom and not ipxe.is_loaded:
        # Firmware starts it before it looks at any device, after each reset as well.
        yield from ("-kernel", str(ipxe.path))


def _uplink(network: str) -> Iterator[str]:
    """The network at a hub, for something else to be plugged in there."""
    yield from ("-netdev", f"user,id={UPLINK}{network}")
    yield from ("-netdev", f"hubport,id=hub0,hubid={_DHCP_HUB},netdev={UPLINK}")


def _stream(name: str, cable: str) -> str:
    """A network device whose frames go through a socket."""
    return f"stream,id={name},server=off,addr.type=fd,addr.str={cable}"


def _firmware(flash: Flash | None) -> Iterator[str]:
    if flash is not None:
        yield from ("-drive", _pflash(0, flash.code, flash.format, readonly=True))
        yield from ("-drive", _pflash(1, flash.variables, flash.format, readonly=False))


def _trusted(authorities: Path | None) -> Iterator[str]:
    if authorities is not None:
        # Where OVMF's and AAVMF's TLS look for them, and leave them to others in a variable.
        yield from ("-fw_cfg", f"name=etc/edk2/https/cacerts,file={_escaped(authorities)}")


def _served(spec: MachineSpec, tftp: Path | None) -> str:
    """What the network offers by DHCP and TFTP."""
    words = f",bootfile={_escaped(spec.offered_file)}" if spec.offered_file else ""
    return words if tftp is None else f"{words},tftp={_escaped(tftp)}"


def _more_cards(spec: MachineSpec, forwarder: str | None) -> Iterator[str]:
    """The cards that it does not boot from, each on a network of its own."""
    reach = ",restrict=on" if forwarder is not None else ""
    for number in range(2, spec.nics + 1):
        # As the first one's, which is 10.0.2.0/24, but for the number.
        yield from ("-netdev", f"user,id=nic{number},net=10.0.{number + 1}.0/24{reach}")
        mac_address = f"{_MAC_ADDRESS[:-2]}{number:02x}"
        card = f"{CARDS[spec.nic_model].device},netdev=nic{number},mac={mac_address},romfile="
        yield from ("-device", card)


def _cards(spec: MachineSpec, cables: Mapping[str, str]) -> Iterator[str]:
    """A card for each network that the machine is on with others."""
    for number, link in enumerate(spec.links, 1):
        cable = cables.get(link.network)
        if cable is None:
            yield from ("-netdev", f"hubport,id=net{number},hubid={number}")
        else:
            yield from ("-netdev", _stream(f"net{number}", cable))
        # Nothing to boot from.
        card = f"{FLEET_CARD.device},netdev=net{number},mac={link.mac_address},romfile="
        yield from ("-device", card)


def _reach(spec: MachineSpec, forwarder: str | None) -> str:
    """What the guest reaches, and how it is reached."""
    words = ""
    if forwarder is not None:
        # Neither the services of the host's loopback interface nor what is behind it.
        words += ",restrict=on"
        server = urlsplit(spec.boot_file)
        if server.hostname == SERVER_ADDRESS:
            # A process for each connection: with a character device, all would share a single one.
            there = f"{SERVER_ADDRESS}:{server.port}"
            words += f",guestfwd=tcp:{there}-cmd:{_escaped(forwarder)} nc 127.0.0.1 {server.port}"
    if spec.ssh:
        # QEMU chooses the port, which nobody else can have then, and tells it: `info usernet`.
        words += ",hostfwd=tcp:127.0.0.1:0-:22"
    return words


def as_text(command: list[str]) -> str:
    """A command line for a shell and for reading: each option with its value on a line."""
    return " \\\n    ".join(shlex.join(words) for words in _option_with_value(command)) + "\n"


def _option_with_value(command: list[str]) -> Iterator[list[str]]:
    """The words of a command line, each option together with its value."""
    group: list[str] = []
    for word in command:
        if word.startswith("-") and group:
            yield group
            group = []
        group.append(word)
    yield group


def _pflash(unit: int, path: Path, image_format: str, *, readonly: bool) -> str:
    access = "on" if readonly else "off"
    return f"if=pflash,unit={unit},format={image_format},readonly={access},file={_escaped(path)}"


def _escaped(value: object) -> str:
    return str(value).replace(",", ",,")
