"""iPXE: the script that it boots by, its prompt, and its errors in words."""

from kboot.ipxe.boot_script import (
    SCRIPT_NAME,
    boot_script,
    check_command_line,
    check_command_line_fits,
    command_line,
    new_nonce,
    script_digest,
)

__all__ = [
    "SCRIPT_NAME",
    "boot_script",
    "check_command_line",
    "check_command_line_fits",
    "command_line",
    "new_nonce",
    "script_digest",
]
