"""Lines of firmware, iPXE, kernel and logins, and lines that look like them and are not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kboot import boot_messages
from kboot.boot_messages import Reading, read_word

PACKAGE = Path(boot_messages.__file__).parent

#: Words by which such lines are known, and who else may have them: readers of files, not of lines.
WORDS = ("SeaBIOS", "BdsDxe", "Linux version", "ommand line: ", "login:", "kboot: script \\", "#$")
READERS_OF_FILES = {"kernel/image.py", "kernel/elf.py"}

PROMPTS = [
    "linux login: ",
    "debian login:",
    "[   OK  ] Started getty. debian login: ",
    "# ",
    "$ ",
    "/ # ",
    "~ # ",
    "/root # ",
    "root@host:~# ",
    "user@host:/tmp$ ",
    "bash-5.2# ",
    "sh-5.2$ ",
    "[root@localhost ~]# ",
    "host:~ # ",
]
NO_PROMPTS = [
    "",
    "Last login: ",
    "Last login: Mon Nov 23 03:46:10 UTC 2026 on ttyS0",
    "login incorrect",
    "waiting for user login: none",
    "Loading 50 # ",
    "progress ##### ",
    "cost: 5 $ ",
    "[    1.234567] audit: login: ",
    "#",
    "$",
    "# ls",
    "/ # ls",
    "=> ",
    "grub> ",
]


@pytest.mark.parametrize("text", PROMPTS)
def test_a_prompt_is_one(text: str) -> None:
    assert boot_messages.is_prompt(text)


@pytest.mark.parametrize("text", NO_PROMPTS)
def test_what_only_looks_like_a_prompt_is_none(text: str) -> None:
    assert not boot_messages.is_prompt(text)


def test_a_prompt_with_a_kernel_message_behind_it_is_one() -> None:
    message = "[   12.345678] random: crng init done"
    for prompt in ("linux login: ", "/ # ", "root@host:~# "):
        assert boot_messages.is_prompt_and_message(prompt + message)
    for line in ("linux login: root", "/ # ls", "linux login: SeaBIOS (version 1.16.2)", message):
        assert not boot_messages.is_prompt_and_message(line)


FIRMWARE = [
    "SeaBIOS (version 1.16.2-debian-1.16.2-1)",
    "linux login: SeaBIOS (version rel-1.16.3-0-ga6ed6b701f0a-prebuilt.qemu.org)",
    "UEFI firmware (version 2022.11-6 built at 21:17:29 on Jan  1 2023)",
    "UEFI firmware (version  built at 13:10:49 on Nov  5 2024)",
    "OpenSBI v1.5.1",
    'BdsDxe: loading Boot0002 "UEFI PXEv4 (MAC:525400123456)" from PciRoot(0x0)/Pci(0x1,0x0)',
    "BdsDxe: failed to load Boot0002 from PciRoot(0x0): Not Found",
    "U-Boot 2023.07 (Jul 11 2023 - 15:20:44)",
    "U-Boot SPL 2023.07 (Jul 11 2023 - 15:20:44)",
    "coreboot-4.20 Mon Sep 12 14:38:59 UTC 2022 bootblock starting (log level: 8)...",
]
NO_FIRMWARE = [
    "SeaBIOS",
    "SeaBIOS (version",
    "SeaBIOS (version 1.16.2) is what this machine has",
    "OpenSBI v1.5.1 is what this machine has",
    "BdsDxe: loading",
    "see BdsDxe: loading Boot0002 ",
    "ver=U-Boot 2020.01 (Apr 20 2020 - 23:29:25 +0000)",
    "coreboot-4.20 Mon Sep 12 14:38:59 UTC 2022 smm starting (log level: 8)...",
    "DMI: QEMU Standard PC (Q35 + ICH9, 2009), BIOS 1.16.2-debian-1.16.2-1 04/01/2014",
    "UEFI firmware",
]


@pytest.mark.parametrize("line", FIRMWARE)
def test_firmware_is_known(line: str) -> None:
    assert boot_messages.is_firmware(line)
    assert boot_messages.begins_boot(line)
    assert any(literal in line.encode() for literal in boot_messages.RESET_LITERALS)


@pytest.mark.parametrize("line", NO_FIRMWARE)
def test_words_about_firmware_are_none(line: str) -> None:
    assert not boot_messages.is_firmware(line)
    assert not boot_messages.begins_boot(f"[    0.000000] {line}")


def test_a_kernel_message_is_known_by_its_stamp() -> None:
    message = boot_messages.kernel_message("c[    0.000000][    T0] Linux version 6.12.1 (a@b)")
    assert message is not None
    assert (message.time_s, message.text, message.in_its_place) == (
        0.0,
        "Linux version 6.12.1 (a@b)",
        True,
    )
    quoted = boot_messages.kernel_message("old log: [    0.000000] Linux version 6.12.1 (a@b)")
    assert quoted is not None
    assert not quoted.in_its_place
    for line in ("<5>[    0.000000] x", "[12:00:01] x", "[   OK  ] x", "x", "    0.000000] x"):
        assert boot_messages.kernel_message(line) is None


BANNER = (
    "Linux version 6.12.117+deb13-amd64 (debian-kernel@lists.debian.org) (x86_64-linux-gnu-gcc-14 "
    "(Debian 14.2.0-19) 14.2.0, GNU ld (GNU Binutils for Debian) 2.44) #1 SMP PREEMPT_DYNAMIC"
)


def test_a_banner_that_lost_a_character_names_its_kernel_or_none() -> None:
    """Whatever is lost, another release is never read that the loss does not explain."""
    release = "6.12.117+deb13-amd64"
    assert boot_messages.whole_banner(BANNER) == release
    for length in (1, 2, 3, 6, 12):
        for start in range(len(BANNER)):
            seen = boot_messages.whole_banner(BANNER[:start] + BANNER[start + length :])
            assert seen is None or read_word(seen, release) is not Reading.OTHER
    for words in ("Welcome to ACME Linux version 3.2", "Linux version 3.2", f"my {BANNER}"):
        assert boot_messages.whole_banner(words) is None


def test_a_command_line_that_lost_characters_never_has_another_whole_nonce() -> None:
    nonce = "0123456789abcdef"
    line = f"Kernel command line: kboot.nonce={nonce} console=ttyS0 panic=-1 abcdef=1 x"
    for length in range(1, 12):
        for start in range(len(line)):
            seen = boot_messages.command_line(line[:start] + line[start + length :])
            read = boot_messages.nonce_in(seen) if seen else None
            assert read is None or read == nonce or len(read) < len(nonce)
    for words in ("tdevd: Command line: x", "the Command line: x", "Command line of x"):
        assert boot_messages.command_line(words) is None


def test_the_words_of_the_boot_script_are_whole_lines() -> None:
    assert boot_messages.script_nonce("kboot: script 0123abcd") == "0123abcd"
    assert boot_messages.handoff_nonce("kboot: handoff 0123abcd") == "0123abcd"
    assert boot_messages.stopped_script("kboot: stopped boot 0x2e008081") == ("boot", "0x2e008081")
    for line in (
        "echo kboot: script 0123abcd",
        "kboot: script",
        "kboot: script is what iPXE runs",
        "kboot: stopped by hand",
    ):
        assert boot_messages.script_nonce(line) is None
        assert boot_messages.stopped_script(line) is None


def test_why_an_initramfs_could_not_be_gone_on_with_is_known() -> None:
    failed = "[    1.642971] Initramfs unpacking failed: "
    told = {
        "[    7.008668] kboot: there is no /sbin/init": "there is no /sbin/init",
        f"{failed}read error": "Initramfs unpacking failed: read error",
        f"{failed}write error": "Initramfs unpacking failed: write error; give the machine more",
        f"{failed}Input was encoded with settings that are not supported by this XZ decoder": (
            "not supported by this XZ decoder; compress it by xz --check=crc32"
        ),
    }
    for line, words in told.items():
        assert words in str(boot_messages.given_up(line))
    for line in (
        "kboot: handoff abcd",
        "<6>[    1.0] kboot: x",
        "[    1.0] x kboot: y",
        failed[15:],
    ):
        assert boot_messages.given_up(line) is None


def test_each_of_these_lines_is_defined_in_one_place() -> None:
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        name = str(path.relative_to(PACKAGE))
        if name == "boot_messages.py" or name in READERS_OF_FILES:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "re.compile":
                continue
            if any(word in ast.unparse(node) for word in WORDS):
                wrong.append(f"{name}:{node.lineno}")
    assert wrong == []
