"""What was missed on the serial line is found in the cluster's record, or said to be unknown."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kboot.kubevirt import console

LINES = [f"line {number} of the boot".encode() for number in range(60)]
WIRE = b"".join(line + b"\r\n" for line in LINES)
RECORD = b"".join(line + b"\n" for line in LINES)


@given(st.integers(0, len(WIRE)), st.integers(0, 400))
def test_what_was_missed_is_found_to_the_byte(begin: int, length: int) -> None:
    end = min(begin + length, len(WIRE) - 60)
    begin = min(begin, end)
    if begin < console.HEAD_BYTES:
        begin = 0
    # A carriage return alone is nothing that the record could show.
    if WIRE[begin - 1 : begin] == b"\r" or WIRE[end - 1 : end] == b"\r":
        begin, end = 0, 0
    found = console.find(WIRE[:begin], RECORD, WIRE[end:])
    assert found is not None
    assert found.complete
    assert found.missed == WIRE[begin:end]


def test_a_word_is_too_little_to_find_a_place_by() -> None:
    assert console.find(WIRE[:4], RECORD, WIRE[100:]) is None


def test_a_record_that_lags_is_asked_again() -> None:
    assert console.find(b"not there yet", RECORD, b"") is None
    assert console.find(WIRE[:100], RECORD, b"not there yet") is None


def test_while_the_guest_is_silent_all_that_the_record_has_is_taken() -> None:
    found = console.find(WIRE[:100], RECORD, b"")
    assert found is not None
    assert not found.complete
    assert found.missed == WIRE[100:]


def test_nothing_is_marked_where_nothing_was_missed() -> None:
    assert console.Gap(missed=b"", complete=True).marked(0.1) == b""


def test_what_is_not_known_is_said_to_be_so() -> None:
    assert b"lost for 2.0 s; what it said then is not known" in console.Gap(
        missed=b"", complete=False
    ).marked(2)


def test_what_is_filled_stands_between_marks() -> None:
    marked = console.Gap(missed=b"one\r\n", complete=True).marked(0.3)
    assert b"the next 5 bytes are from guest-console-log]\r\none\r\n" in marked
    assert marked.endswith(b"[kboot: the console is back]\r\n")
