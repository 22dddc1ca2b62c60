"""What firmware, iPXE, the kernel and a login print on the serial line, and how each is recognized.

Each kind of line has its one definition here. A line that only resembles one (a program's words, a
quotation, a line that lost characters) is not taken for it, or not taken for a proof.

Pure. All take a line as `kboot.console` gives it: without escape sequences and its newline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

# ------------------------------------------------------------------------------- kernel messages

#: As print_time() and print_caller() in kernel/printk/printk.c write them.
_STAMP = re.compile(
    r"(?P<level><\d+>)?\[ *(?P<time>\d{1,11}\.\d{1,6})\](?:\[ *[TC]\d+(?:/[TC]?\d+)?\])? "
)
#: A kernel message behind a prompt: ``login: [   12.345678] random: crng init done``.
MESSAGE_BEHIND = r"(?:<\d+>)?\[ *\d+\.\d+\]"

#: The banner as init/version.c makes it: release, who built it, with what, and when.
_WHOLE_BANNER = re.compile(
    r"Linux version (?P<release>\d+\.\d+[^\s()@]*) \([^\s()]+\) \(.+\) #\d+(?: .*)?"
)
_BANNER = re.compile(r"Linux version \d+\.\d+\S* \(")
_BANNER_OF_LOG = re.compile(r"Linux version \d+\.\d+.*\(.*#\d")
_COMMAND_LINE = re.compile(r"(?:Kernel c|C)ommand line: (.*)")
_NONCE = re.compile(r"(?:^|\s)kboot\.nonce=([0-9a-f]+)(?=\s|$)")
_RUN_INIT = re.compile(r"Run /\S+ as init process$")
_SYSTEMD = re.compile(r"systemd\[1\]: ")
_REBOOTING = re.compile(r"Rebooting in (\d+) seconds")
#: With the time or without, what a kernel says last before a reset that was asked for.
_GOODBYE = re.compile(
    r"reboot: |Restarting system|Rebooting in |(?:kexec_core: )?Starting new kernel"
    r"|[Ss]ysrq: Resetting|Starting crashdump kernel|systemd-shutdown.*(?:Rebooting|Powering off)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelMessage:
    """A line with the kernel's own stamp."""

    #: Seconds since the kernel's start.
    time_s: float
    text: str
    #: Whether the stamp begins the line, or stands behind what firmware has left there.
    in_its_place: bool


def kernel_message(line: str) -> KernelMessage | None:
    """The kernel's words in a line, behind its last stamp; None for a line without one.

    A stamp behind a printk level (``<5>[    0.000000]``) is of a log that a program prints.
    """
    stamps = list(_STAMP.finditer(line)) if "[" in line else []
    if not stamps or stamps[-1]["level"]:
        return None
    stamp = stamps[-1]
    before = line[: stamp.start()].strip()
    # EDD's line has no end (arch/x86/boot/edd.c); a terminal's reset may leave a letter.
    return KernelMessage(
        time_s=float(stamp["time"]),
        text=line[stamp.end() :],
        in_its_place=len(before) < 3 or "EDD" in before,
    )


def last_time_s(text: str) -> float | None:
    """The last time that the kernel has told in this text, whoever has put what around it."""
    times = _STAMP.findall(text) if "[" in text else []
    return float(times[-1][1]) if times else None


def from_last_stamp(line: str) -> str:
    """A line from the kernel's last stamp on, which is as good as unique; empty without one."""
    stamps = list(_STAMP.finditer(line)) if "[" in line else []
    return line[stamps[-1].start() :].rstrip() if stamps else ""


def has_level(line: str) -> bool:
    """Whether a printk level stands before the kernel's time, which no console shows."""
    return any(level for level, _ in _STAMP.findall(line))


def whole_banner(text: str) -> str | None:
    """The release in a kernel's first line, if nothing of the line is missing."""
    match = _WHOLE_BANNER.fullmatch(text)
    return match["release"] if match else None


def has_banner(line: str) -> bool:
    """Whether a kernel's first line is in this one, whole or not, behind whatever."""
    return _BANNER.search(line) is not None


def begins_with_banner(text: str) -> bool:
    """Whether a log's line, without its prefixes, is a kernel's first one."""
    return _BANNER_OF_LOG.match(text) is not None


def command_line(text: str) -> str | None:
    """The command line in a kernel's message about it: the whole text, without any prefix."""
    match = _COMMAND_LINE.match(text)
    return match[1] if match else None


def nonce_in(parameters: str) -> str | None:
    """The nonce of the boot script in a kernel's command line."""
    match = _NONCE.search(parameters)
    return match[1] if match else None


def starts_init(line: str) -> bool:
    """Whether the kernel says that user space begins, or user space that it has begun."""
    message = kernel_message(line)
    text = message.text if message else line
    return bool(_RUN_INIT.match(text) or _SYSTEMD.match(text) or line == "kboot: init")


#: What the kernel says of an initramfs, and what helps (init/initramfs.c, lib/decompress_*.c).
_UNPACKING_FAILED = "Initramfs unpacking failed: "
_UNPACKING_REMEDIES = {
    "write error": "give the machine more memory",
    "XZ decoder": "compress it by xz --check=crc32",
    "compression method": "the kernel was built without it (CONFIG_RD_...)",
}


def given_up(line: str) -> str | None:
    """Why an initramfs could not be gone on with, as our own or the kernel says; else None."""
    if "kboot: " not in line and _UNPACKING_FAILED not in line:
        return None
    message = kernel_message(line)
    if message is None:
        return None
    if message.text.startswith("kboot: "):
        return message.text.removeprefix("kboot: ")
    if message.text.startswith(_UNPACKING_FAILED):
        remedies = (words for sign, words in _UNPACKING_REMEDIES.items() if sign in message.text)
        return "; ".join([message.text, *remedies])
    return None


def reboot_delay_s(line: str) -> int | None:
    """The seconds after which a kernel that panicked will reboot, where the line says that."""
    match = _REBOOTING.search(line)
    return int(match[1]) if match else None


def is_goodbye(text: str) -> bool:
    """Whether a log's line, without its prefixes, announces a reset."""
    return _GOODBYE.match(text) is not None


_LOG_ON_DEMAND = re.compile(r"\b(?:dmesg|journalctl)\b")


def asks_for_log(text: str) -> bool:
    """Whether somebody has the kernel's log printed again."""
    return _LOG_ON_DEMAND.search(text) is not None


_MACHINE_WITHIN = re.compile(r"\bqemu-system-\w+\s")


def starts_machine_within(text: str) -> bool:
    """Whether somebody starts another machine from this one, on this one's console."""
    return _MACHINE_WITHIN.search(text) is not None


# ------------------------------------------------------------------------------ firmware and iPXE

#: A firmware's first words. They end their line; what stood there before may be left.
_SEABIOS = r"SeaBIOS \(version [\w.+~-]+\)$"
#: EDK II's, U-Boot's, OpenSBI's, coreboot's stages. They begin their line: ``ver=U-Boot 2020.01``
#: is none.
_FIRMWARE_BEGINS = (
    r"UEFI firmware \(version .+\)?"
    r"|BdsDxe: (?:loading|starting|failed to (?:load|start)) Boot[0-9A-F]{4} "
    r"|U-Boot (?:SPL |TPL )?20\d\d\.\d\d"
    r"|OpenSBI v\d+\.\d+\S*$"
    r"|coreboot-\S+ .*\b(?:bootblock|romstage|verstage) starting"
)
_FIRMWARE = re.compile(rf"{_SEABIOS}|^(?:{_FIRMWARE_BEGINS})")
#: What comes soon after it, and from no running system.
_LOADER = re.compile(
    r"iPXE initialising devices|iPXE \S+ -- Open Source Network Boot Firmware"
    r"|iPXE \(https?://ipxe\.org\) |iPXE \(PCI [0-9A-Fa-f:.]+\) starting execution"
    r"|Booting from (?:ROM|Hard Disk|DVD/CD|Floppy)\b|Machine UUID [0-9a-f]{8}-"
    r"|Hit any key to stop autoboot|>>Start (?:PXE|HTTP Boot) over "
    r"|BdsDxe: (?:loading|starting|failed to (?:load|start)) Boot[0-9A-F]{4} "
)
#: U-Boot's last words, and those of a kernel that UEFI has started.
_KERNEL_TAKES_OVER = re.compile(r"Starting kernel \.\.\.$|EFI stub: Exiting boot services\b")
#: The code in front of a compressed kernel; the second line may be all that is left of the first.
_UNPACKING = re.compile(r"(?:Dec|Unc)ompressing Linux\.\.\.|Booting the kernel(?:\.$| \()")

_IPXE_BANNER = re.compile(r"\biPXE (\S+(?: \([0-9a-g]+\))?) -- Open Source Network Boot Firmware")
_COLUMNS = 80

_DHCP = re.compile(r"net\d+: \d+\.\d+\.\d+\.\d+/|Filename: ")
_SCRIPT = re.compile(r"kboot: script (\w+)")
_HANDOFF = re.compile(r"kboot: handoff (\w+)")
_STOPPED = re.compile(r"kboot: stopped (kernel|initrd\d+|boot) (0x[0-9a-f]+)")
_GAVE_UP = re.compile(
    r"No more network devices|No bootable device|PXE-E\d\d: .*|NBP filesize is 0 "
    r"|>>Start (?:PXE|HTTP Boot) over IPv6"
)


#: SeaBIOS, EDK II and its shell, and GRUB, where a disk has nothing that they could start.
_NOT_BOOTABLE = re.compile(
    r"No bootable (?:device|option or device).*|Boot failed: .*"
    r"|(?:EFI Internal|UEFI Interactive) Shell|(?:Entering rescue mode|grub rescue>).*"
)

#: One of these is in every line that begins a boot, ends one, or asks for a kernel's log.
RESET_LITERALS = (
    *(b"SeaBIOS (version", b"UEFI firmware (version", b"BdsDxe: ", b"U-Boot ", b"coreboot-"),
    b"OpenSBI v",
    *(
        b"Linux version ",
        b"Starting kernel ...",
        b"EFI stub: Exiting",
        b"compressing Linux...",
        b"Booting the kernel",
    ),
    *(b"estarting system", b"reboot: ", b"Rebooting in ", b"Starting new kernel"),
    *(b"crashdump kernel", b"ysrq: Resetting"),
    *(b"dmesg", b"journalctl", b"qemu-system"),
)

#: The same for a machine whose boot script is kboot's, with what its loaders print.
_OF_A_BOOT = re.compile(
    b"|".join(
        re.escape(literal)
        for literal in (
            *RESET_LITERALS,
            *(
                b"iPXE ",
                b"kboot: ",
                b"Booting from ",
                b"Machine UUID ",
                b"Hit any key",
                b">>Start ",
            ),
        )
    )
)


def may_be_of_a_boot(raw: bytes) -> bool:
    """Whether it is worth the while to look at the line: a plain search in its bytes."""
    return _OF_A_BOOT.search(raw) is not None


def is_firmware(line: str) -> bool:
    """Whether a machine's first line is in this one."""
    return _FIRMWARE.search(line.strip()) is not None


def is_loader(line: str) -> bool:
    """Whether the line is of what runs between a machine's first line and its kernel."""
    return _LOADER.match(line.strip()) is not None


def begins_boot(line: str) -> bool:
    """Whether a machine that runs prints this when it begins anew: of firmware, or just after."""
    return kernel_message(line) is None and (is_firmware(line) or is_loader(line))


def is_handoff(line: str) -> bool:
    """Whether a loader says last, or a kernel says first, that no firmware runs from now on."""
    return _KERNEL_TAKES_OVER.match(line.strip()) is not None


def is_unpacking(line: str) -> bool:
    """Whether a kernel's image unpacks itself: the kernel's first line is still to come."""
    return _UNPACKING.match(line.strip()) is not None


def has_lease(line: str) -> bool:
    """Whether iPXE says that it has an address, or the name of its boot file."""
    return _DHCP.match(line.strip()) is not None


def script_nonce(line: str) -> str | None:
    """The nonce, where kboot's boot script says that it begins."""
    match = _SCRIPT.fullmatch(line.strip())
    return match[1] if match else None


def handoff_nonce(line: str) -> str | None:
    """The nonce, where kboot's boot script says that it starts the kernel."""
    match = _HANDOFF.fullmatch(line.strip())
    return match[1] if match else None


def stopped_script(line: str) -> tuple[str, str] | None:
    """Where kboot's boot script gives up: its step and iPXE's number for the error."""
    match = _STOPPED.fullmatch(line.strip())
    return (match[1], match[2]) if match else None


class Rows:
    """Puts together what a BIOS has wrapped: a row of 80 columns goes on in the next one."""

    def __init__(self) -> None:
        self._begun = ""

    def take(self, row: str) -> str | None:
        """The whole line that ends with this row; None if it goes on."""
        whole = self._begun + row
        self._begun = whole if len(row) == _COLUMNS else ""
        return None if self._begun else whole


@dataclass(frozen=True, slots=True, kw_only=True)
class IpxeBuild:
    """An iPXE, as it introduces itself."""

    #: Such as ``1.21.1+git20250501.dad20602+dfsg-1``.
    version: str
    #: Such as ``DNS``, ``HTTP``, ``HTTPS``.
    features: tuple[str, ...]


def ipxe_build(lines: Iterable[str]) -> IpxeBuild | None:
    """The iPXE that ran last, of those that say so in these lines; None if none does."""
    version, features = "", ""
    goes_on = False
    for line in lines:
        if "iPXE " in line and (match := _IPXE_BANNER.search(line)):
            version, features = match[1], ""
        elif goes_on:
            features += line
        elif version and line.startswith("Features: "):
            features = line.removeprefix("Features: ")
        else:
            continue
        # A BIOS goes on in the next row.
        goes_on = bool(features) and len(line) == _COLUMNS
    return IpxeBuild(version=version, features=tuple(features.split())) if version else None


def is_ipxe_prompt(unfinished: str) -> bool:
    """Whether the line that has not ended yet is iPXE's prompt, with nothing typed behind it."""
    return unfinished.rstrip() == "iPXE>"


def nothing_to_boot(line: str) -> str | None:
    """The words in which firmware or iPXE give up."""
    match = _GAVE_UP.search(line)
    return match[0].strip() if match else None


def disk_not_bootable(line: str) -> str | None:
    """The words in which firmware or a boot loader give up on a disk."""
    match = _NOT_BOOTABLE.search(line)
    return match[0].strip(" .") if match else None


# ---------------------------------------------------------------------------------------- prompts

#: For `Console.expect_prompt`, at a login: how lines end at which it waits.
LOGIN_PROMPTS = ("login:", "assword:", "#", "$")

#: A getty's. ``Last login: Mon`` is cut behind its colon at times.
_GETTY = r"(?:^|.*\s)(?!Last )\S+ login: ?"
#: A shell's: ``# ``, ``/ # ``, ``~ # ``, ``root@host:~# ``, ``bash-5.2$ ``, ``[root@host ~]# ``.
_SHELL = r"(?:\[\S+ \S+\]|\S{0,200}) ?[#$] "
_PROMPT = re.compile(rf"{_GETTY}$|^{_SHELL}$")
_PROMPT_AND_MESSAGE = re.compile(rf"(?:^\S+ login: |^{_SHELL}){MESSAGE_BEHIND}")
_PROMPT_FIRST = re.compile(r"\S+ login:(?: |$)|(?:\[\S+ \S+\]|\S*[^\s#$]) ?[#$] |# \S")
_SHELL_WAITS = re.compile(r"[#$] ?$")


def is_prompt(unfinished: str) -> bool:
    """Whether the line that has not ended yet is a login prompt, or a shell's."""
    return _PROMPT.search(unfinished) is not None and kernel_message(unfinished) is None


def is_prompt_and_message(line: str) -> bool:
    """Whether the line is a prompt behind which the kernel has printed something."""
    return _PROMPT_AND_MESSAGE.match(line) is not None


def begins_with_prompt(line: str) -> bool:
    """Whether the line is a prompt, with or without something typed there."""
    return _PROMPT_FIRST.match(line) is not None


def shell_waits(unfinished: str) -> bool:
    """Whether the line that has not ended yet is a shell's prompt with nothing typed behind it."""
    return _SHELL_WAITS.search(unfinished) is not None


def ends_with_prompt(literal: str) -> re.Pattern[str]:
    """A line that ends with this prompt, for now, or because a kernel message follows."""
    return re.compile(rf"{re.escape(literal.rstrip())}[ \t]*(?:\Z|{MESSAGE_BEHIND})")


# ----------------------------------------------------------------------------- lost characters
# Linux gives a busy UART 10 ms to send a character, and then writes the next one all the same
# (`wait_for_xmitr` in 8250_port.c). On a host with more machines than processors, an emulated UART
# takes longer than that at times.


class Reading(Enum):
    """What a word on the serial line tells about the one that was expected there."""

    SAME = auto()
    #: What is left of the expected one without a few characters, or may be.
    UNCLEAR = auto()
    OTHER = auto()


def read_word(seen: str, expected: str) -> Reading:
    """Compare a word with the expected one, on a line that loses characters and invents none."""
    if seen == expected:
        return Reading.SAME
    letters = iter(expected)
    return Reading.UNCLEAR if all(letter in letters for letter in seen) else Reading.OTHER
