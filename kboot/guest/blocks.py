"""A file on its way into the guest over a serial line: in blocks, as large as the line can carry.

A request for each piece of 800 characters, as commands are sent, costs a round trip (60 ms on a
cluster) and a shell that reads byte by byte. A block is read by one program, and takes one round
trip for up to 32 KiB. Linux keeps 64 KiB of input for a terminal that nobody reads (tty_buffer.c),
so no more may be on its way.
"""

from __future__ import annotations

from kboot.guest.guest import OnProgress
from kboot.log import logger

#: Characters in a line: a terminal takes 4095.
_LINE = 1000
#: Lines in the first block, and in the largest.
_FIRST_LINES = 4
_MOST_LINES = 32
#: A block that takes longer is not made larger.
_BLOCK_S = 1.0

#: What a block may take, beyond four times what it should take by what others took.
_PATIENCE_S = 8.0

#: How often a transfer may be set back.
_SETBACKS = 8

#: What takes longer is worth saying.
_LONG_S = 5.0


class Sending:
    """How far a text is, in which blocks it goes, and how long it will take. Pure."""

    def __init__(self, text: bytes, size: int, remote: str, on_progress: OnProgress) -> None:
        """`size` is that of the file that `text` stands for, `remote` its name in the guest."""
        self.text = text
        #: The number of the block that is sent next.
        self.index = 0
        self._size = size
        self._remote = remote
        self._on_progress = on_progress
        self._lines = _FIRST_LINES
        self._position = 0
        self._length = 0
        self._spent_s = 0.0
        self._setbacks = 0
        self._told = False

    def next_block(self) -> bytes | None:
        """The block that comes next, or once more: whole lines; None if all have arrived."""
        if self._position >= len(self.text) and self.index:
            return None
        part = self.text[self._position : self._position + self._lines * _LINE]
        self._length = len(part)
        lines = (part[at : at + _LINE] for at in range(0, max(1, len(part)), _LINE))
        return b"".join(line + b"\n" for line in lines)

    @property
    def patience_s(self) -> float:
        """How long the answer to a block may take."""
        return _PATIENCE_S + 4 * self._seconds_for(self._length)

    def arrived(self, seconds: float) -> None:
        """The last block has arrived, in so many seconds."""
        self._position += self._length
        self.index += 1
        self._spent_s += seconds
        if seconds < _BLOCK_S:
            self._lines = min(_MOST_LINES, 2 * self._lines)
        left_s = self._seconds_for(len(self.text) - self._position)
        if not self._told and left_s > _LONG_S:
            self._told = True
            logger.info(
                "guest: %s: %d kB over the console, about %.0f s left; ssh is quicker",
                self._remote,
                self._size // 1000,
                left_s,
            )
        done = self._size * self._position // max(1, len(self.text))
        self._on_progress(done, self._size)

    def shrink(self) -> bool:
        """The last block has not arrived: make them smaller; False if that has gone on for long."""
        self._setbacks += 1
        self._lines = max(1, self._lines // 4)
        logger.debug("guest: block %d of %s did not arrive", self.index, self._remote)
        return self._setbacks < _SETBACKS

    def _seconds_for(self, length: int) -> float:
        return length * self._spent_s / self._position if self._position else 0.0
