"""A boot server's HTTPS: its certificates, good and bad ones, and how it is asked for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from kboot.errors import ConfigError

#: What the server shows: as it should be; too old; for another name; or of an authority that the
#: machine knows nothing of.
Certificate = Literal["on", "expired", "other-name", "untrusted"]
CERTIFICATES = get_args(Certificate)

#: What a machine's boot is served by: HTTP, or HTTPS with one of these certificates.
Tls = Literal["off", "on", "expired", "other-name", "untrusted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsServer:
    """Where a boot server answers by HTTPS."""

    #: What all its URLs begin with.
    base: str
    #: The authority that a machine is to trust, in PEM: the one of its certificate, if it is fine.
    authority: str


class TlsTarget(Protocol):
    """What can serve by HTTPS: a boot server."""

    def tls_fault(self) -> str | None:
        """None if it can serve by HTTPS, or else why not."""

    def serve_tls(self, certificate: Certificate) -> TlsServer:
        """Serve by HTTPS as well from now on. `ConfigError` if it cannot."""

    def url(self, path: str) -> str:
        """The URL of `path` as the guest sees it."""


class WithTls:
    """The user's way to URLs by HTTPS, the same for all boot servers."""

    def https(self: TlsTarget, url: str, certificate: Certificate = "on") -> str:
        """The same file by HTTPS: of a URL of this server's, or of a path below the run's token.

        `ConfigError` if there is no such certificate, or if this server cannot do it.
        """
        if certificate not in CERTIFICATES:
            raise ConfigError(
                f"there is no certificate {certificate!r}; there are: {', '.join(CERTIFICATES)}"
            )
        if reason := self.tls_fault():
            raise ConfigError(reason)
        return self.serve_tls(certificate).base + url.removeprefix(self.url("")).lstrip("/")
