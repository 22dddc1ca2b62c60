"""iPXE's error numbers in words.

A number has four parts: a POSIX error (bits 24-30), the source file that reports it (13-23), which
of the file's own causes it is (8-12), and the firmware's own code for it (0-7), which differs
between BIOS and UEFI. The first three are what https://ipxe.org/err/ is asked for, as six digits.
The causes are numbered by meaning and not by source line, so they hold from 2019's iPXE on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: The POSIX errors that a boot meets, and what they mean there.
_POSIX: Mapping[int, tuple[str, str]] = {
    0x01: ("E2BIG", "argument list too long"),
    0x02: ("EACCES", "permission denied"),
    0x03: ("EADDRINUSE", "address already in use"),
    0x04: ("EADDRNOTAVAIL", "address not available"),
    0x05: ("EAFNOSUPPORT", "address family not supported"),
    0x06: ("EAGAIN", "resource temporarily unavailable"),
    0x07: ("EALREADY", "connection already in progress"),
    0x09: ("EBADMSG", "bad message"),
    0x0A: ("EBUSY", "device or resource busy"),
    0x0B: ("ECANCELED", "operation canceled"),
    0x0D: ("ECONNABORTED", "connection aborted"),
    0x0E: ("ECONNREFUSED", "connection refused"),
    0x0F: ("ECONNRESET", "connection reset"),
    0x12: ("EDOM", "argument out of domain"),
    0x14: ("EEXIST", "file exists"),
    0x15: ("EFAULT", "bad address"),
    0x16: ("EFBIG", "file too large"),
    0x17: ("EHOSTUNREACH", "host is unreachable"),
    0x19: ("EILSEQ", "illegal byte sequence"),
    0x1A: ("EINPROGRESS", "operation in progress"),
    0x1C: ("EINVAL", "invalid argument"),
    0x1D: ("EIO", "input/output error"),
    0x1E: ("EISCONN", "socket is connected"),
    0x1F: ("EISDIR", "is a directory"),
    0x20: ("ELOOP", "too many levels of links"),
    0x21: ("EMFILE", "too many open files"),
    0x23: ("EMSGSIZE", "message too long"),
    0x25: ("ENAMETOOLONG", "file name too long"),
    0x26: ("ENETDOWN", "network is down"),
    0x27: ("ENETRESET", "connection aborted by network"),
    0x28: ("ENETUNREACH", "network unreachable"),
    0x2A: ("ENOBUFS", "no buffer space available"),
    0x2C: ("ENODEV", "no such device"),
    0x2D: ("ENOENT", "no such file or directory"),
    0x2E: ("ENOEXEC", "exec format error"),
    0x31: ("ENOMEM", "not enough memory"),
    0x34: ("ENOSPC", "no space left"),
    0x37: ("ENOSYS", "function not implemented"),
    0x38: ("ENOTCONN", "not connected"),
    0x39: ("ENOTDIR", "not a directory"),
    0x3C: ("ENOTSUP", "operation not supported"),
    0x3D: ("ENOTTY", "inappropriate control operation"),
    0x3E: ("ENXIO", "no such device or address"),
    0x3F: ("EOPNOTSUPP", "operation not supported on socket"),
    0x40: ("EOVERFLOW", "value too large"),
    0x41: ("EPERM", "operation not permitted"),
    0x42: ("EPIPE", "broken pipe"),
    0x43: ("EPROTO", "protocol error"),
    0x44: ("EPROTONOSUPPORT", "protocol not supported"),
    0x46: ("ERANGE", "result too large"),
    0x47: ("EROFS", "read-only file system"),
    0x4A: ("ESTALE", "stale file handle"),
    0x4B: ("ETIME", "timer expired"),
    0x4C: ("ETIMEDOUT", "connection timed out"),
    0x4E: ("EWOULDBLOCK", "operation would block"),
    0x7F: ("EPLATFORM", "the firmware reported an error"),
}

#: The parts of iPXE that a boot over the network goes through, by the files that report.
_PARTS: Mapping[int, str] = {
    0x012000: "downloader",
    0x022000: "command",
    0x042000: "packet buffers",
    0x072000: "command",
    0x092000: "URI",
    0x0B2000: "name resolution",
    0x0C2000: "settings",
    0x162000: "option",
    0x1B2000: "ping",
    0x494000: "network driver e1000e",
    0x594000: "network driver snp",
    0x5C4000: "network driver virtio-net",
    0x654000: "network driver intel",
    0x016000: "ARP",
    0x056000: "IPv4",
    0x066000: "IPv6",
    0x086000: "network device",
    0x0A6000: "TCP",
    0x0B6000: "FTP",
    0x0C6000: "HTTP",
    0x0D6000: "iSCSI",
    0x0E6000: "TCP/IP",
    0x0F6000: "UDP",
    0x106000: "DHCP",
    0x116000: "DNS",
    0x126000: "TFTP",
    0x196000: "ICMP",
    0x336000: "NFS",
    0x376000: "neighbour lookup",
    0x3B6000: "DHCPv6",
    0x008000: "image",
    0x018000: "ELF image",
    0x028000: "script",
    0x038000: "memory for an image",
    0x048000: "UEFI image",
    0x03E000: "automatic boot",
    0x04E000: "DHCP",
    0x05E000: "image management",
    0x06E000: "PXE TFTP",
    0x0DE000: "TLS",
    0x0EE000: "network interface",
    0x15E000: "PXE menu",
    0x16E000: "certificate",
    0x1CE000: "config",
    0x22E000: "prompt",
    0x25E000: "random numbers",
    0x2AE000: "signature",
    0x2BE000: "image trust",
    0x2CE000: "menu",
    0x2EE000: "certificate validation",
    0x2FE000: "OCSP",
    0x30E000: "nslookup",
}

_HTTP, _DNS, _DHCP, _DEVICE = 0x0C6000, 0x116000, 0x106000, 0x086000
_TLS, _X509 = 0x0DE000, 0x16E000

#: What a file says beyond the POSIX error: file, POSIX error and the file's own number for it.
_CAUSES: Mapping[tuple[int, int, int], str] = {
    (_HTTP, 0x02, 1): "401 Unauthorized",
    (_HTTP, 0x1C, 1): "answer without a valid HTTP status",
    (_HTTP, 0x1C, 2): "invalid HTTP header",
    (_HTTP, 0x1C, 3): "invalid Content-Length",
    (_HTTP, 0x1C, 4): "invalid chunk length",
    (_HTTP, 0x1D, 1): "unrecognised HTTP status",
    (_HTTP, 0x1D, 2): "not as many bytes as Content-Length says",
    (_HTTP, 0x1D, 4): "HTTP status 4xx, client error",
    (_HTTP, 0x1D, 5): "HTTP status 5xx, server error",
    (_HTTP, 0x2D, 1): "404 Not Found",
    (_HTTP, 0x3C, 1): "unsupported Connection header",
    (_HTTP, 0x3C, 2): "unsupported transfer encoding",
    (_HTTP, 0x41, 1): "403 Forbidden",
    (_HTTP, 0x43, 1): "unsolicited data",
    (_DNS, 0x3E, 1): "DNS name does not exist",
    (_DNS, 0x3E, 2): "no DNS server known",
    (_DHCP, 0x4C, 0): "no DHCP answer",
    (_DEVICE, 0x1A, 1): "link state unknown",
    (_DEVICE, 0x1A, 2): "interface not configured",
    (_DEVICE, 0x1A, 3): "configuration under way",
    (_DEVICE, 0x38, 1): "link down",
    (0x03E000, 0x2D, 1): "nothing to boot",
    (0x0EE000, 0x04, 1): "no configuration method succeeded",
    (0x008000, 0x02, 1): "image not trusted",
    (0x008000, 0x02, 2): "trust requirement is permanent",
    (0x022000, 0x2E, 0): "unknown command",
    (0x162000, 0x1C, 1): "invalid number",
    (0x162000, 0x1C, 2): "unknown option",
    (0x162000, 0x1C, 3): "missing argument",
    (0x092000, 0x3C, 0): "this build does not know the URI's scheme",
    (_TLS, 0x3C, 1): "unsupported cipher",
    (_TLS, 0x3C, 2): "null cipher refused",
    (_TLS, 0x3C, 3): "unsupported signature algorithm",
    (_TLS, 0x3C, 4): "unsupported TLS version",
    (_TLS, 0x3C, 5): "unsupported key exchange group",
    (_TLS, 0x41, 1): "fatal TLS alert from the server",
    (_TLS, 0x41, 2): "TLS handshake not verified",
    (_TLS, 0x41, 4): "secure renegotiation not supported",
    (_TLS, 0x43, 1): "illegal TLS version upgrade",
    (_X509, 0x02, 1): "certificate of another issuer",
    (_X509, 0x02, 2): "issuer is no certificate authority",
    (_X509, 0x02, 3): "certificate is for another use",
    (_X509, 0x02, 4): "certificate expired or not yet valid",
    (_X509, 0x02, 5): "certificate chain too long",
    (_X509, 0x02, 6): "root certificate not trusted",
    (_X509, 0x02, 8): "empty certificate chain",
    (_X509, 0x02, 9): "OCSP check required",
    (_X509, 0x02, 10): "certificate of another name",
    (_X509, 0x02, 11): "no usable certificate",
}

#: With a chain that ends at an unknown root, 2019's iPXE says the last.
_UNTRUSTED = ("root certificate not trusted", "no usable certificate")

#: Where iPXE prints a number: ``(https://ipxe.org/2d0c613b)``, or ``Error 0x2d0c613b``.
_PRINTED = re.compile(r"(?:ipxe\.org/|\b[Ee]rror:? 0x)([0-9a-f]{8})\b")


@dataclass(frozen=True, slots=True)
class IpxeError:
    """One of iPXE's error numbers, as in ``${errno}``."""

    number: int

    @property
    def posix(self) -> str:
        """The name of the POSIX error: ``ENOENT``."""
        name, _ = _POSIX.get(self.number >> 24, (f"error {self.number >> 24:#x}", ""))
        return name

    @property
    def part(self) -> str:
        """The part of iPXE that reports it: ``HTTP``; empty if that is not known."""
        return _PARTS.get(self._file, "")

    @property
    def cause(self) -> str:
        """What that part says of it: ``404 Not Found``; empty where it adds nothing."""
        return _CAUSES.get((self._file, self.number >> 24, self.number >> 8 & 0x1F), "")

    @property
    def link(self) -> str:
        """Where it is explained, the same for BIOS and UEFI."""
        return f"ipxe.org/err/{self.number >> 8:06x}"

    @property
    def is_not_found(self) -> bool:
        """Whether the server has said that the file is not there."""
        return (self._file, self.number >> 24) == (_HTTP, 0x2D)

    @property
    def is_untrusted(self) -> bool:
        """Whether the server's certificate leads to no authority that iPXE trusts."""
        return self.cause in _UNTRUSTED

    @property
    def is_not_executable(self) -> bool:
        """Whether iPXE can make nothing of an image."""
        # A command that is not there has the same POSIX error, in another part.
        return self.number >> 24 == 0x2E and self._file != 0x022000

    def describe(self, doing: str = "") -> str:
        """In one line; `doing` is what was tried, such as ``fetching the kernel``."""
        _, meaning = _POSIX.get(self.number >> 24, ("", "unknown error"))
        what = f"{self.cause or meaning} ({self.posix})"
        if not self.cause and self.part:
            what += f" in {self.part}"
        return ", ".join(filter(None, [what, doing and f"while {doing}", self.link]))

    @property
    def _file(self) -> int:
        return self.number & 0xFFE000


def parse_error(text: str) -> IpxeError | None:
    """The error of a number as iPXE prints it, ``0x2d0c613b``; None if it is no error's."""
    match = re.fullmatch(r"(?:0x)?([0-9a-fA-F]{1,8})", text)
    number = int(match[1], 16) if match else 0
    return IpxeError(number) if 0 < number < 1 << 31 else None


def error_in(line: str) -> IpxeError | None:
    """The error in a line that iPXE prints; None if there is none."""
    match = _PRINTED.search(line)
    return parse_error(match[1]) if match else None
