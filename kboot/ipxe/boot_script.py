"""The kernel's command line, and the iPXE script that loads it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from kboot import arch, templates
from kboot.errors import ConfigError

#: The name of a machine's boot script on the server, in a folder of the machine's own.
SCRIPT_NAME = "boot.ipxe"

#: How often the script tries to load, and the seconds between.
ATTEMPTS = 3
RETRY_DELAY_S = 2


def script_digest() -> str:
    """Another one for each version of the script, whatever it loads."""
    text = boot_script(
        nonce="", query="", kernel_url="", initrd_urls=[""], beacon_url="", command_line=""
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def new_nonce() -> str:
    """What tells one boot from all others."""
    return secrets.token_hex(8)


def command_line(
    *, nonce: str, architecture: str, firmware: str, initrd_count: int, extra: str
) -> str:
    """The kernel's command line: our part, then the user's.

    ``console=`` and ``panic=`` are ours only if the user has not given any. The nonce comes first:
    the kernel prints no more than the first 1000 characters or so.
    """
    words = extra.split()
    parameters = [f"kboot.nonce={nonce}"]
    if not any(word.startswith("console=") for word in words):
        parameters.append(f"console={arch.of(architecture).console}")
    if not any(word.startswith("panic=") for word in words):
        parameters.append("panic=-1")
    if firmware == "uefi":
        # The kernel's EFI stub takes images from iPXE by their names.
        parameters += [f"initrd=initrd{number}" for number in range(initrd_count)]
    return " ".join([*parameters, *words])


def check_command_line(extra: str) -> None:
    """`ConfigError` for what an iPXE script cannot hand to a kernel."""
    if not extra.isprintable():
        raise ConfigError(f"the kernel's command line has control characters: {extra!r}")
    if "${" in extra:
        raise ConfigError(f"the kernel's command line has ${{, which iPXE would expand: {extra}")
    for word in extra.split():
        if word in {"||", "&&"} or word.startswith("#"):
            raise ConfigError(f"the kernel's command line has {word}, which iPXE takes for itself")


def check_command_line_fits(line: str, *, architecture: str, firmware: str) -> None:
    """`ConfigError` if a whole command line is longer than what kernels take."""
    limit = arch.of(architecture).command_line_size - 1
    # Under UEFI, iPXE puts the image's name in front. Under BIOS, that of 2025 keeps a byte for the
    # zero at the end, which the kernel's own limit does not count.
    limit -= len("kernel ") if firmware == "uefi" else 1
    size = len(line.encode())
    if size > limit:
        raise ConfigError(
            f"the kernel's command line is {size} bytes long, of which kboot's own parameters are "
            f"part, but a kernel for {architecture} takes {limit} and drops the rest; "
            f"shorten it by {size - limit}"
        )


def boot_script(
    *,
    nonce: str,
    query: str,
    kernel_url: str,
    initrd_urls: Sequence[str],
    beacon_url: str,
    command_line: str,
) -> str:
    """The script that iPXE fetches: load the kernel and its images in this order, and start it."""
    return templates.render(
        "ipxe/boot.ipxe",
        nonce=nonce,
        query=query,
        kernel_url=kernel_url,
        initrd_urls=initrd_urls,
        beacon_url=beacon_url,
        command_line=command_line,
        attempts=ATTEMPTS,
        retry_delay_s=RETRY_DELAY_S,
    )
