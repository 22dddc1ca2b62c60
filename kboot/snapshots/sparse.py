"""Files that are mostly zeros, as a machine's memory is: copied and checked without the zeros."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

#: A block is left out if it is all zeros.
_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)


def copy(source: int, target: int) -> None:
    """Copy an open file into another, without its zeros; the sizes are the same then."""
    os.ftruncate(target, os.fstat(source).st_size)
    for offset, block in _blocks(source):
        os.pwrite(target, block, offset)


def digest(path: Path) -> str:
    """The sha256, in hexadecimal, of a file's size and of its blocks that are not all zeros.

    It does not depend on which of the zeros are stored.
    """
    with path.open("rb") as file:
        total = hashlib.sha256(b"%d" % os.fstat(file.fileno()).st_size)
        for offset, block in _blocks(file.fileno()):
            total.update(offset.to_bytes(8, "big"))
            total.update(block)
    return total.hexdigest()


def _blocks(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """The blocks that are not all zeros, with their offsets."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as view:
        for start, end in _extents(descriptor, size):
            for offset in range(start - start % _BLOCK, end, _BLOCK):
                block = view[offset : offset + _BLOCK]
                if block != _ZEROS[: len(block)]:
                    yield offset, block


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are stored, joined where they share a block."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        hole = os.lseek(descriptor, start, os.SEEK_HOLE)
        # Up to the end of its last block, so that no block is seen twice.
        begin, end = max(start - start % _BLOCK, end), min(hole + -hole % _BLOCK, size)
        yield begin, end
