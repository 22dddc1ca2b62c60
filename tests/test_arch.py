"""The table of architectures: each row is whole, and none takes another's place."""

from __future__ import annotations

import pytest

from kboot import arch
from kboot.errors import ConfigError
from kboot.guest.saved import reseed_program
from kboot.kernel.elf import parse_elf

ROWS = pytest.mark.parametrize("row", arch.ARCHITECTURES, ids=lambda row: row.name)


@pytest.mark.parametrize(
    "field", ["name", "debian", "elf_machine", "pe_machine", "efi_boot_name", "qemu"]
)
def test_no_two_architectures_share_what_tells_them_apart(field: str) -> None:
    values = [getattr(row, field) for row in arch.ARCHITECTURES]
    assert len(set(values)) == len(values)


@ROWS
def test_what_a_file_says_of_itself_leads_to_the_row(row: arch.Architecture) -> None:
    assert arch.of(row.name) is row
    assert arch.name_of_elf(row.elf_machine) == row.name
    assert arch.name_of_pe(row.pe_machine) == row.name
    if row.image_magic is not None:
        assert arch.name_of_image(row.image_magic) == row.name


def test_an_architecture_without_a_row_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no machine for loongarch64; it has: aarch64, .*x86_64"):
        arch.of("loongarch64")
    assert arch.name_of_elf(258) == arch.name_of_pe(0x6264) == "loongarch64"
    assert arch.name_of_image(b"\0\0\0\0") is None


@ROWS
def test_the_program_that_brings_entropy_is_a_static_one_for_it(row: arch.Architecture) -> None:
    elf = parse_elf(reseed_program(row.name))
    assert elf is not None
    assert (elf.architecture, elf.is_static) == (row.name, True)
