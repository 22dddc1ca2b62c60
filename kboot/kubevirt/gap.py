"""Find what a serial line said while nobody listened, in the record that the cluster keeps of it.

The record (container ``guest-console-log``) has whole lines only, without their carriage returns,
and lags. So it fills gaps, and what it fills is marked; it is not a witness.
"""

from __future__ import annotations

from dataclasses import dataclass

#: How much of what was heard before and after a gap is looked for in the record.
TAIL_BYTES = 300
HEAD_BYTES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What was missed."""

    #: As a terminal would have got it; empty if nothing was missed, or nothing is known.
    missed: bytes
    #: Whether `missed` is all.
    complete: bool

    def marked(self, lost_s: float) -> bytes:
        """What goes into our own record: nothing for a gap in which nothing was said."""
        if self.complete and not self.missed:
            return b""
        if not self.missed:
            return _mark(f"the console was lost for {lost_s:.1f} s; what it said then is not known")
        doubt = "" if self.complete else ", perhaps not all"
        begin = _mark(
            f"the console was lost for {lost_s:.1f} s; the next {len(self.missed)} bytes"
            f"{doubt} are from guest-console-log"
        )
        return begin + self.missed + _mark("the console is back")


def find(before: bytes, record: bytes, after: bytes) -> Gap | None:
    """What the record has between what was heard `before` and `after`; None if it has not yet.

    None as well if so little was heard before that its place in the record is not certain.
    `before` is empty if nothing was heard before, and `after` if nothing has come yet: then all
    that the record has is taken.
    """
    text = _plain(record)
    tail, head = _plain(before)[-TAIL_BYTES:], _plain(after)[:HEAD_BYTES]
    position = 0
    if tail:
        found = text.rfind(tail)
        if found < 0 or (len(tail) < HEAD_BYTES and text.count(tail) > 1):
            return None
        position = found + len(tail)
    if not head:
        return Gap(missed=_terminal(text[position:]), complete=False)
    end = text.find(head, position)
    if end < 0:
        return None
    return Gap(missed=_terminal(text[position:end]), complete=True)


def past(record: bytes, after: bytes) -> bytes | None:
    """All that the record has up to what was heard first; None if it has not got so far yet."""
    text, head = _plain(record), _plain(after)[:HEAD_BYTES]
    end = text.rfind(head) if head else len(text)
    return None if end < 0 else _terminal(text[:end])


def marked_past(said: bytes) -> bytes:
    """The beginning of our own record of a machine that was there before we came."""
    begin = _mark(f"the next {len(said)} bytes are from guest-console-log: what was said before")
    return begin + said + _mark("the console is attached")


def _plain(data: bytes) -> bytes:
    return data.replace(b"\r", b"")


def _terminal(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def _mark(text: str) -> bytes:
    return f"\r\n[kboot: {text}]\r\n".encode()
