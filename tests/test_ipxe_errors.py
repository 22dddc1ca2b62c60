"""iPXE's error numbers in words."""

import pytest

from kboot.ipxe.errors import error_in, parse_error


@pytest.mark.parametrize(
    ("number", "words"),
    [
        # BIOS and UEFI give the same error another last byte.
        ("0x2d0c613b", "404 Not Found (ENOENT), ipxe.org/err/2d0c61"),
        ("0x2d0c618e", "404 Not Found (ENOENT), ipxe.org/err/2d0c61"),
        ("0x1d0c6539", "HTTP status 5xx, server error (EIO), ipxe.org/err/1d0c65"),
        ("0x1d0c6239", "not as many bytes as Content-Length says (EIO), ipxe.org/err/1d0c62"),
        ("0x0f0a6095", "connection reset (ECONNRESET) in TCP, ipxe.org/err/0f0a60"),
        ("0x4c0a6035", "connection timed out (ETIMEDOUT) in TCP, ipxe.org/err/4c0a60"),
        ("0x4c106092", "no DHCP answer (ETIMEDOUT), ipxe.org/err/4c1060"),
        ("0x3e11618e", "DNS name does not exist (ENXIO), ipxe.org/err/3e1161"),
        ("0x38086193", "link down (ENOTCONN), ipxe.org/err/380861"),
        ("0x040ee119", "no configuration method succeeded (EADDRNOTAVAIL), ipxe.org/err/040ee1"),
        ("0x2d03e13b", "nothing to boot (ENOENT), ipxe.org/err/2d03e1"),
        ("0x2e008081", "exec format error (ENOEXEC) in image, ipxe.org/err/2e0080"),
        ("0x0216eb8f", "no usable certificate (EACCES), ipxe.org/err/0216eb"),
    ],
)
def test_a_number_is_told_in_words(number: str, words: str) -> None:
    error = parse_error(number)
    assert error is not None
    assert error.describe() == words


def test_what_was_tried_stands_between_the_words_and_the_link() -> None:
    error = parse_error("0x2d0c613b")
    assert error is not None
    assert error.describe("fetching the kernel") == (
        "404 Not Found (ENOENT), while fetching the kernel, ipxe.org/err/2d0c61"
    )


def test_a_part_that_is_not_known_is_left_out() -> None:
    error = parse_error("0x1c7fe001")
    assert error is not None
    assert error.describe() == "invalid argument (EINVAL), ipxe.org/err/1c7fe0"


def test_a_posix_error_that_is_not_known_keeps_its_number() -> None:
    error = parse_error("0x6f0c6001")
    assert error is not None
    assert error.describe() == "unknown error (error 0x6f) in HTTP, ipxe.org/err/6f0c60"


@pytest.mark.parametrize("text", ["0x0", "0", "", "0x", "0xffffffff", "0x123456789", "kernel"])
def test_what_is_no_error_number_is_none(text: str) -> None:
    assert parse_error(text) is None


@pytest.mark.parametrize(
    "line",
    [
        "http://10.0.2.2/k... No such file or directory (http://ipxe.org/2d0c613b)",
        "http://10.0.2.2/k... Not found (https://ipxe.org/2d0c613b)",
        "Could not boot: Error 0x2d0c613b (https://ipxe.org/2d0c613b)",
    ],
)
def test_a_printed_error_is_found(line: str) -> None:
    assert error_in(line) == parse_error("0x2d0c613b")


@pytest.mark.parametrize("line", ["https://ipxe.org", "iPXE (https://ipxe.org) 01:00.0 CA00", ""])
def test_the_address_of_ipxe_alone_is_no_error(line: str) -> None:
    assert error_in(line) is None


def test_only_an_image_can_be_not_executable() -> None:
    image, command = parse_error("0x2e008081"), parse_error("0x2e022001")
    assert image is not None
    assert command is not None
    assert (image.is_not_executable, command.is_not_executable) == (True, False)
