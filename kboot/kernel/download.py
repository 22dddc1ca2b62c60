"""Kernels from ``http://`` and ``https://``, in the cache; fetched again only if they changed.

What was cut off goes on where it ended, if the server says that it is still the same file (RFC
9110: ETag or Last-Modified, Range, If-Range). ``#sha256=HEX`` behind a URL is held against the
content, and not sent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag, urlsplit

from kboot import __version__
from kboot.cache import sha256_of
from kboot.errors import ConfigError, InfraError
from kboot.https import authorities, innermost, tls_fault
from kboot.locks import lock_file
from kboot.log import logger, step
from kboot.state import cache_directory

if TYPE_CHECKING:
    import requests

_ATTEMPTS = 5
_PAUSE_S = 0.5
_CONNECT_LIMIT_S, _READ_LIMIT_S = 10.0, 30.0
_CHUNK_SIZE = 1 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """What is known of a file in the cache, whole or not; kept beside it."""

    #: As the server gave them; empty if it did not.
    etag: str = ""
    last_modified: str = ""
    #: Of a whole file.
    sha256: str = ""

    @property
    def validator(self) -> str:
        """What proves that a later answer is of the same bytes; empty if nothing does."""
        weak = self.etag.startswith("W/")
        return self.last_modified if weak or not self.etag else self.etag


class _CutOff(Exception):
    """The connection ended too early, or the server was out of order: it may be tried again."""


def is_url(source: str) -> bool:
    """Whether a user means a URL, of whatever kind, and not a path."""
    return _URL.match(source) is not None


def download(url: str) -> Path:
    """The file at `url`, in the cache.

    `ConfigError` if the URL is none, if there is no such file, or if it is not the one that
    ``#sha256=`` names; `InfraError` if the server cannot be reached, or is out of order.
    """
    address, wanted = _split(url)
    name = re.sub(r"[^\w.+~-]", "_", unquote(Path(urlsplit(address).path).name)) or "kernel"
    place = cache_directory("downloads") / hashlib.sha256(address.encode()).hexdigest()[:32]
    try:
        place.mkdir(exist_ok=True)
        with lock_file(place / ".lock"), step(f"download {without_password(address)}"):
            return _Download(address, place, name, wanted).run()
    except OSError as error:
        raise InfraError(
            f"the cache {place} cannot be written: {error.strerror or error}; "
            "make room there, or set XDG_CACHE_HOME"
        ) from error


def without_password(url: str) -> str:
    """`url` as it may be shown."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def _split(url: str) -> tuple[str, str]:
    """The URL to ask for, and the SHA-256 that is wanted, or an empty text."""
    shown = without_password(url)
    address, fragment = urldefrag(url)
    try:
        parts = urlsplit(address)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ConfigError(f"{shown}: not a URL: {error}") from error
    if not usable:
        raise ConfigError(
            f"{shown}: kboot downloads from http:// and https:// only; "
            "download it yourself, and give the file"
        )
    match = re.fullmatch(r"(?:sha256=([0-9A-Fa-f]{64}))?", fragment)
    if match is None:
        raise ConfigError(f"{shown}: #{fragment} is not #sha256= and 64 hexadecimal digits")
    return address, (match[1] or "").lower()


class _Download:
    """One file of the cache, ours alone while its lock is held."""

    def __init__(self, url: str, place: Path, name: str, wanted: str) -> None:
        self._url = url
        self._shown = without_password(url)
        self._whole = place / name
        self._partial = place / ".partial"
        self._wanted = wanted

    def run(self) -> Path:
        """The whole file."""
        # It is heavy, and only URLs need it.
        import requests  # noqa: PLC0415

        known = self._read_about(self._whole)
        if self._whole.is_file() and self._wanted and known.sha256 == self._wanted:
            return self._whole
        with requests.Session() as session:
            session.verify = authorities(self._url)
            session.headers["User-Agent"] = f"kboot/{__version__}"
            # A file that a server would compress is wanted as it is.
            session.headers["Accept-Encoding"] = "identity"
            for attempt in range(_ATTEMPTS):
                try:
                    if not self._fetch(session):
                        return self._whole
                    break
                except _CutOff as error:
                    if attempt == _ATTEMPTS - 1:
                        raise InfraError(
                            f"{self._shown}: {error}, {_ATTEMPTS} times; try again later, "
                            "or download it yourself and give the file"
                        ) from error
                    logger.debug("%s: %s; again", self._shown, error)
                    time.sleep(_PAUSE_S * attempt)
        return self._accept()

    def _fetch(self, session: requests.Session) -> bool:
        """Complete the partial file; False if the whole one is what the server has."""
        import requests  # noqa: PLC0415

        have = self._partial.stat().st_size if self._partial.is_file() else 0
        validator = self._read_about(self._partial).validator
        headers = self._conditions()
        if have and validator:
            headers = {"Range": f"bytes={have}-", "If-Range": validator}
        try:
            with session.get(
                self._url,
                headers=headers,
                stream=True,
                timeout=(_CONNECT_LIMIT_S, _READ_LIMIT_S),
            ) as answer:
                if answer.status_code == HTTPStatus.NOT_MODIFIED:
                    return False
                self._require_ok(answer)
                self._write(answer, have)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise ConfigError(f"{self._shown}: not a URL that can be asked for: {error}") from error
        except requests.exceptions.SSLError as error:
            plain = self._shown.replace("https://", "http://", 1)
            raise InfraError(f"{self._shown}: {tls_fault(error, plain=plain)}") from error
        except requests.RequestException as error:
            raise _CutOff(innermost(error)) from error
        return True

    def _conditions(self) -> dict[str, str]:
        known = self._read_about(self._whole)
        if not self._whole.is_file() or (self._wanted and known.sha256 != self._wanted):
            return {}
        if known.etag:
            return {"If-None-Match": known.etag}
        return {"If-Modified-Since": known.last_modified} if known.last_modified else {}

    def _require_ok(self, answer: requests.Response) -> None:
        status = answer.status_code
        if status in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
            return
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            self._partial.unlink(missing_ok=True)
            raise _CutOff("the file on the server has become shorter")
        words = f"{self._shown}: the server says {status} {answer.reason}"
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
            raise _CutOff(f"the server says {status} {answer.reason}")
        raise ConfigError(f"{words}; check the URL")

    def _write(self, answer: requests.Response, have: int) -> None:
        """Put the answer's content behind what is there, or in its place."""
        goes_on = answer.status_code == HTTPStatus.PARTIAL_CONTENT
        if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            self._partial.unlink(missing_ok=True)
            raise _CutOff("the server sent another part of the file than was asked for")
        if not goes_on:
            about = _About(
                etag=answer.headers.get("ETag", ""),
                last_modified=answer.headers.get("Last-Modified", ""),
            )
            self._partial.unlink(missing_ok=True)
            self._write_about(self._partial, about)
        # What is marked as gzip on its way would be unpacked: an Image.gz, and its checksum wrong.
        answer.raw.headers.pop("Content-Encoding", None)
        with self._partial.open("ab") as file:
            for chunk in answer.iter_content(_CHUNK_SIZE):
                file.write(chunk)

    def _accept(self) -> Path:
        digest = sha256_of(self._partial)
        about = dataclasses.replace(self._read_about(self._partial), sha256=digest)
        if self._wanted and digest != self._wanted:
            self._partial.unlink()
            raise ConfigError(f"{self._shown}: its sha256 is {digest}, not {self._wanted}")
        # In this order: a file without its notes is asked for again, never believed.
        self._notes_of(self._whole).unlink(missing_ok=True)
        self._partial.rename(self._whole)
        self._write_about(self._whole, about)
        return self._whole

    @staticmethod
    def _notes_of(file: Path) -> Path:
        return file.with_name(f".{file.name.removeprefix('.')}.json")

    def _read_about(self, file: Path) -> _About:
        try:
            return _About(**json.loads(self._notes_of(file).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return _About()

    def _write_about(self, file: Path, about: _About) -> None:
        target = self._notes_of(file)
        new = target.with_name(f"{target.name}.new")
        new.write_text(json.dumps(dataclasses.asdict(about)), encoding="utf-8")
        new.replace(target)
