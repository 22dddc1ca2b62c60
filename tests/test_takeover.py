"""A machine that was there before us: which boot it is in, and what of its past still counts."""

from __future__ import annotations

import socket

from kboot.console import Console
from kboot.crash import Scanner
from kboot.machine.power import present_boot
from tests.serial_lines import SocketStream
from tests.test_console import PANIC

FIRMWARE = b"\r\nSeaBIOS (version 1.16.2)\r\niPXE initialising devices...ok\r\n"
SCRIPT = b"kboot: script %s\r\nkboot: handoff %s\r\n"
KERNEL = b"[    0.000000] Linux version 6.1.0 (a@b) #1\r\n[    1.0] ACPI: UEFI 0x7F 000042\r\n"


def machine(nonce: bytes) -> bytes:
    return FIRMWARE + SCRIPT % (nonce, nonce) + KERNEL


def test_the_present_boot_begins_with_the_last_firmware() -> None:
    assert present_boot(b"") == 0
    assert present_boot(b"no firmware at all\r\n") == 0
    assert present_boot(machine(b"a")) == 0
    said = machine(b"a") + PANIC + machine(b"b")
    assert said[present_boot(said) :].startswith(b"SeaBIOS")
    assert b"script b" in said[present_boot(said) :]
    assert b"script a" not in said[present_boot(said) :]
    # The next one has begun, and has not come to its script yet.
    assert present_boot(said + FIRMWARE) == len(said) + 2
    # iPXE that tries twice is one boot.
    twice = machine(b"a") + FIRMWARE + b"iPXE initialising devices...ok\r\n" + SCRIPT % (b"b", b"b")
    assert present_boot(twice) == len(machine(b"a")) + 2


def test_a_programs_words_about_firmware_begin_no_boot() -> None:
    words = b"SeaBIOS (version 1.16.2)\r\n"
    for after in (b"linux login: root\r\n", b"/ # ls\r\n", b"[    9.000000] usb 1-6: done\r\n"):
        said = machine(b"a") + machine(b"b") + words + after
        assert present_boot(said) == len(machine(b"a")) + 2
        # The next one is a boot.
        assert present_boot(said + FIRMWARE) == len(said) + 2
    assert present_boot(machine(b"a") + b"login: " + words) == len(machine(b"a"))


def test_what_crashed_in_an_earlier_boot_is_forgiven_and_told() -> None:
    said = machine(b"a") + PANIC + machine(b"b")
    assert fatal(said, forgiven=present_boot(said)) == (False, 1)
    assert fatal(said + PANIC, forgiven=present_boot(said)) == (True, 2)
    assert fatal(said + PANIC[:200], forgiven=0)[0]
    # A report that the record breaks off in is as good as a whole one.
    broken = machine(b"a") + PANIC[:120] + machine(b"b")
    assert fatal(broken, forgiven=present_boot(broken)) == (False, 1)


def fatal(said: bytes, *, forgiven: int) -> tuple[bool, int]:
    """Whether a console with this past is dead, and how many reports it has."""
    host, guest = socket.socketpair()
    with (
        guest,
        Console(
            SocketStream(host), record=None, scanner=Scanner(), past=said, forgiven=forgiven
        ) as console,
    ):
        console.close()
        return console.fatal is not None, len(console.reports)
