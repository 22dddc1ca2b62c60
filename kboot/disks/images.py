"""Disk images: raw, qcow2 and vmdk, read by ``qemu-img``, and never written to.

A guest writes to a qcow2 layer above an image. A layer that is empty is the same for all images of
a size, since what is below it is said where it is opened: so it is made once, and copied.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kboot import process
from kboot.cache import FileStamp, keep_directory
from kboot.errors import ConfigError, InfraError, ProcessError, refusal_named
from kboot.kernel.image import HEAD_SIZE, is_image, looks_like
from kboot.state import cache_directory

#: Those that QEMU can lay a layer upon, and that people have.
_FORMATS = ("raw", "qcow2", "vmdk")
_SECTOR = 512
_LIMIT_S = 60.0
_MOST_BLOCK_SHIFT = 6
#: More than the table of references of any image that people have.
_TABLE_LIMIT = 64 << 20
_UNWRITTEN = 1 << 20
#: How QEMU says that another one writes to the file (block/file-posix.c).
_LOCKED = re.compile(r'Failed to get (?:shared )?"[a-z ]+" lock')
#: Characters of no text.
_BINARY = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
_NO_DISKS = (
    *("a script", "ELF", "an ar archive", "an RPM package", "a zip archive", "a tar archive"),
    *("an EFI program", "an initramfs", "an Android vendor boot image", "a devicetree"),
)

#: What this process has read already.
_known: dict[FileStamp, Image] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A disk image, and the images below it."""

    path: Path
    #: As QEMU calls it.
    format: str
    size_bytes: int
    #: Those of the images below it.
    formats_below: tuple[str, ...]
    #: Of all its files: other ones once any of them has changed.
    stamps: tuple[FileStamp, ...]

    @property
    def changed_file(self) -> Path | None:
        """The first of its files that is not as it was read; None if all are."""
        return next((stamp.path for stamp in self.stamps if not _is_same(stamp)), None)


def _is_same(stamp: FileStamp) -> bool:
    try:
        return FileStamp.of(stamp.path) == stamp
    except OSError:
        return False


def read_image(path: Path, *, what: str) -> Image:
    """What is in the disk image `path`; `what` names it in errors: ``disk data``.

    `ConfigError` if it is none that kboot takes, if an image below it is missing, or if another
    machine writes to it.
    """
    head = _head(path, what)
    stamp = FileStamp.of(path)
    known = _known.get(stamp)
    if known is None or known.changed_file:
        known = _known[stamp] = _read(path, head, what)
    return known


def _head(path: Path, what: str) -> bytes:
    with refusal_named(what):
        if not path.is_file():
            problem = "is a directory" if path.is_dir() else "is not a regular file"
            problem = problem if path.exists() else "no such file"
            raise ConfigError(f"{what}: {path}: {problem}; give a disk image (raw, qcow2 or vmdk)")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_SIZE)
    except OSError as error:
        raise ConfigError(f"{what}: {path}: cannot be read: {error.strerror or error}") from error
    if not head:
        raise ConfigError(f"{what}: {path}: an empty file; was the copy or download cut off?")
    return head


def _read(path: Path, head: bytes, what: str) -> Image:
    argv = ["qemu-img", "info", "--output=json", "--backing-chain", str(path)]
    done = process.run(argv, timeout_s=_LIMIT_S, check=False)
    if done.exit_status:
        words = done.stderr.decode(errors="replace").strip().removeprefix("qemu-img: ")
        raise ConfigError(f"{what}: {in_use_fault(words) or _unreadable(path, words)}")
    chain: list[dict[str, Any]] = json.loads(done.stdout)
    form = str(chain[0]["format"])
    if form not in _FORMATS:
        raise ConfigError(
            f"{what}: {path}: a disk image in the format {form}; convert it: {conversion(path)}"
        )
    # Whatever QEMU does not know is a raw disk to it.
    if form == "raw" and (fault := _raw_fault(path, head)):
        raise ConfigError(f"{what}: {path}: {fault}")
    size, whole = path.stat().st_size, _whole_bytes(path, form)
    if size < whole:
        raise ConfigError(
            f"{what}: {path}: cut off: it has {size} bytes of at least {whole}; copy or download "
            "it again"
        )
    files = [path, *(_file(each) for each in chain[1:])]
    files += [extent for each in chain for extent in _extents(each) if extent not in files]
    return Image(
        path=path,
        format=form,
        size_bytes=int(chain[0]["virtual-size"]),
        formats_below=tuple(str(each["format"]) for each in chain[1:]),
        stamps=tuple(map(FileStamp.of, files)),
    )


def conversion(path: Path) -> str:
    """The command that makes a qcow2 image of another one, for people."""
    words = ("qemu-img", "convert", "-O", "qcow2", str(path), str(path.with_suffix(".qcow2")))
    return shlex.join(words)


def _file(info: dict[str, Any]) -> Path:
    return Path(str(info["filename"]))


def _extents(info: dict[str, Any]) -> list[Path]:
    """The files that hold the data of a vmdk, or of a qcow2, where these are others."""
    data = (info.get("format-specific") or {}).get("data") or {}
    names = [str(each["filename"]) for each in data.get("extents") or ()]
    names += [str(data["data-file"])] if "data-file" in data else []
    # They are relative to the image.
    places = (_file(info).parent / name for name in names)
    return [place for place in places if place.is_file()]


def _unreadable(path: Path, words: str) -> str:
    others = [name for name in re.findall(r"Could not open '([^']+)'", words) if name != str(path)]
    if others:
        return f"{path}: the image {others[0]}, which it is based on, cannot be opened; put it back"
    return f"{path}: cannot be read as a disk image: {' '.join(words.split())}"


def _raw_fault(path: Path, head: bytes) -> str | None:
    """Why a file is surely no raw disk; None if it may be one."""
    what = "a kernel" if is_image(head) else looks_like(head)
    is_text = what == "text" and not _BINARY.search(head)
    if what == "a kernel" or is_text or what.startswith(_NO_DISKS) or "compressed" in what:
        return f"not a disk image: it looks like {what}; give a raw, qcow2 or vmdk image"
    size = path.stat().st_size
    if size % _SECTOR:
        return (
            f"not a whole raw disk: its {size} bytes are no multiple of {_SECTOR}; "
            "was the copy or download cut off?"
        )
    return None


def _whole_bytes(path: Path, form: str) -> int:
    """How many bytes an image has at least if nothing is missing, as far as it says so."""
    with path.open("rb") as file:
        if form == "qcow2":
            return _whole_qcow2(file)
        first = file.read(4096)
    # What is longer than its disk is refused by Linux: UEFI 2.10, 5.3.2; ext4's superblock.
    if form == "raw" and first[512:520] == b"EFI PART":
        return (int.from_bytes(first[560:568], "little") + 1) * _SECTOR
    if form == "raw" and first[0x438:0x43A] == b"\x53\xef":
        count, shift = (int.from_bytes(first[at : at + 4], "little") for at in (0x404, 0x418))
        return count << (10 + shift) if shift <= _MOST_BLOCK_SHIFT else 0
    return 0


def _whole_qcow2(file: IO[bytes]) -> int:
    """By the last cluster that is counted as used (docs/interop/qcow2.txt)."""
    header = file.read(104).ljust(104, b"\0")
    version, bits = (int.from_bytes(header[at : at + 4], "big") for at in (4, 20))
    table, clusters = struct.unpack_from(">QI", header, 48)
    order = int.from_bytes(header[96:100], "big") if version > 2 else 4
    file.seek(table)
    entries = file.read(min(clusters << bits, _TABLE_LIMIT))
    last = max((at for at in range(0, len(entries), 8) if any(entries[at : at + 8])), default=-8)
    if last < 0:
        return 0 if len(entries) == clusters << bits else table + (clusters << bits)
    (place,) = struct.unpack_from(">Q", entries, last)
    file.seek(place)
    counts = file.read(1 << bits).rstrip(b"\0")
    if not counts:
        return int(place) + 1
    # Of less than a byte each, several are in the last one; then this is too few.
    before = (len(counts) - 1) * 8 >> order
    used = (last // 8 * ((8 << bits) >> order)) + before
    # One that QEMU was killed over may have counted some clusters that it has not written yet.
    return max(0, (used << bits) - _UNWRITTEN)


def is_open(path: Path) -> bool:
    """Whether a QEMU has an image open, also one that does not write to it."""
    # It locks a byte for each thing that it does, or does not want done (block/file-posix.c).
    first, count = 100, 200
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
    with path.open("rb") as file:
        found = fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked)
    return int(struct.unpack("hhqqi4x", found)[0]) != fcntl.F_UNLCK


def in_use_fault(words: str) -> str | None:
    """What QEMU has said, if it is that an image is in use by another one; else None."""
    if not _LOCKED.search(words):
        return None
    named = re.search(r"(?:process using the image \[|Could not open ')([^\]']+)", words)
    image = named[1] if named else "the image"
    return f"{image} is in use by another machine, which writes to it; stop that one, or copy it"


def empty_layer(size_bytes: int) -> Path:
    """An empty qcow2 image of this size, in the cache: copied, a writable layer. Not to be written.

    `ProcessError` if there is no qemu-img.
    """
    name = f"empty-{size_bytes}"

    def fill(directory: Path) -> None:
        create(directory / f"{name}.qcow2", size_bytes)

    return keep_directory(cache_directory("disks") / name, fill) / f"{name}.qcow2"


def create(path: Path, size_bytes: int, *, above: Image | None = None) -> None:
    """Make a qcow2 image, empty, or as a layer above another one. `InfraError` if it cannot be."""
    below = ["-u", "-b", str(above.path), "-F", above.format] if above else []
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *below, str(path), str(size_bytes)]
    _run(argv, path)


def convert(image: Image, target: Path) -> None:
    """Write all that can be read in `image` into one qcow2 image. `InfraError` if it cannot be."""
    _run(
        ["qemu-img", "convert", "-f", image.format, "-O", "qcow2", str(image.path), str(target)],
        target,
    )


def _run(argv: list[str], target: Path) -> None:
    try:
        # A golden disk may be large.
        process.run(argv, timeout_s=_LIMIT_S * 60)
    except ProcessError as error:
        target.unlink(missing_ok=True)
        words = str(error)
        if fault := in_use_fault(words):
            raise ConfigError(fault) from error
        if "No space left" in words:
            raise InfraError(
                f"{target.parent}: no space left on device; make room there"
            ) from error
        raise
