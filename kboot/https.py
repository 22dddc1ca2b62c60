"""Servers that we ask with `requests`: whom we trust, and what went wrong, in one line."""

from __future__ import annotations

import os
from pathlib import Path

from kboot.errors import ConfigError

#: A file of certificates, or a directory of them, as `requests` takes it from the environment.
VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def authorities(url: str) -> str | bool:
    """Whose certificates are good for this URL, as `requests` takes it for ``verify``.

    `ConfigError` if the environment names what is not there.
    """
    for name in VARIABLES if url.startswith("https://") else ():
        if value := os.environ.get(name):
            if not Path(value).exists():
                raise ConfigError(f"{name}={value}: there is no such file")
            return value
    return True


def tls_fault(error: BaseException, *, plain: str = "") -> str:
    """What is wrong where TLS fails, and the remedy; `plain` is what to write without TLS."""
    reason = innermost(error)
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return (
            f"its certificate is not trusted: {reason}; "
            f"set {VARIABLES[0]} to the file of its authority"
        )
    return f"TLS fails: {reason}" + (f"; if it has none, write {plain}" if plain else "")


def innermost(error: BaseException) -> str:
    """The innermost words of an error, in which libraries wrap one another."""
    while error.args and isinstance(inner := error.args[-1], BaseException):
        error = inner
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return innermost(reason)
    words = str(error).rpartition(": ")[2] if "object at 0x" in str(error) else str(error)
    return " ".join(words.split())
